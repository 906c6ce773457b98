"""Plots of experiments, each of the results.json that one left."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hsrl_jax.report import plots

_MEASURES = {
  "total_reward": "total reward of a session",
  "recall@10": "recall@10 of what was liked next",
}


def compare(results: Mapping[str, Any]) -> Figure:
  """A panel for each protocol and measure, with intervals.

  The measures are the total reward and, where logs were held out, recall@10.
  """
  protocols = results["protocols"]
  first = next(iter(protocols.values()))["entrants"]
  names = sorted(first, key=lambda x: first[x]["total_reward"]["mean"])
  panels = []
  for protocol, found in protocols.items():
    title = f"protocol {protocol}"
    panels.append((title, "total_reward", found["bounds"], found["entrants"]))
    ranked = {
      k: x for k, x in found.get("held_out", {}).items() if x["recall@10"]
    }
    if ranked:
      lists = {k: x for k, x in ranked.items() if k not in names}
      panels.append((f"{title}, held-out logs", "recall@10", lists, ranked))
  figure = Figure(
    figsize=(1.6 + 3.6 * len(panels), 1.4 + 0.3 * len(names)),
    layout="constrained",
  )
  special = {results["reference"]: (plots.RED, "D")}
  grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  for axes, (title, measure, bounds, rows) in zip(grid, panels, strict=True):
    _measured(axes, measure, bounds, rows, names, special)
    axes.set_title(title, fontsize=10.5, loc="left", pad=36)
  return figure


def world(results: Mapping[str, Any]) -> Figure:
  """Total reward of all that were trained, between the bounds."""
  rows = results["rows"]
  names = sorted(
    (name for name, row in rows.items() if row["kind"] != "bound"),
    key=lambda name: rows[name]["total_reward"]["mean"],
  )
  kinds = {
    "method": (plots.RED, "D"),
    "twin": (plots.RED, "o"),
    "rule": (plots.COLOURS[1], "s"),
    "variant": (plots.GREY, "o"),
  }
  figure = Figure(figsize=(6, 1.4 + 0.3 * len(names)), layout="constrained")
  axes = figure.add_subplot()
  _measured(
    axes,
    "total_reward",
    {name: row for name, row in rows.items() if row["kind"] == "bound"},
    rows,
    names,
    {x: kinds[rows[x]["kind"]] for x in names if rows[x]["kind"] in kinds},
  )
  axes.set_title(
    results["world"].replace("_", " "), fontsize=10.5, loc="left", pad=36
  )
  return figure


def _measured(
  axes: Axes,
  measure: str,
  bounds: Mapping[str, Any],
  rows: Mapping[str, Any],
  names: Sequence[str],
  special: Mapping[str, tuple[str, str]],
) -> None:
  """A measure with its intervals, a line each, and bounds as dashed lines."""
  plots.style(axes, "", _MEASURES[measure])
  ordered = sorted(bounds, key=lambda x: bounds[x][measure]["mean"])
  for i, name in enumerate(ordered):
    value = bounds[name][measure]["mean"]
    axes.axvline(value, color=plots.GREY, linewidth=1, linestyle="--")
    axes.annotate(
      name.replace("_", " "),
      (value, 1),
      xycoords=("data", "axes fraction"),
      xytext=(0, 3 + 10 * (i % 3)),
      textcoords="offset points",
      ha="center",
      fontsize=7.5,
      color=plots.GREY,
    )
  for place, name in enumerate(names):
    if name not in rows:
      continue
    own = rows[name][measure]
    colour, marker = special.get(name, (plots.BLUE, "o"))
    axes.plot(own["ci95"], [place] * 2, color=colour, linewidth=1.8)
    axes.plot(own["mean"], place, color=colour, marker=marker, markersize=6)
  axes.set_yticks(range(len(names)), [x.replace("_", " ") for x in names])
  axes.margins(x=0.08)
  axes.set_ylim(-0.6, len(names) - 0.4)


def tune(results: Mapping[str, Any]) -> Figure:
  """The reward of each trial, a line for each agent."""
  trials = results["trials"]
  figure = Figure(figsize=(6, 1.4 + 0.35 * len(trials)), layout="constrained")
  axes = figure.add_subplot()
  for place, rows in enumerate(trials.values()):
    rewards = [x["total_reward"]["mean"] for x in rows]
    axes.plot(rewards, [place] * len(rewards), "o", color=plots.BLUE, alpha=0.5)
    axes.plot(max(rewards), place, "D", color=plots.RED)
  axes.set_yticks(range(len(trials)), list(trials))
  axes.set_ylim(-0.6, len(trials) - 0.4)
  plots.style(axes, results["world"].replace("_", " "), "total reward, val")
  return figure


def ab(results: Mapping[str, Any]) -> Figure:
  """The lifts with their intervals, paired and not."""
  figure = Figure(figsize=(8, 3.6), layout="constrained")
  axes = figure.add_subplot()
  lifts = {k: v for k, v in results["measures"].items() if v["lift"]}
  for place, row in enumerate(lifts.values()):
    lift = row["lift"]
    for key, shift, colour, marker in (
      ("ci95", -0.12, plots.BLUE, "o"),
      ("ci95_unpaired", 0.12, plots.GREY, "s"),
    ):
      ends = np.abs(np.array(lift[key]) - lift["value"])
      axes.errorbar(
        100 * lift["value"],
        place + shift,
        xerr=100 * ends[:, None],
        fmt=marker,
        color=colour,
        capsize=3,
        markersize=5,
        label=None
        if place
        else {"ci95": "same users and luck"}.get(key, "two groups of users"),
      )
    size = row["sample_size"]
    axes.annotate(
      f"{100 * lift['value']:+.1f} %" + (f"\n{size:,} per arm" if size else ""),
      (1.01, place),
      xycoords=("axes fraction", "data"),
      va="center",
      fontsize=8,
    )
  axes.axvline(0, color="black", linewidth=0.8)
  axes.set_yticks(range(len(lifts)), [x.replace("_", " ") for x in lifts])
  axes.set_ylim(len(lifts) - 0.5, -0.5)
  plots.style(
    axes,
    f"{results['treatment']} against {results['control']}, simulated users, "
    f"{results['dataset']}, {results['protocol']}",
    "lift, %, with its 95 % confidence interval",
  )
  plots.legend_below(figure, 2)
  return figure
