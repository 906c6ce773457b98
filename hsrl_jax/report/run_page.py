"""Stage `report`: results of a run, as one page without outside resources."""

import json
import pathlib
from typing import Any
from zipfile import BadZipFile

from hsrl_jax import files
from hsrl_jax.data.source import Items
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds, held_out, measures, off_policy, verdict
from hsrl_jax.host import metrics
from hsrl_jax.report import examples as examples_lib
from hsrl_jax.report import journeys, page, plots, sid_page, tables
from hsrl_jax.session_config import FITTED
from hsrl_jax.sid import store

_HISTORY = 8  # Latest titles shown at once; the others fold.
_USERS = 2  # Examples shown at once; the others fold.
_LATER = 12  # Titles liked later that are shown at once.
_STEPS = 3  # First steps shown at once; the others fold.
_WITH_HISTORY = "recall@10_with_history"
# Label, measure and form of the columns that held-out logs get.
_HELD_OUT = (
  ("AUC", "auc_within_slates", "{:.3f}"),
  ("recall@10", "recall@10", "{:.4f}"),
  ("with history", _WITH_HISTORY, "{:.4f}"),
  ("ndcg@10", "ndcg@10", "{:.4f}"),
  ("coverage", "coverage", "{:.1%}"),
  ("top item", "top_item_share", "{:.0%}"),
)
_ESTIMATORS = {x: x.upper() for x in off_policy.ESTIMATORS} | {
  off_policy.ON_POLICY: "on-policy"
}
# What is estimated from logs: name in results.json to head of the table.
_FROM_LOGS = {
  "off_policy": "value of an item",
  "off_policy_sessions": "value of a session",
}
_OPTIONAL = ("learning_curve", "next_item", "simulator", "journeys")
_QUALITY = (
  ("AUC", "auc"),
  ("AUC within users", "auc_within_users"),
  ("Log loss", "log_loss"),
  ("Calibration error", "calibration_error"),
)


def write(
  workdir: pathlib.Path,
  items: Items,
  sids: pathlib.Path | None = None,
  simulator: pathlib.Path | None = None,
) -> pathlib.Path:
  """Writes `report/` of a run whose other stages are complete.

  `sids/` and `simulator/` lie in the workdir where no other folder is given.

  Returns:
    The path of the page; its pictures also lie beside it.

  Raises:
    InputError: a file of another stage is missing or unreadable.
  """
  folder, sids = workdir / "report", (sids or workdir) / "sids"
  results = _read(measures.read_results, workdir / "results.json")
  examples = _json(folder / "examples.json")
  facts = _json(sids / "report.json")
  learned = (workdir / "policy" / metrics.METRICS).exists()
  training = _read(metrics.read, workdir / "policy") if learned else []
  losses = [x for x in training if "eval" not in x]
  validated = [x for x in training if "eval" in x]
  kept = []
  fit = []
  if "source" not in results["simulator"]:  # Fitted here.
    fit = _read(metrics.read, (simulator or workdir) / "simulator")
  saved = _read(store.read_npz, sids / "sids.npz")
  tokens, genres = saved["tokens"], items.genres[1:]

  figures = {
    "semantic_space": plots.semantic_space(
      items.features[1:], tokens, genres, facts["vocab_size"]
    )
  }
  if fit:
    figures["simulator"] = plots.simulator(fit)
  if validated and "kept" in validated[-1]["eval"]:
    figures["next_item"] = plots.next_item(losses, validated, results["seeds"])
    kept = _kept(validated, results["seeds"])
  elif training:
    figures["learning_curve"] = plots.learning_curve(
      results["agent"],
      validated,
      losses,
      {
        name: policy["total_reward"]["mean"]
        for name, policy in results["policies"].items()
        if name != results["agent"]
      },
    )
  if (folder / journeys.FILE).exists():
    figures["journeys"] = journeys.figure(_json(folder / journeys.FILE))
  pictures = {name: plots.png(figure) for name, figure in figures.items()}
  prefixes = sid_page.prefixes(
    tokens, lambda row: examples_lib.title(items, row + 1), genres
  )
  html = _page(results, facts, examples, pictures, prefixes, kept)
  for name, picture in pictures.items():
    files.write_atomic(folder / f"{name}.png", picture)
  path = folder / "report.html"
  files.write_atomic(path, html)
  return path


