"""All worlds of a folder with results in one: interquartile means.

Of all runs, seeds and worlds alike, the middle half by what they earn on the
way from random slates to the best bound; with intervals by a bootstrap that
draws runs within each world, and profiles of all runs. Agarwal et al., "Deep
reinforcement learning at the edge of the statistical precipice", 2021.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from hsrl_jax.evaluation import statistics
from hsrl_jax.report import plots, tables

RULE = "best rule"
Runs = dict[str, list[np.ndarray]]


def runs(
  worlds: Mapping[str, Mapping[str, Any]],
  rules: Mapping[str, Mapping[str, Any]],
) -> Runs:
  """Name to normalised rewards, of the seeds of each world.

  Args:
    worlds: name to results of the experiment `world`.
    rules: the rules of each. Of them the one that earned most there counts, of
      test users: a favour to the rules.

  Returns:
    Of the rows that every world has, bounds aside.
  """
  each = [x["rows"] for x in worlds.values()]
  names = [
    name
    for name, row in each[0].items()
    if row["kind"] != "bound" and all(name in rows for rows in each)
  ]
  found = {
    name: [np.array(rows[name]["normalised"]["per_seed"]) for rows in each]
    for name in names
  }
  found[RULE] = [
    max(
      (
        np.array(row["normalised"]["per_seed"])
        for row in rules[world]["rows"].values()
        if row["kind"] == "rule"
      ),
      key=np.mean,
    )
    for world in worlds
  ]
  return found


def interquartile_mean(of_worlds: list[np.ndarray]) -> float:
  """The mean of the middle half of all runs."""
  return float(stats.trim_mean(np.concatenate(of_worlds), 0.25))


def measured(of_worlds: list[np.ndarray]) -> dict[str, Any]:
  """The interquartile mean, {"mean", "ci95"}, resampled within each world.

  Without an interval where worlds have a single run.
  """
  mean, rng = interquartile_mean(of_worlds), np.random.default_rng(0)
  if max(map(len, of_worlds)) < 2:
    return {"mean": mean, "ci95": None}
  drawn = [
    interquartile_mean([rng.choice(x, len(x)) for x in of_worlds])
    for _ in range(statistics.RESAMPLES)
  ]
  return {"mean": mean, "ci95": np.quantile(drawn, (0.025, 0.975)).tolist()}


def profile(of_worlds: list[np.ndarray], above: np.ndarray) -> np.ndarray:
  """Share of runs that earn more than each of `above`; worlds count alike."""
  return np.mean([(x[None] > above[:, None]).mean(1) for x in of_worlds], 0)


def table(found: Runs) -> str:
  """Interquartile mean, mean and least mean of a world; the least first."""
  rows = {name: measured(x) for name, x in found.items()}
  lines = [("", "IQM", "[95% CI]", "mean", "worst world")]
  for name in sorted(rows, key=lambda x: rows[x]["mean"]):
    means = [x.mean() for x in found[name]]
    others = (f"{x:z.2f}" for x in (np.mean(means), min(means)))
    lines.append((name, *tables.cells(rows[name]), *others))
  return tables.aligned(lines)


def plot(found: Runs, reference: str) -> Figure:
  """Profiles of all rows; the reference, the rules and the best are named."""
  above = np.linspace(-0.1, 1.05, 116)
  ranked = sorted(found, key=lambda x: -interquartile_mean(found[x]))
  shown = [reference, RULE]
  shown += [x for x in ranked if x not in shown][: len(plots.COLOURS) - 3]
  figure = Figure(figsize=(6, 3.6), layout="constrained")
  axes = figure.add_subplot()
  others = (x for x in plots.COLOURS if x != plots.RED)
  colours = dict(zip(shown, (plots.RED, *others), strict=False))
  for name in reversed(ranked):
    axes.plot(
      above,
      profile(found[name], above),
      color=colours.get(name, "#c9c9c9"),
      linewidth=1.8 if name in shown else 1.0,
      label=name.replace("_", " ") if name in shown else None,
    )
  plots.style(axes, "", "normalised reward: 0 random, 1 the best bound")
  axes.set_ylabel("share of runs above it", fontsize=9)
  plots.legend_below(figure, 4)
  return figure
