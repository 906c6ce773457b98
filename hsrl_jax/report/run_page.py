"""Stage `report`: what a run found, as one page without outside resources."""

import json
import pathlib
import textwrap
from typing import Any
from zipfile import BadZipFile

from hsrl_jax import files
from hsrl_jax.data.source import Items
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import simulate
from hsrl_jax.host import metrics
from hsrl_jax.report import page as page_lib
from hsrl_jax.report import plots, sid_page
from hsrl_jax.sid import store

_WIDTH = 80  # Columns of the terminal's table.
_LIKED = "The user liked before, oldest first:"
_NOTHING = "Nothing is known of what the user liked before."
_HISTORY = 8  # Latest titles shown at once; the others fold.
_STEPS = 3  # First steps shown at once; the others fold.


def write(
  workdir: pathlib.Path,
  items: Items,
  sids: pathlib.Path | None = None,
  simulator: pathlib.Path | None = None,
) -> pathlib.Path:
  """Writes `report/` of a run whose other stages are complete.

  Args:
    workdir: of the run.
    items: the catalogue.
    sids: where `sids/` is; None: in the workdir.
    simulator: where `simulator/` is; None: in the workdir.

  Returns:
    The path of the page; its pictures also lie beside it.

  Raises:
    InputError: a file of another stage is missing or unreadable.
  """
  folder, sids = workdir / "report", (sids or workdir) / "sids"
  results = _read(simulate.read_results, workdir / "results.json")
  examples = _json(folder / "examples.json")
  facts = _json(sids / "report.json")
  learned = (workdir / "policy" / metrics.METRICS).exists()
  training = _read(metrics.read, workdir / "policy") if learned else []
  saved = _read(store.read_npz, sids / "sids.npz")
  item_id, tokens = saved["item_id"], saved["tokens"]
  genres = [items.genres[i] for i in item_id]
  others = {
    name: policy["total_reward"]["mean"]
    for name, policy in results["policies"].items()
    if name != results["agent"]
  }
  figures = {
    "semantic_space": plots.semantic_space(
      items.features[item_id], tokens, genres, facts["vocab_size"]
    ),
  }
  if "source" not in results["simulator"]:  # Fitted here.
    fit = _read(metrics.read, (simulator or workdir) / "simulator")
    figures["simulator"] = plots.simulator(fit)
  if training:
    figures["learning_curve"] = plots.learning_curve(
      [x for x in training if "eval" in x],
      [x for x in training if "eval" not in x],
      others,
    )
  pictures = {name: plots.png(figure) for name, figure in figures.items()}
  page = _page(results, facts, examples, pictures, items, item_id, tokens)
  for name, picture in pictures.items():
    files.write_atomic(folder / f"{name}.png", picture)
  path = folder / "report.html"
  files.write_atomic(path, page)
  return path


