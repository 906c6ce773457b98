"""The report's pictures, by matplotlib's objects and without global state."""

import io
import itertools
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hsrl_jax.evaluation import sid_quality

# Okabe and Ito: distinguishable for colour-blind readers.
BLUE, _ORANGE, _GREEN = "#0072B2", "#E69F00", "#009E73"
RED, _PURPLE, _SKY, _BLACK = "#D55E00", "#CC79A7", "#56B4E9", "#000000"
COLOURS = (BLUE, _ORANGE, _GREEN, RED, _PURPLE, _SKY, _BLACK)
_TINTS = ("#b3c9da", "#e6d0a4", "#aed3c4", "#dfbfae", "#d9c1d0", "#c9c9c9")
MARKERS = "os^DvPX"  # One for each colour: colour alone is not enough.
_DASHES = ("-", "--", "-.", ":")
GREY = "#555555"
_LOSSES = ("loss", "actor_loss", "critic_loss", "behaviour_loss", "entropy")


def png(figure: Figure) -> bytes:
  """The figure as a PNG; equal figures give equal bytes."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
  return buffer.getvalue()


def genre_table(genres: list[str]) -> tuple[list[str], np.ndarray]:
  """Names of the genres, [G], and which items have each, bool [N, G]."""
  split = [set(filter(None, row.split("|"))) for row in genres]
  names = sorted(set().union(*split))
  rows = [[name in row for name in names] for row in split]
  return names, np.array(rows, bool).reshape(len(genres), len(names))


def typical_genres(
  names: list[str], table: np.ndarray, rows: np.ndarray, count: int = 2
) -> list[tuple[str, float]]:
  """Genres whose share among `rows` most exceeds that in the catalogue.

  Args:
    names: [G].
    table: bool [N, G].
    rows: indices of the items described.
    count: most genres returned.

  Returns:
    Names and shares among `rows`, the most typical first.
  """
  share = table[rows].mean(0)
  excess = share - table.mean(0)
  order = np.argsort(-excess, kind="stable")[:count]
  return [(names[i], float(share[i])) for i in order if excess[i] > 0]


def pca(
  x: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """First two principal components, [N, 2], and their share of variance.

  Args:
    x: [N, D].
    weight: [N], of the rows; all alike by default.
  """
  x = np.asarray(x, np.float64)
  x = x - np.average(x, axis=0, weights=weight)
  if x.shape[1] < 2:
    x = np.pad(x, ((0, 0), (0, 1)))
  weighted = x if weight is None else x * weight[:, None]
  variance, axes = np.linalg.eigh(weighted.T @ x)
  axes = axes[:, :-3:-1]
  # An eigenvector's sign is arbitrary; fix it, so that reruns look alike.
  largest = axes[np.abs(axes).argmax(0), [0, 1]]
  axes = axes * np.where(largest < 0, -1.0, 1.0)
  return x @ axes, variance[:-3:-1] / max(variance.sum(), 1e-12)


def learning_curve(
  agent: str,
  curve: list[dict[str, Any]],
  training: list[dict[str, Any]],
  bounds: dict[str, float],
) -> Figure:
  """Total reward of the evaluations, and the losses.

  Args:
    agent: name of the trained agent, for the curve's label.
    curve: lines of metrics.jsonl with `eval`.
    training: those without.
    bounds: other policies' total reward, by name.
  """
  shown = [x for x in _LOSSES if any(x in line for line in training)]
  # Zeros come before the first gradient step, while the buffer is filled.
  training = list(
    itertools.dropwhile(lambda x: not any(map(x.get, shown)), training)
  )
  figure = Figure(figsize=(10, 5), layout="constrained")
  grid = figure.add_gridspec(max(len(shown), 1), 2, width_ratios=(3, 2))
  axes = figure.add_subplot(grid[:, 0])
  style(axes, "Total reward on the validation users", "iteration")
  _draw_curve(axes, agent, curve)
  _draw_bounds(axes, bounds)
  first = None
  for row, name in enumerate(shown):
    small = figure.add_subplot(grid[row, 1], sharex=first)
    first = first or small
    last = row == len(shown) - 1
    style(small, "", "iteration" if last else "")
    small.tick_params(labelbottom=last)
    small.locator_params(axis="y", nbins=3)
    lines = [x for x in training if x.get(name) is not None]
    small.plot(
      [x["step"] for x in lines],
      [x[name] for x in lines],
      color=BLUE,
      linewidth=1.2,
      marker="o" if len(lines) == 1 else None,
    )
    small.set_title(
      name.replace("_", " "), fontsize=9, loc="left", pad=2, color=GREY
    )
  return figure


def semantic_space(
  features: np.ndarray, tokens: np.ndarray, genres: list[str], vocab_size: int
) -> Figure:
  """The items by their first token, and how much each code is used.

  Args:
    features: [N, D].
    tokens: [N, L].
    genres: [N].
    vocab_size: V.
  """
  figure = Figure(figsize=(10, 6), layout="constrained")
  grid = figure.add_gridspec(
    2, 2, width_ratios=(3, 2), height_ratios=(3, 2), hspace=0.06
  )
  axes = figure.add_subplot(grid[:, 0])
  points, share = pca(features)
  _style_map(axes, "Items, coloured by their first token", share)
  first = tokens[:, 0]
  marked = _spread_clusters(points, first)
  names, table = genre_table(genres)
  handles = []
  for token, style in _draw_clusters(axes, points, first, marked):
    rows = np.flatnonzero(first == token)
    typical = typical_genres(names, table, rows)
    text = ", ".join(f"{name} {part:.0%}" for name, part in typical)
    text = f"{token}: {text or 'no typical genre'} ({len(rows)} items)"
    handles.append(Line2D([], [], linestyle="", label=text, **style))
  _draw_usage(figure.add_subplot(grid[0, 1]), tokens, vocab_size)

  axes = figure.add_subplot(grid[1, 1])
  axes.axis("off")
  legend = axes.legend(
    handles=handles,
    loc="upper left",
    borderaxespad=0,
    frameon=False,
    fontsize=8,
    handletextpad=0.2,
    title="First token: typical genres",
    title_fontsize=9,
    alignment="left",
  )
  for text in legend.get_texts():
    text.set_parse_math(False)  # A genre may have a dollar sign.
  return figure


def sid_space(codebooks: np.ndarray, tokens: np.ndarray) -> Figure:
  """Map of the first two levels, use of the codes, number of next tokens.

  Args:
    codebooks: float32 [L, V, D].
    tokens: int [N, L].
  """
  levels, vocab_size, _ = codebooks.shape
  figure = Figure(figsize=(10, 6), layout="constrained")
  grid = figure.add_gridspec(2, 2, width_ratios=(3, 2), hspace=0.06)
  axes = figure.add_subplot(grid[:, 0])
  length = min(2, levels)
  number = np.ravel_multi_index(tokens[:, :length].T, (vocab_size,) * length)
  number, count = np.unique(number, return_counts=True)
  prefix = np.stack(np.unravel_index(number, (vocab_size,) * length), 1)
  centres = codebooks[np.arange(length), prefix].sum(1)
  points, share = pca(centres, count)
  _style_map(axes, "Prefixes, coloured by their first token", share)
  usual = np.clip(12_000 / len(points), 3, 60)
  _draw_clusters(
    axes,
    points,
    prefix[:, 0],
    _spread_clusters(points, prefix[:, 0], count),
    size=np.clip(usual * count / count.mean(), 2, 200),
  )

  _draw_usage(figure.add_subplot(grid[0, 1]), tokens, vocab_size)

  axes = figure.add_subplot(grid[1, 1])
  style(axes, "Tokens that can follow a prefix", "prefix, most choices first")
  for depth, counts in enumerate(sid_quality.followers(tokens, vocab_size)):
    shown = np.sort(counts)[::-1]
    if len(shown) == 1:
      shown = np.repeat(shown, 2)
    label = f"after {depth} token{'' if depth == 1 else 's'}"
    place = np.linspace(0, 1, len(shown))
    axes.plot(place, shown, label=label, **_line(depth))
  axes.xaxis.set_major_formatter("{x:.0%}")
  # Room above the root's line for the legend.
  axes.set_ylim(0, 1.15 * axes.get_ylim()[1] + 0.05 * vocab_size * levels)
  axes.legend(frameon=False, fontsize=8, loc="upper right")
  return figure


def simulator(lines: list[dict[str, Any]]) -> Figure:
  """Quality of the user response model by epoch; `lines` of metrics.jsonl."""
  figure = Figure(figsize=(10, 3), layout="constrained")
  best = min(lines, key=lambda x: x["log_loss"])["epoch"]
  panels = (
    ("Log loss", {"train_loss": "training", "log_loss": "validation"}),
    ("AUC", {"auc": "all", "auc_within_users": "within users"}),
    ("Calibration error", {"calibration_error": "validation"}),
  )
  for axes, (title, series) in zip(
    figure.subplots(1, len(panels)), panels, strict=True
  ):
    style(axes, title, "epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    for i, (name, label) in enumerate(series.items()):
      found = [(x["epoch"], x[name]) for x in lines if x.get(name) is not None]
      how = {"marker": MARKERS[i], "markersize": 4, "label": label}
      axes.plot(*zip(*found, strict=True), **how, **_line(i))
    axes.axvline(best, color=GREY, linewidth=0.9, linestyle=":", label="kept")
    axes.legend(frameon=False, fontsize=8)
  return figure


def next_item(
  losses: list[dict[str, Any]],
  validated: list[dict[str, Any]],
  seeds: list[int],
) -> Figure:
  """Training on the next item: loss, and validation by seed.

  Args:
    losses: lines of metrics.jsonl with the loss.
    validated: those with measures of the validation split.
    seeds: of the run.
  """
  figure = Figure(figsize=(10, 3.5), layout="constrained")
  left, right = figure.subplots(1, 2)
  style(left, "Training loss", "update")
  style(right, "NDCG@10 on the validation split", "update")
  steps = [x["step"] for x in losses]
  left.plot(steps, [x["loss"] for x in losses], color=COLOURS[0])
  kept = validated[-1]["eval"]["kept"]
  for i, seed in enumerate(seeds):
    how = {"marker": MARKERS[i % len(MARKERS)]} | _line(i)
    steps = [x["step"] for x in validated]
    ndcg = [x["eval"]["ndcg@10"]["per_seed"][i] for x in validated]
    right.plot(steps, ndcg, markersize=3, label=f"seed {seed}", **how)
    right.plot(kept["step"][i], kept["measure"][i], markersize=9, **how)
  for axes in (left, right):
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(y=0.08)
  right.legend(frameon=False, fontsize=8, ncols=1 + len(seeds) // 6)
  return figure


def style(axes, title: str, xlabel: str) -> None:
  """Sets the look of all plots: title, label, light grid and no box."""
  axes.set_title(title, fontsize=10.5, loc="left")
  axes.set_xlabel(xlabel, fontsize=9)
  axes.tick_params(labelsize=8, color=GREY)
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(color="#e4e4e4", linewidth=0.6)
  axes.set_axisbelow(True)


def _line(number: int) -> dict[str, str]:
  """Colour and dashes of a line of several."""
  return {
    "color": COLOURS[number % len(COLOURS)],
    "linestyle": _DASHES[number % len(_DASHES)],
  }


def level(axes, y: float, name: str, x: float = 1) -> None:
  """A dashed line at a height, with its name at an end: 0 left, 1 right."""
  axes.axhline(y, color=GREY, linewidth=0.8, linestyle="--")
  how = {"xycoords": ("axes fraction", "data"), "va": "bottom"}
  how |= {"ha": "right" if x else "left", "fontsize": 8, "color": GREY}
  axes.annotate(name, (x, y), **how)


def legend_below(figure: Figure, columns: int, handles=None) -> None:
  """The legend of all axes, or of the handles, below the panels."""
  how = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
  figure.legend(handles=handles, ncols=columns, **how)


def _draw_curve(axes, agent: str, curve: list[dict[str, Any]]) -> None:
  if not curve:
    return
  reward = [x["eval"]["total_reward"] for x in curve]
  steps = [x["step"] for x in curve]
  axes.set_xlim(0, 1.04 * max(steps))
  mean = np.array([x["mean"] for x in reward])
  low, high = np.array([x["ci95"] for x in reward]).T
  seeds = min(len(x["per_seed"]) for x in reward)
  if len(steps) == 1:
    axes.errorbar(
      steps, mean, [mean - low, high - mean], color=BLUE, fmt="o", capsize=4
    )
  else:
    if seeds > 1:
      each = np.array([x["per_seed"][:seeds] for x in reward])
      axes.plot(steps, each, color=BLUE, linewidth=0.6, alpha=0.6)
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(steps, mean, color=BLUE, linewidth=2, marker="o", markersize=3.5)
  axes.annotate(
    agent,
    (steps[-1], mean[-1]),
    xytext=(-4, -16),
    textcoords="offset points",
    ha="right",
    color=BLUE,
    fontweight="bold",
    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
    parse_math=False,
  )


def _draw_bounds(axes, bounds: dict[str, float]) -> None:
  """Dashed lines, labelled right of the axes, no label on another."""
  for value in bounds.values():
    axes.axhline(value, color=GREY, linewidth=1, linestyle="--")
  axes.margins(y=0.08)
  low, high = axes.get_ylim()
  axes.set_ylim(low, high)
  gap = 0.075 * (high - low)  # Height of a label of two lines.
  ordered = sorted(bounds.items(), key=lambda x: x[1])
  places = [value for _, value in ordered]
  for i in range(1, len(places)):
    places[i] = max(places[i], places[i - 1] + gap)
  ceiling = high
  for i in reversed(range(len(places))):
    places[i] = min(places[i], ceiling)
    ceiling = places[i] - gap
  for (name, value), place in zip(ordered, places, strict=True):
    axes.annotate(
      f"{name.replace('_', ' ')}\n{value:.2f}",
      (1, value),
      xycoords=("axes fraction", "data"),
      xytext=(1.02, place),
      textcoords=("axes fraction", "data"),
      va="center",
      fontsize=8,
      color=GREY,
      annotation_clip=False,
      parse_math=False,
    )


def _style_map(axes, title: str, share: np.ndarray) -> None:
  style(axes, title, "")
  axes.grid(False)
  axes.set_xlabel(f"principal component 1 ({share[0]:.0%} of variance)")
  axes.set_ylabel(f"principal component 2 ({share[1]:.0%})")
  axes.tick_params(labelbottom=False, labelleft=False, length=0)


def _draw_clusters(
  axes,
  points: np.ndarray,
  first: np.ndarray,
  marked: list[int],
  size: np.ndarray | None = None,
) -> list[tuple[int, dict[str, Any]]]:
  """Points by first token; the style of each marked token."""
  rest = ~np.isin(first, marked)
  area = 5 if size is None else size[rest]
  tints = [_TINTS[t % len(_TINTS)] for t in first[rest]]
  axes.scatter(*points[rest].T, s=area, linewidths=0, c=tints)
  styles = []
  for token, colour, marker in zip(marked, COLOURS, MARKERS, strict=False):
    rows, style = first == token, {"color": colour, "marker": marker}
    area = 9 if size is None else size[rows]
    axes.scatter(*points[rows].T, s=area, linewidths=0, alpha=0.75, **style)
    styles.append((token, style))
  for token, style in styles:
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.9}
    how = {"ha": "center", "va": "center", "fontsize": 9, "fontweight": "bold"}
    middle = np.median(points[first == token], axis=0)
    axes.annotate(
      str(token), middle, bbox=box | {"edgecolor": style["color"]}, **how
    )
  return styles


def _draw_usage(axes, tokens: np.ndarray, vocab_size: int) -> None:
  style(axes, "Items per code", "code, most used first")
  for level in range(tokens.shape[1]):
    count = np.bincount(tokens[:, level], minlength=vocab_size)
    place, label = np.arange(1, len(count) + 1), f"level {level + 1}"
    axes.plot(place, np.sort(count)[::-1], label=label, **_line(level))
  dots = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (1, 3))}
  axes.axhline(len(tokens) / vocab_size, label="all alike", **dots)
  axes.set_ylim(bottom=0)
  axes.legend(frameon=False, fontsize=8)


def _spread_clusters(
  points: np.ndarray, first: np.ndarray, weight: np.ndarray | None = None
) -> list[int]:
  """The largest clusters whose labels would not lie on each other."""
  extent = np.maximum(np.ptp(points, axis=0), 1e-12)
  count = np.bincount(first, weight)
  chosen, places = [], []
  for token in np.argsort(-count, kind="stable"):
    if not count[token] or len(chosen) == len(COLOURS):
      break
    place = np.median(points[first == token], axis=0) / extent
    if all(np.abs(place - x).max() > 0.08 for x in places):
      chosen.append(int(token))
      places.append(place)
  return chosen