def table(results: dict[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  head = [
    results["dataset"],
    f"split {results['split']}",
    _world(results),
    f"{results['episodes']} episodes",
    f"seeds {','.join(map(str, results['seeds']))}",
  ]
  parts = [tables.filled(", ".join(head))]
  if "held_out" in results:
    said = held_out.sentences(results)
    parts += [tables.aligned(_held_out_rows(results)), tables.filled(*said)]
  for rows, said in _from_logs(results):
    parts += [tables.aligned(rows), tables.filled(*said)]
  said = verdict.lines(results)
  if why := _withheld(results):
    said.append(f"normalised is withheld: {why}")
  rows = tables.aligned(_simulated_rows(results))
  return tables.blocks(*parts, rows, tables.filled(*said))


def _simulated_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
  """Rows of the table of sessions, the head first; a dash where undefined.

  In worlds in which what is shown now matters later there is one column more,
  if it fits.
  """
  policies = _by_reward(results)
  ends = [x for _, p in policies for x in p["total_reward"]["ci95"]]
  width = max(len(f"{x:.2f}") for x in ends)
  rows = [("policy", "total reward", "[95% CI]", "depth", "normalised")]
  rows[0] += ("above greedy",)
  for name, policy in policies:
    reward = policy["total_reward"]
    rows.append(
      (
        name,
        tables.mean(reward),
        tables.interval(reward, f"{{:{width}.2f}}"),
        tables.mean(policy.get("depth")),
        tables.mean(policy.get("normalised")),
        tables.mean(policy.get(measures.ABOVE_GREEDY), "{:+z.2f}"),
      )
    )
  fits = tables.aligned(rows).index("\n") <= tables.WIDTH
  foreseen = {*bounds.KNOWING} & {*results["policies"]}
  return rows if fits and foreseen else [row[:-1] for row in rows]


def _world(results: dict[str, Any]) -> str:
  """Which sessions these are: the protocol, or a world with one of its own."""
  world = results.get("world", FITTED)
  return f"protocol {results['protocol']}" if world == FITTED else world


def _held_out_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
  """Rows of the held-out table, the head first; a dash where undefined."""
  shown = _held_out_columns(results)
  rows = [("held-out logs", *(label for label, _, _ in shown))]
  for name, measured in results["held_out"].items():
    cells = (tables.mean(measured.get(key), form) for _, key, form in shown)
    rows.append((name, *cells))
  return rows


def _held_out_columns(results: dict[str, Any]) -> list[tuple[str, str, str]]:
  """_HELD_OUT, with the history only where lists without it were measured."""
  measured = set().union(*results.get("held_out", {}).values())
  return [x for x in _HELD_OUT if x[1] in measured or x[1] != _WITH_HISTORY]


def _from_logs(
  results: dict[str, Any],
) -> list[tuple[list[tuple[str, ...]], list[str]]]:
  """Rows and sentences of each table of values from logs."""
  rows, whole = results.get("off_policy_rows", {}), []
  if rows and rows["with_propensities"] < rows["of_rows"]:
    whole = [
      f"{rows['with_propensities']:,} of {rows['of_rows']:,} slates have "
      "propensities. Values are of these; those of sessions are of sessions "
      "in which all slates have them."
    ]
  return [
    (
      off_policy_rows(head, results[name]),
      whole
      + off_policy.sentences(results[name], results[f"{name}_differences"]),
    )
    for name, head in _FROM_LOGS.items()
    if name in results
  ]


def off_policy_rows(head: str, table: dict[str, Any]) -> list[tuple[str, ...]]:
  """Rows of an off-policy table, the head first; a dash where refused."""
  rows = [(head, "estimator", "mean", "[95% CI]", "ESS")]
  for name, estimated in table.items():
    for estimator, found in estimated.items():
      cells = (*tables.cells(found, "{:.4f}"), f"{found['ess']:,.0f}")
      rows.append((name, _ESTIMATORS[estimator], *cells))
  return rows


def _kept(
  lines: list[dict[str, Any]], seeds: list[int]
) -> list[tuple[str, ...]]:
  """The kept update of each seed's training on the next item, for a table."""
  last = lines[-1]["eval"]["kept"]
  return [
    (str(seed), f"{step:,}", f"{measure:.4f}")
    for seed, step, measure in zip(
      seeds, last["step"], last["measure"], strict=True
    )
  ]


def _page(
  results: dict[str, Any],
  facts: dict[str, Any],
  examples: list[dict[str, Any]],
  pictures: dict[str, bytes],
  prefixes: dict[str, Any],
  kept: list[tuple[str, ...]],
) -> str:
  measured = results["policies"].get(results["agent"], {})
  return page.render(
    "run.html",
    title=f"{results['agent']} on {results['dataset']}",
    results=results,
    held_out=_held_out_columns(results),
    sentences=held_out.sentences(results),
    from_logs=_from_logs(results),
    columns=measures.columns(),
    withheld=_withheld(results),
    policies=[
      (name, {key: policy.get(key) for _, key, _ in measures.columns()})
      for name, policy in _by_reward(results)
    ],
    by_seed=measured.get("total_reward", {}).get("per_seed", []),
    pictures=dict.fromkeys(_OPTIONAL) | pictures,
    kept=kept,
    sids=facts,
    levels=[(*x[:3], x[-1]) for x in sid_page.levels(facts)],
    prefixes=prefixes,
    simulator=results["simulator"],
    follows=verdict.FOLLOWS,
    quality=_QUALITY,
    lists=[x for x in examples if "recommended" in x],
    sessions=[x for x in examples if "steps" in x],
    history_shown=_HISTORY,
    later_shown=_LATER,
    users_shown=_USERS,
    steps_shown=_STEPS,
  )


def _withheld(results: dict[str, Any]) -> str | None:
  """Why there are no normalised rewards; None: there are."""
  scaled = [x.get("normalised") or {} for x in results["policies"].values()]
  return next((x["withheld"] for x in scaled if "withheld" in x), None)


def _by_reward(results):
  return sorted(
    results["policies"].items(), key=lambda x: x[1]["total_reward"]["mean"]
  )


def _json(path: pathlib.Path) -> Any:
  return _read(lambda x: json.loads(x.read_text()), path)


def _read(reader, path: pathlib.Path) -> Any:
  try:
    return reader(path)
  except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
    what = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"{path} cannot be read ({what}); expected what the earlier stages "
      "wrote: run them again"
    ) from error
