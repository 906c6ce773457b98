"""Stage `report`: what a run found, as one page without outside resources."""

import base64
import html
import json
import pathlib
import textwrap
from typing import Any
from zipfile import BadZipFile

import numpy as np

from hsrl_jax.data.source import Items
from hsrl_jax.errors import InputError
from hsrl_jax.training import metrics, plots
from hsrl_jax.training import workdir as workdir_lib

_AGENT = "hsrl"
_WIDTH = 80  # Columns of the terminal's table.
_PREFIXES = 6
_TITLES = 6  # Of a prefix.
_HISTORY = 8  # Latest titles shown at once; the others fold.
_STEPS = 3  # First steps shown at once; the others fold.

_CSS = """
:root { color-scheme: light dark; --text: #1d1f21; --page: #fdfdfc;
  --soft: #62666b; --line: #d9dadb; --panel: #f3f4f4; --accent: #00598c;
  --liked: #dcecf7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e4e5; --page: #17191b; --soft: #a3a8ad; --line: #3a3e42;
    --panel: #212427; --accent: #7cc0ea; --liked: #173f58; }
  img { filter: brightness(.9); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem;
  color: var(--text); background: var(--page);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p, dl { max-width: 46rem; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: .9em; white-space: nowrap; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .92rem; margin: .8rem 0; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; white-space: nowrap; padding-left: .9rem; }
.agent td { font-weight: 700; background: var(--liked); }
.agent td:first-child { box-shadow: inset 4px 0 var(--accent); }
td:first-child, th:first-child { padding-left: .7rem; }
.ci { color: var(--soft); font-weight: 400; font-size: .85em; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; min-width: 40rem; height: auto;
  padding: .5rem; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
figcaption { margin-top: .4rem; max-width: 46rem; }
.session { background: var(--panel); border-radius: 8px; margin: 1rem 0;
  padding: .1rem 1rem 1rem; }
.step { margin: .8rem 0 0; }
ul.films { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem;
  margin: .25rem 0; padding: 0; font-size: .86rem; line-height: 1.35; }
ul.films li { border: 1px solid var(--line); border-radius: 5px;
  padding: .12rem .5rem; color: var(--soft); overflow-wrap: anywhere; }
ul.films li.liked { background: var(--liked); border-color: var(--accent);
  color: var(--text); font-weight: 600; }
summary { cursor: pointer; color: var(--accent); margin-top: .6rem;
  font-size: .92rem; }
"""


def write(workdir: pathlib.Path, items: Items) -> pathlib.Path:
  """Writes `report/` of a run whose other stages are complete.

  Args:
    workdir: of the run.
    items: the catalogue.

  Returns:
    The path of the page; its pictures also lie beside it.

  Raises:
    InputError: a file of another stage is missing or unreadable.
  """
  folder = workdir / "report"
  results = _json(workdir / "results.json")
  examples = _json(folder / "examples.json")
  facts = _json(workdir / "sids" / "report.json")
  fit = _read(metrics.read, workdir / "simulator")
  training = _read(metrics.read, workdir / "policy")
  item_id, tokens = _read(_sids, workdir / "sids" / "sids.npz")
  genres = [items.genres[i] for i in item_id]
  others = {
    name: policy["total_reward"]["mean"]
    for name, policy in results["policies"].items()
    if name != _AGENT
  }
  figures = {
    "learning_curve": plots.learning_curve(
      [x for x in training if "eval" in x],
      [x for x in training if "eval" not in x],
      others,
    ),
    "semantic_space": plots.semantic_space(
      items.features[item_id], tokens, genres, facts["vocab_size"]
    ),
    "simulator": plots.simulator(fit),
  }
  pictures = {name: plots.png(figure) for name, figure in figures.items()}
  page = _page(results, facts, examples, pictures, items, item_id, tokens)
  for name, picture in pictures.items():
    workdir_lib.write_atomic(folder / f"{name}.png", picture)
  path = folder / "report.html"
  workdir_lib.write_atomic(path, page)
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
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for name, *numbers in rows:
    cells = [name.ljust(widths[0])]
    cells += [x.rjust(w) for x, w in zip(numbers, widths[1:], strict=True)]
    lines.append("  ".join(cells))
  lines.insert(1, "-" * len(lines[0]))
  return "\n".join([textwrap.fill(", ".join(head), _WIDTH), "", *lines])


