"""Plots of studies, each of the results.json that one left."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hsrl_jax.report import plots
from hsrl_jax.studies.growing import LABELS

_ESTIMATORS = {
  "ips": ("#009E73", "^", "IPS"),
  "snips": ("#E69F00", "s", "SNIPS"),
  "dr": ("#0072B2", "o", "doubly robust"),
}


def changing_catalogue(results: Mapping[str, Any]) -> Figure:
  """A panel for each share: reward by iterations since the change."""
  shares = sorted({row["share"] for row in results["rows"]})
  drawing = Figure(figsize=(3.2 * len(shares), 3.8), layout="constrained")
  panels = drawing.subplots(1, len(shares), sharey=True, squeeze=False)[0]
  first = results["rows"][0]["after"][1]["step"]
  for axes, share in zip(panels, shares, strict=True):
    title = f"{share} % replaced" if share else "Control: no change"
    plots.style(axes, title, "iterations since the change")
    axes.set_xscale("symlog", base=2, linthresh=first)
    axes.axvline(0, color=plots.GREY, linewidth=0.9)
    rows = [row for row in results["rows"] if row["share"] == share]
    for i, row in enumerate(rows):
      style = {"color": plots.COLOURS[i], "marker": plots.MARKERS[i]}
      thin = {"color": plots.COLOURS[i], "linewidth": 0.8}
      y = [x["normalised"] for x in (row["before"], *row["after"])]
      x = [-first, *(x["step"] for x in row["after"])]
      mean = np.array([v["mean"] for v in y], float)  # None becomes NaN.
      low, high = np.array([v["ci95"] for v in y], float).T
      band = {"color": plots.COLOURS[i], "alpha": 0.15, "linewidth": 0}
      axes.fill_between(x[1:], low[1:], high[1:], **band)
      axes.plot(x[:2], mean[:2], **thin, linestyle=":")
      label = LABELS[row["policy"]]
      axes.plot(x[1:], mean[1:], markersize=4, label=label, **style)
      ends = [[mean[0] - low[0]], [high[0] - mean[0]]]
      hollow = style | {"markersize": 5, "markerfacecolor": "white"}
      axes.errorbar(x[:1], mean[:1], ends, capsize=2, **hollow)
      axes.hlines(mean[1], 0, x[-1], **thin, linestyle="--")
    ticks = [-first, 0, *(y["step"] for y in rows[0]["after"][1::2])]
    axes.set_xticks(ticks, ["before", *map(str, ticks[1:])], rotation=60)
    axes.minorticks_off()
  panels[0].set_ylabel("reward, 0 random, 1 best bound", fontsize=9)
  panels[0].legend(frameon=False, fontsize=8)
  drawing.supxlabel(
    "hollow: before the change; dashed: frozen since the change; bands: 95 % "
    "confidence",
    fontsize=8,
    color=plots.GREY,
  )
  return drawing


def catalogue_size(results: Mapping[str, Any]) -> Figure:
  """Reward, time and memory by the number of items."""
  drawing = Figure(figsize=(12.5, 3.6), layout="constrained")
  panels = drawing.subplots(1, 4)
  keys = ("normalised", "iteration_ms", "decision_ms", "memory_gb")
  titles = (
    "Reward, 0 random, 1 best bound",
    "Milliseconds per iteration",
    "Milliseconds per decision",
    "Peak memory, GB",
  )
  for axes, key, title in zip(panels, keys, titles, strict=True):
    plots.style(axes, title, "items")
    axes.set_xscale("log")
    if key.endswith("_ms"):
      axes.set_yscale("log")
    for i, (name, label) in enumerate(LABELS.items()):
      rows = [
        x for x in results["rows"] if x["policy"] == name and x[key] is not None
      ]
      x, y = [row["size"] for row in rows], [row[key] for row in rows]
      style = {"color": plots.COLOURS[i], "marker": plots.MARKERS[i]}
      style |= {"markersize": 4, "label": label}
      if key == "normalised":
        mean = np.array([v["mean"] for v in y], float)  # None becomes NaN.
        ends = np.array([v["ci95"] for v in y], float).reshape(-1, 2).T
        axes.errorbar(x, mean, np.abs(ends - mean), capsize=2, **style)
      else:
        axes.plot(x, y, **style)
    if key == "memory_gb":
      axes.set_ylim(bottom=0)
  handles, _ = panels[0].get_legend_handles_labels()
  plots.legend_below(drawing, len(LABELS), handles)
  return drawing


def off_policy(results: Mapping[str, Any], real: str = "real value") -> Figure:
  """Estimates of each policy with their intervals, and its `real` value."""
  policies = results["off_policy"]
  figure = Figure(figsize=(1 + 3.2 * len(policies), 3), layout="constrained")
  for axes, (policy, found) in zip(
    figure.subplots(1, len(policies), sharey=True, squeeze=False)[0],
    policies.items(),
    strict=True,
  ):
    low, high = found["real"]["ci95"]
    axes.axhspan(low, high, color="0.9", label="its interval")
    axes.axhline(
      found["real"]["mean"], color="black", linewidth=1.2, label=real
    )
    for x, (key, (colour, marker, label)) in enumerate(_ESTIMATORS.items()):
      if "refused" in found.get(key, {"refused": True}):
        continue
      value, (low, high) = found[key]["mean"], found[key]["ci95"]
      style = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2.5}
      ends = [[value - low], [high - value]]
      axes.errorbar(x, value, ends, label=label, **style)
    plots.style(axes, f"{policy}, from logs of {found['logger']}", "")
    axes.set_xlim(-0.6, len(_ESTIMATORS) - 0.4)
    axes.set_xticks([])
  first = figure.axes[0]
  first.set_ylabel("clicks an impression", fontsize=9)
  first.legend(frameon=False, fontsize=8)
  return figure