def table(results: dict[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  head = [
    results["dataset"],
    f"split {results['split']}",
    f"protocol {results['protocol']}",
    f"{results['episodes']} episodes",
    f"seeds {','.join(map(str, results['seeds']))}",
  ]
  policies = _by_reward(results)
  ends = [x for _, p in policies for x in p["total_reward"]["ci95"]]
  width = max(len(f"{x:.2f}") for x in ends)
  rows = [("policy", "total reward", "[95% CI]", "depth", "normalised")]
  for name, policy in policies:
    reward = policy["total_reward"]
    low, high = (f"{x:{width}.2f}" for x in reward["ci95"])
    rows.append(
      (
        name,
        f"{reward['mean']:z.2f}",
        f"[{low}, {high}]",
        _mean(policy, "depth"),
        _mean(policy, "normalised"),
      )
    )
  return "\n".join([textwrap.fill(", ".join(head), _WIDTH), "", *aligned(rows)])


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
  """Lines of a table: a name, then numbers; a rule below the first row."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for name, *numbers in rows:
    cells = [name.ljust(widths[0])]
    cells += [x.rjust(w) for x, w in zip(numbers, widths[1:], strict=True)]
    lines.append("  ".join(cells))
  lines.insert(1, "-" * len(lines[0]))
  return lines


def _page(results, facts, examples, pictures, items, item_id, tokens) -> str:
  seeds = ", ".join(map(str, results["seeds"]))
  split = page_lib.text(results["split"])
  return page_lib.document(
    f"{results['agent']} on {results['dataset']}",
    [
      '<p class="soft">Protocol '
      f"<code>{page_lib.text(results['protocol'])}</code>, "
      f"split <code>{split}</code>, "
      f"{results['episodes']:,} sessions for each policy and seed, "
      f"seeds {seeds}.</p>",
      _measured(results),
      "<h2>Results</h2>",
      _results(results),
      _learning(pictures.get("learning_curve"), split),
      "<h2>Semantic space</h2>",
      _semantic(facts, pictures["semantic_space"], items, item_id, tokens),
      "<h2>User simulator</h2>",
      _simulator(results["simulator"], pictures.get("simulator")),
      "<h2>Sessions</h2>",
      _sessions(examples),
    ],
  )


def _learning(picture: bytes | None, split: str) -> str:
  if picture is None:
    return ""
  return "<h2>Learning</h2>" + page_lib.figure(
    picture,
    "Total reward of the agent by iteration beside the losses",
    "Left: mean over the seeds with its 95% interval; thin lines are "
    "single seeds. Dashed: the other policies, whose users are those of "
    f"the {split} split. Right: means over the seeds, "
    "each on a scale of its own.",
  )


def _measured(results) -> str:
  again = {
    "paper": "In the <code>paper</code> protocol an item may be shown again "
    "in the same session (in <code>no_repeat</code> it may not).",
    "no_repeat": "In the <code>no_repeat</code> protocol an item is shown at "
    "most once in a session (in <code>paper</code> it may come again).",
  }
  return (
    "<p>A policy shows slates of items to a simulated user until the user "
    "loses patience. <b>Total reward</b> is the sum of the rewards of such a "
    "session and <b>depth</b> its number of slates. The bounds beside the "
    "trained policy are <code>random</code>; <code>best_constant</code>, one "
    "slate for everybody; and <code>greedy_oracle</code>, at each step the "
    "items that the user most likely likes by the simulator's own "
    "probabilities. <b>Normalised</b> reward is 0 for random and 1 "
    "for the greedy oracle; above 1 is possible where foresight pays. "
    f"{again.get(results['protocol'], '')}</p>"
  )


def _results(results) -> str:
  columns = (
    ("Total reward", "total_reward", "{:.2f}"),
    ("Depth", "depth", "{:.2f}"),
    ("Positive responses", "positive_share", "{:.1%}"),
    ("Normalised", "normalised", "{:z.2f}"),
  )
  head = "".join(f'<th class="number">{x}</th>' for x, _, _ in columns)
  rows = []
  for name, policy in _by_reward(results):
    cells = "".join(
      f'<td class="number">{_interval(policy.get(key), form)}</td>'
      for _, key, form in columns
    )
    kind = ' class="agent"' if name == results["agent"] else ""
    rows.append(f"<tr{kind}><td>{page_lib.text(name)}</td>{cells}</tr>")
  seeds = ""
  per_seed = (
    results["policies"].get(results["agent"], {}).get("total_reward", {})
  )
  if len(per_seed.get("per_seed", ())) > 1:
    listed = ", ".join(f"{x:.2f}" for x in per_seed["per_seed"])
    seeds = f" {results['agent']}'s total reward by seed: {listed}."
  return (
    f'<div class="scroll"><table><thead><tr><th>Policy</th>{head}</tr></thead>'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
    '<p class="soft">In brackets: 95% confidence intervals, over the seeds '
    f"where there are several, else over the sessions.{seeds}</p>"
  )


def _semantic(facts, picture, items, item_id, tokens) -> str:
  levels, vocab_size = facts["levels"], facts["vocab_size"]
  by_level = "".join(
    f'<tr><td>{level + 1}</td><td class="number">{used} of {vocab_size}</td>'
    f'<td class="number">{perplexity:.1f}</td>'
    f'<td class="number">{error:.1%}</td></tr>'
    for level, (used, perplexity, error) in enumerate(
      zip(
        facts["codes_used"],
        facts["perplexity"],
        facts["relative_error"],
        strict=True,
      )
    )
  )
  count, collided = facts["items"], facts["collided_items"]
  return (
    f"<p>Each of the {count:,} items has a semantic id (SID) of {levels} "
    f"tokens with {vocab_size} values each, coarse to fine; there is room for "
    f"{vocab_size**levels:,}. Plain residual k-means gives {collided:,} items "
    f"({collided / max(count, 1):.1%}) a SID that another item also has. With "
    "unique SIDs, which the policy uses, the reconstruction loses "
    f"{facts['relative_error_unique']:.1%} of the features' variance.</p>"
    + page_lib.figure(
      picture,
      "Items in two dimensions by first token, and the use of the codes",
      "Left: the two directions of the features with the most variance. The "
      "largest first-level clusters have a strong colour, a marker and their "
      "token; tints tell the others apart. The genres are those whose share "
      "most exceeds the catalogue's. Right: how many items have each code.",
    )
    + '<div class="scroll"><table><thead><tr><th>Level</th>'
    '<th class="number">Codes used</th><th class="number">Perplexity</th>'
    '<th class="number">Variance lost so far</th></tr></thead>'
    f"<tbody>{by_level}</tbody></table></div>"
    + sid_page.prefixes(
      tokens,
      lambda row: _title(items, item_id[row]),
      [items.genres[i] for i in item_id],
    )
  )


def _simulator(quality, picture) -> str:
  names = (
    ("AUC", "auc"),
    ("AUC within users", "auc_within_users"),
    ("Log loss", "log_loss"),
    ("Calibration error", "calibration_error"),
  )
  head = "".join(f'<th class="number">{label}</th>' for label, _ in names)
  cells = "".join(
    f'<td class="number">{_number(quality.get(key), "{:.3f}")}</td>'
    for _, key in names
  )
  origin = "fitted to logged slates"
  if "source" in quality:
    source = quality["source"]
    origin = (
      f"trained elsewhere, <code>{page_lib.text(source['file'])}</code> "
      f"(SHA-256 <code>{source['sha256'][:16]}</code>)"
    )
  page = f"<p>The simulated users answer by a response model {origin}."
  if "log_loss" not in quality:
    return page + " No slates are logged on which to measure it.</p>"
  page += (
    " An AUC of 0.5 is chance; within users it tells only whether the "
    "model ranks the items of one user, which is what a policy can use.</p>"
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
    f"<tbody><tr>{cells}</tr></tbody></table></div>"
  )
  if picture is not None:
    page += page_lib.figure(
      picture,
      "Log loss, AUC and calibration error by epoch",
      "On the validation slates, but for the training loss, which includes "
      "dropout. Dotted: the epoch that is kept, of the least validation log "
      "loss.",
    )
  return page


def _sessions(examples) -> str:
  intro = (
    "<p>Simulated sessions of the trained policy. What the user liked is "
    "marked with ✓.</p>"
  )
  return intro + "".join(
    _session(number, example)
    for number, example in enumerate(examples, start=1)
  )


def _session(number: int, example) -> str:
  history, steps = example["history"], example["steps"]
  earlier, recent = history[:-_HISTORY], history[-_HISTORY:]
  parts = [
    f'<section class="session"><h3>Session {number}: total reward '
    f"{example['total_reward']:.2f}, depth {example['depth']:g}</h3>",
    f'<p class="step">{_LIKED if history else _NOTHING}</p>',
  ]
  if earlier:
    parts.append(
      page_lib.fold(f"… {len(earlier)} earlier", page_lib.titles(earlier))
    )
  if recent:
    parts.append(page_lib.titles(recent))
  shown = [_step(i, x) for i, x in enumerate(steps, start=1)]
  parts += shown[:_STEPS]
  more = len(shown) - _STEPS
  if more > 0:
    label = f"… {more} more step{'s' if more > 1 else ''}"
    parts.append(page_lib.fold(label, "".join(shown[_STEPS:])))
  return "".join(parts) + "</section>"


def _step(number: int, step) -> str:
  liked = sum(map(bool, step["liked"]))
  return (
    f'<p class="step"><b>Step {number}</b> '
    f'<span class="soft">{liked} of {len(step["liked"])} liked</span></p>'
    + page_lib.titles(step["titles"], step["liked"])
  )


def _interval(measure, form: str) -> str:
  if not measure or measure.get("mean") is None:
    return "–"
  low, high = (form.format(x) for x in measure["ci95"])
  return (
    f'{form.format(measure["mean"])} <span class="ci">[{low}, {high}]</span>'
  )


def _number(value, form: str) -> str:
  return "–" if value is None else form.format(value)


def _mean(policy, name: str) -> str:
  mean = (policy.get(name) or {}).get("mean")
  return "-" if mean is None else f"{mean:z.2f}"


def _by_reward(results):
  return sorted(
    results["policies"].items(), key=lambda x: x[1]["total_reward"]["mean"]
  )


def _title(items: Items, item: int) -> str:
  return items.titles[item] or f"item {items.external_ids[item] or item}"


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