def _page(results, facts, examples, pictures, items, item_id, tokens) -> str:
  seeds = ", ".join(map(str, results["seeds"]))
  title = f"HSRL on {_text(results['dataset'])}"
  return "\n".join(
    [
      "<!DOCTYPE html>",
      '<html lang="en"><head><meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<title>{title}</title><style>{_CSS}</style></head><body><main>",
      f"<h1>{title}</h1>",
      f'<p class="soft">Protocol <code>{_text(results["protocol"])}</code>, '
      f"split <code>{_text(results['split'])}</code>, "
      f"{results['episodes']:,} sessions for each policy and seed, "
      f"seeds {seeds}.</p>",
      _measured(results),
      "<h2>Results</h2>",
      _results(results),
      "<h2>Learning</h2>",
      _figure(
        pictures["learning_curve"],
        "Total reward of HSRL by iteration beside the losses",
        "Left: mean over the seeds with its 95% interval; thin lines are "
        "single seeds. Dashed: the other policies, whose users are those of "
        f"the {_text(results['split'])} split. Right: means over the seeds, "
        "each on a scale of its own.",
      ),
      "<h2>Semantic space</h2>",
      _semantic(facts, pictures["semantic_space"], items, item_id, tokens),
      "<h2>User simulator</h2>",
      _simulator(results["simulator"], pictures["simulator"]),
      "<h2>Sessions</h2>",
      _sessions(examples),
      "</main></body></html>\n",
    ]
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
    kind = ' class="agent"' if name == _AGENT else ""
    rows.append(f"<tr{kind}><td>{_text(name)}</td>{cells}</tr>")
  seeds = ""
  per_seed = results["policies"].get(_AGENT, {}).get("total_reward", {})
  if len(per_seed.get("per_seed", ())) > 1:
    listed = ", ".join(f"{x:.2f}" for x in per_seed["per_seed"])
    seeds = f" HSRL's total reward by seed: {listed}."
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
    + _figure(
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
    + _prefixes(items, item_id, tokens)
  )


def _prefixes(items, item_id, tokens) -> str:
  """Items that share a prefix, from the largest first-level clusters."""
  length = min(2, tokens.shape[1] - 1)
  if not length:
    return ""  # SIDs are unique: no two items share their only token.
  names, genre_table = plots.genre_table([items.genres[i] for i in item_id])
  rows, met = [], set()
  for token in np.argsort(-np.bincount(tokens[:, 0]), kind="stable"):
    inside = np.flatnonzero(tokens[:, 0] == token)
    if len(rows) == _PREFIXES or not len(inside):
      break
    prefixes, group, sizes = np.unique(
      tokens[inside, :length], axis=0, return_inverse=True, return_counts=True
    )
    largest = int(sizes.argmax())
    members = inside[group.ravel() == largest]
    if len(members) < 2:
      continue
    prefix = " · ".join(map(str, prefixes[largest]))
    typical = plots.typical_genres(names, genre_table, members)
    genres = ", ".join(name for name, _ in typical)
    if genres and genres in met:
      continue  # Six kinds tell more than six times drama.
    met.add(genres)
    films = "".join(
      f"<li>{_text(_title(items, item_id[i]))}</li>" for i in members[:_TITLES]
    )
    rows.append(
      f"<tr><td><code>{prefix} · *</code></td>"
      f'<td class="number">{len(members)}</td>'
      f"<td>{_text(genres)}</td>"
      f'<td><ul class="films">{films}</ul></td></tr>'
    )
  few = "the first token" if length == 1 else f"the first {length} tokens"
  return (
    f"<h3>Items that share {few}</h3>"
    '<p class="soft">The most common prefix in the largest first-level '
    f"clusters, each kind of genres once, with up to {_TITLES} items.</p>"
    '<div class="scroll"><table><thead><tr><th>SID</th>'
    '<th class="number">Items</th><th>Typical genres</th><th>Some of them</th>'
    f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
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
  return (
    "<p>The simulated users answer by a response model fitted to logged "
    "slates. An AUC of 0.5 is chance; within users it tells only whether the "
    "model ranks the items of one user, which is what a policy can use.</p>"
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
    f"<tbody><tr>{cells}</tr></tbody></table></div>"
    + _figure(
      picture,
      "Log loss, AUC and calibration error by epoch",
      "On the validation slates, but for the training loss, which includes "
      "dropout. Dotted: the epoch that is kept, of the least validation log "
      "loss.",
    )
  )


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
    '<p class="step">The user liked before, oldest first:</p>',
  ]
  if earlier:
    parts.append(_fold(f"… {len(earlier)} earlier", _films(earlier)))
  parts.append(_films(recent))
  shown = [_step(i, x) for i, x in enumerate(steps, start=1)]
  parts += shown[:_STEPS]
  more = len(shown) - _STEPS
  if more > 0:
    label = f"… {more} more step{'s' if more > 1 else ''}"
    parts.append(_fold(label, "".join(shown[_STEPS:])))
  return "".join(parts) + "</section>"


def _step(number: int, step) -> str:
  liked = sum(map(bool, step["liked"]))
  return (
    f'<p class="step"><b>Step {number}</b> '
    f'<span class="soft">{liked} of {len(step["liked"])} liked</span></p>'
    + _films(step["titles"], step["liked"])
  )


def _films(titles, liked=None) -> str:
  marks = [False] * len(titles) if liked is None else liked
  films = "".join(
    f'<li class="liked"><span role="img" aria-label="liked">✓</span> '
    f"{_text(title)}</li>"
    if mark
    else f"<li>{_text(title)}</li>"
    for title, mark in zip(titles, marks, strict=True)
  )
  return f'<ul class="films">{films}</ul>'


def _fold(summary: str, body: str) -> str:
  return f"<details><summary>{summary}</summary>{body}</details>"


def _figure(picture: bytes, alt: str, caption: str) -> str:
  data = base64.b64encode(picture).decode()
  return (
    '<figure><div class="scroll">'
    f'<img alt="{alt}" src="data:image/png;base64,{data}"></div>'
    f"<figcaption>{caption}</figcaption></figure>"
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


def _text(value) -> str:
  return html.escape(str(value))


def _sids(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  with np.load(path) as file:
    return file["item_id"], file["tokens"]


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
