"""Study `after_supervised`: does RL help or hurt a supervised policy?

HSRL is trained on what users of the logs liked next. From there it goes on by
RL in a simulator of the same logs, held to the policy that it started from by a
KL of some weights (`kl_W`), by logged slates in its batches (`mixed`), or by
both. All are measured on held-out logs and in the simulator: what RL gains
there, and what it loses here. With the largest weight, `no_actor` is without
the actor's loss, what the regression on simulated likes does alone; `gamma_0`
does not look ahead. Beside HSRL stands its flat twin, which has a softmax over
all items and no tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hsrl_jax import settings
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import compare, held_out_rows, jobs
from hsrl_jax.experiments.entrants import REFERENCE
from hsrl_jax.report import plots, tables
from hsrl_jax.stages.run import Run

COMPARED = (REFERENCE,)
START = "supervised"
# What comes before the names of a policy's rows: changes to NextItemConfig.
POLICIES: Mapping[str, Mapping[str, Any]] = {
  "": {},
  "flat_": {"token_weight": 0.0},
}
MIXED = 0.5  # Of a batch are logged slates.


def run(experiment: jobs.Experiment) -> None:
  """Runs what is missing; leaves results.json, table.txt and plot.png.

  Raises:
    InputError: the dataset has no logged slates to hold out.
  """
  if Run(experiment.base, experiment.workdir).without_slates:
    raise InputError(
      "--study=after_supervised needs logged slates, on which policies are "
      "measured; expected another --dataset"
    )
  starts, rows = {}, {}
  for prefix, changes in POLICIES.items():
    start = starts[prefix] = _supervised(experiment, prefix + START, changes)
    runs = {prefix + START: start} | jobs.run_all(
      experiment,
      [
        jobs.Job(prefix + name, experiment.with_agent(REFERENCE, **x))
        for name, x in after(
          experiment.config.kl_weights, str(start.workdir)
        ).items()
      ],
    )
    measured = {
      name: held_out_rows.of_policy(run) for name, run in runs.items()
    }
    before = (start, measured[prefix + START])
    rows |= {
      name: _row(experiment, before, (run, measured[name]))
      for name, run in runs.items()
    }
  base, start = experiment.base, starts[""].results()
  results = {
    "dataset": start["dataset"],
    "protocol": base.simulator.protocol,
    "split": base.evaluate.split,
    "episodes": base.evaluate.episodes,
    "iterations": base.train.iterations,
    "resamples": experiment.config.resamples,
    "simulator": start["simulator"],
    "rows": rows,
    "lists": {
      name: {x: measured[x] for x in held_out_rows.MEASURES}
      for name, measured in start["held_out"].items()
      if name != REFERENCE
    },
    "bounds": {
      name: measured["total_reward"]
      for name, measured in start["policies"].items()
      if name != REFERENCE
    },
  }
  jobs.finish(experiment, results, table(results), figure(results))


def after(weights: Sequence[float], start: str) -> dict[str, dict[str, Any]]:
  """What goes on from the supervised policy: name to changes of the flags."""
  found: dict[str, dict[str, Any]] = {
    f"kl_{x:g}": {"kl_weight": x} for x in weights
  }
  last = max(weights)
  for name, changes in (
    ("no_actor", {"actor_weight": 0.0}),
    ("gamma_0", {"discount": 0.0}),
    ("mixed", {"logged_share": MIXED}),
  ):
    found[f"kl_{last:g}_{name}"] = {"kl_weight": last} | changes
  found["mixed"] = {"kl_weight": 0.0, "logged_share": MIXED}
  begun = {"recipe": "next_item,replay", "continue_from": start}
  return {k: begun | x for k, x in found.items()}


def _supervised(
  experiment: jobs.Experiment, name: str, changes: Mapping[str, Any]
) -> Run:
  """A run of its own, with data and SIDs, from which others go on."""
  config = experiment.with_agent(REFERENCE, recipe="next_item")
  own = dataclasses.replace(config.next_item, **changes)
  kept = settings.texts(dataclasses.replace(config, next_item=own))
  folder = experiment.workdir / name
  # As those who go on from it will read it, without what it has no use for; but
  # where the source files are is not kept.
  read = settings.of_texts(name, kept)
  run = Run(dataclasses.replace(read, data=config.data), folder)
  run.claim(kept)
  with jobs.timed(experiment, name, "policy"):
    run.complete(("data", "quantize", "simulator", "policy", "evaluate"))
  return run


def _row(experiment: jobs.Experiment, start, own) -> dict[str, Any]:
  """Of one policy, and what it has more than the supervised one.

  Args:
    experiment: what it is of.
    start: run and measures of the supervised policy.
    own: those of this one.
  """
  (run, rows), (first, before) = own, start
  agent = run.config.agent
  row = held_out_rows.measured(rows)
  row["total_reward"] = run.results()["policies"][agent]["total_reward"]
  row["difference"] = None
  if run is not first:
    row["difference"] = held_out_rows.more(rows, before)
    row["difference"]["total_reward"] = compare.difference(
      experiment, (run, agent), (first, agent)
    )
  return row


def table(results: Mapping[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  head = (
    f"{results['dataset']}, protocol {results['protocol']}, split "
    f"{results['split']}: HSRL and its flat twin supervised on the next item, "
    f"then {results['iterations']:,} iterations of RL"
  )
  lines = [tables.filled(head)]
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
    lines += ["", *tables.aligned(rows)]
  note = (
    "kl_W: RL held to the supervised policy by a KL of weight W; mixed: by "
    f"logged slates, {MIXED:.0%} of each batch; more: than that policy, of the "
    "flat twin in rows of its own. The first three measures are of held-out "
    "logs, beside simple lists; intervals over users and seeds, those of "
    "differences paired."
  )
  return "\n".join([*lines, "", tables.filled(note)])


def figure(results: Mapping[str, Any]) -> Figure:
  """What RL gains in the simulator against what it loses on held-out logs."""
  made = Figure(figsize=(8, 4), layout="constrained")
  axes = made.subplots()
  kinds = len(results["rows"]) // len(POLICIES)
  for number, (name, row) in enumerate(results["rows"].items()):
    # A colour for each way of training, a marker for each of POLICIES; others
    # where the colours begin again.
    again, colour = divmod(number % kinds, len(plots.COLOURS))
    look = again * len(POLICIES) + number // kinds
    marker = plots.MARKERS[look % len(plots.MARKERS)]
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
