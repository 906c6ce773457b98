"""Experiment `one_policy`: tomorrow and the next item in one policy.

A policy is trained on what users of the logs liked next. From there others go
on by RL in a simulator of the same logs. All are measured on held-out logs and
in the simulator: what RL gains there, and what it loses here. `hsrl` is the
recipe next_item,on_policy; `rl_alone` the same RL without the first part; the
other VARIANTS are `hsrl` with one thing changed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hsrl_jax import settings
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import statistics
from hsrl_jax.experiments import compare, entrants, held_out_rows, jobs
from hsrl_jax.experiments.entrants import REFERENCE
from hsrl_jax.report import plots, tables
from hsrl_jax.stages import start as start_lib
from hsrl_jax.stages.run import Run

COMPARED = (REFERENCE, "ppo")
START, RL_ALONE = "supervised", "rl_alone"
# Changes of fields, by name of the row.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
  RL_ALONE: {"recipe": "on_policy"},
  # It does not look ahead.
  "no_foresight": {"discount": 0.0},
  "no_actor": {"actor_weight": 0.0},
  # RL is free in states that logs know, too.
  "not_held": {"hold_logged": "none"},
  "no_residual": {"without": ("residual",)},
  # One logit for each item.
  "ppo": {"agent": "ppo"},
  # Of log pi of the next item in what later slates begin with.
  "weight_0": {"supervised_weight": 0.0},
  "weight_2": {"supervised_weight": 2.0},
  "weight_4": {"supervised_weight": 4.0},
}


def run(experiment: jobs.Experiment) -> None:
  """Runs what is missing; leaves results.json, table.txt and plot.png.

  Raises:
    InputError: the dataset has no logged slates to hold out, or a variant
      is unknown.
  """
  names = experiment.config.variants
  known = entrants.variants(VARIANTS if names is None else names, VARIANTS)
  rows = {REFERENCE: {}} | known
  if Run(experiment.base, experiment.workdir).without_slates:
    raise InputError(
      f"{experiment.name} needs logged slates, on which policies are measured; "
      "expected another dataset"
    )
  first = _supervised(experiment)
  runs = {START: first} | jobs.run_all(
    experiment, [_job(experiment, name, rows[name], first) for name in rows]
  )
  ranked = {name: held_out_rows.of_policy(run) for name, run in runs.items()}
  rewarded = runs.get(RL_ALONE, first)
  base, beside = experiment.base, first.results()
  results = {
    "dataset": beside["dataset"],
    "protocol": base.simulator.protocol,
    "split": base.evaluate.split,
    "episodes": base.evaluate.episodes,
    "iterations": base.train.iterations,
    "resamples": statistics.RESAMPLES,
    "simulator": beside["simulator"],
    "rows": {
      name: _row((first, ranked[START]), (run, ranked[name]), rewarded)
      for name, run in runs.items()
    },
    "lists": {
      name: {x: measured[x] for x in held_out_rows.MEASURES}
      for name, measured in beside["held_out"].items()
      if name != REFERENCE
    },
    "bounds": {
      name: measured["total_reward"]
      for name, measured in beside["policies"].items()
      if name != REFERENCE
    },
  }
  jobs.finish(experiment, results, table, figure)


def _job(
  experiment: jobs.Experiment, name: str, changes: Mapping[str, Any], first: Run
) -> jobs.Job:
  """A row that goes on from the policy of the next item, or starts afresh."""
  config = experiment.with_agent(**({"agent": REFERENCE} | dict(changes)))
  if config.train.goes_on:
    path = str(first.workdir)
    train = dataclasses.replace(config.train, continue_from=path)
    config = dataclasses.replace(config, train=train)
  return jobs.Job(name, config)


def _supervised(experiment: jobs.Experiment) -> Run:
  """A run of its own, with data and SIDs, from which others go on."""
  first = start_lib.first_part(experiment.base)
  run = Run(first, experiment.workdir / START)
  run.claim(settings.texts(run.config))
  with jobs.timed(experiment, START, "policy"):
    run.complete(("data", "quantize", "simulator", "policy", "evaluate"))
  return run


def _row(start, own, rewarded: Run) -> dict[str, Any]:
  """Of one policy, and what it has more than the supervised one."""
  (run, rows), (first, before) = own, start
  agent = run.config.agent
  row = held_out_rows.measured(rows)
  row["total_reward"] = run.results()["policies"][agent]["total_reward"]
  row["difference"] = None
  if run is not first:
    row["difference"] = held_out_rows.more(rows, before)
    row["difference"]["total_reward"] = compare.difference(
      (run, agent), (rewarded, rewarded.config.agent)
    )
  return row


def table(results: Mapping[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  head = (
    f"{results['dataset']}, protocol {results['protocol']}, split "
    f"{results['split']}: supervised on the next item, then on-policy RL, "
    f"{results['iterations']:,} iterations"
  )
  parts = [tables.filled(head)]
  for name, label in (
    *held_out_rows.MEASURES.items(),
    ("total_reward", "simulated reward"),
  ):
    form = "{:z.2f}" if name == "total_reward" else "{:z.4f}"
    rows = [(label, "", "[95% CI]", "more", "[95% CI]")]
    for policy_name, row in results["rows"].items():
      more = (row["difference"] or {}).get(name)
      rows.append(
        (policy_name, *tables.cells(row[name], form), *tables.cells(more, form))
      )
    beside = results["bounds"]
    if name in held_out_rows.MEASURES:
      beside = {x: measured[name] for x, measured in results["lists"].items()}
    rows += [(x, *tables.cells(beside[x], form), "", "") for x in beside]
    parts.append(tables.aligned(rows))
  note = (
    f"more: than {START}, of the reward than {RL_ALONE}. The first three "
    "measures are of held-out logs, beside simple lists; intervals over users "
    "and seeds, those of differences paired."
  )
  return tables.blocks(*parts, tables.filled(note))


def figure(results: Mapping[str, Any]) -> Figure:
  """Simulated reward against recall@10 on held-out logs, by policy."""
  made = Figure(figsize=(8, 4), layout="constrained")
  axes = made.subplots()
  for number, (name, row) in enumerate(results["rows"].items()):
    # Another marker where the colours begin again.
    again, colour = divmod(number, len(plots.COLOURS))
    marker = plots.MARKERS[again % len(plots.MARKERS)]
    x, y = row["recall@10"], row["total_reward"]
    errors = [np.abs(np.array(m["ci95"])[:, None] - m["mean"]) for m in (x, y)]
    axes.errorbar(
      x["mean"],
      y["mean"],
      xerr=errors[0],
      yerr=errors[1],
      color=plots.COLOURS[colour],
      marker=marker,
      capsize=3,
      label=name,
    )
  plots.style(
    axes, "RL after supervised training", "recall@10 of what was liked next"
  )
  axes.set_ylabel("simulated reward of a session")
  # Beside the axes: the points are anywhere.
  made.legend(loc="outside right upper", frameon=False)
  return made
