"""Experiment `tune`: as many trials for each agent, in one world.

An agent is trained with every setting of a grid, and measured on users of the
validation split; nobody of the test is looked at. What earned most is what
other experiments take with --experiment_tuned. An agent that reads fewer
settings of the grid tries more learning rates instead.
"""

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from hsrl_jax.agents import RULES, make_agent, reads
from hsrl_jax.config import RECIPES, Config
from hsrl_jax.experiments import entrants, jobs
from hsrl_jax.experiments.registry import Tune
from hsrl_jax.report import experiment_plots, tables

_RATES = (3e-4, 1e-2)  # The least learning rate and the largest.
_DISCOUNTS = (0.8, 0.95)
_ENTROPIES = (1e-3, 1e-2)  # At the start; a tenth at the end.
_TEMPERATURES = (0.1, 0.3)
# Of each rule, which learns nothing, the values of some settings. Of fewer
# trials than these make, the first values of the last setting are left.
_OF_RULES: dict[str, dict[str, tuple]] = {
  "capped": {
    "worth_weight": (0.0, 1.0),
    "rule_cap": (3, 4),
    "rule_memory": (8, 6, 10, 12),
  },
  "spaced": {
    "rule_cap": (1, 2, 3, 4),
    "rule_memory": (5, 3, 10, 20),
  },
  "diverse": {
    "rule_cap": (1, 2),
    "similarity_weight": (0.0, 0.03, 0.1, 0.2, 0.3, 1.0, 3.0, 10.0),
  },
  "best_playlist": {"rule_cap": (10, 1, 2, 3)},
}


def run(experiment: jobs.Experiment) -> None:
  """Runs what is missing; leaves results.json, table.txt and plot.png.

  Raises:
    InputError: an agent is unknown.
  """
  names = entrants.able(experiment, experiment.config.named)
  tried = {
    name: grid(name, experiment.config.trials, experiment.base.train.recipe)
    for name in names
    if name in RULES
    or make_agent(entrants.agent(experiment, name), 1, items=1).learns
  }
  entries = [
    jobs.Job(f"{name}/trial_{i}", configured(experiment, name, changes))
    for name, trials in tried.items()
    for i, changes in enumerate(trials)
  ]
  runs, found = jobs.run_all(experiment, entries), {}
  for name, trials in tried.items():
    found[name] = []
    for i, changes in enumerate(trials):
      measured = runs[f"{name}/trial_{i}"].results()["policies"][name]
      row = {"changes": changes, "total_reward": measured["total_reward"]}
      found[name].append(row)
  results = {
    "world": experiment.workdir.name,
    "dataset": experiment.base.data.dataset,
    "split": "val",
    "iterations": experiment.base.train.iterations,
    "trials": found,
    "best": {name: _best(rows)["changes"] for name, rows in found.items()},
  }
  jobs.finish(experiment, results, table, experiment_plots.tune)


def compared(config: Tune) -> Collection[str]:
  """The agents that are tuned, and HSRL, whose flagfile they are tuned in."""
  return dict.fromkeys((*config.named, entrants.REFERENCE))


def grid(
  agent: str, trials: int, recipe: str = RECIPES[0]
) -> list[dict[str, Any]]:
  """The settings that are tried, field to value; as many for every agent.

  A rule has all values of its own settings, some of them where these are more.
  """
  own, parts = reads(agent, recipe), []
  if agent in _OF_RULES:
    names, values = zip(*_OF_RULES[agent].items(), strict=True)
    every = [
      dict(zip(names, x, strict=True)) for x in itertools.product(*values)
    ]
    return every[:: -(-len(every) // trials)]
  if "discount" in own:
    parts.append([{"discount": x} for x in _DISCOUNTS])
    explores = [{"temperature": x} for x in _TEMPERATURES]
    if "entropy_weight" in own:
      explores = [
        {"entropy_weight": x, "entropy_weight_end": x / 10} for x in _ENTROPIES
      ]
    parts.append(explores)
  others = [
    {k: v for part in chosen for k, v in part.items()}
    for chosen in itertools.product(*parts)
  ]
  rates = np.geomspace(*_RATES, max(trials // len(others), 1))
  return [
    {"learning_rate": float(f"{rate:.2g}")} | other
    for rate in rates
    for other in others
  ]


def configured(
  experiment: jobs.Experiment, name: str, changes: Mapping[str, Any]
) -> Config:
  """The configuration of a trial, evaluated on the validation split."""
  config = entrants.agent(experiment, name, changes)
  evaluate = dataclasses.replace(config.evaluate, split="val")
  return dataclasses.replace(config, evaluate=evaluate)


def table(results: Mapping[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  rows = [("agent", "trials", "least", "best", "[95% CI]")]
  told = []
  for name, trials in results["trials"].items():
    top = _best(trials)
    least = min(x["total_reward"]["mean"] for x in trials)
    ends = (f"{least:z.2f}", *tables.cells(top["total_reward"]))
    rows.append((name, str(len(trials)), *ends))
    what = ", ".join(
      f"{k} {v if isinstance(v, str) else f'{v:g}'}"
      for k, v in top["changes"].items()
    )
    told.append(f"{name}: {what}")
  head = (
    f"{results['world']}: {results['dataset']}, validation users, "
    f"{results['iterations']:,} iterations"
  )
  return tables.blocks(
    tables.filled(head), tables.aligned(rows), tables.filled(*told)
  )


def _best(trials: list[dict[str, Any]]) -> dict[str, Any]:
  return max(trials, key=lambda x: x["total_reward"]["mean"])
