"""Experiment `world`: who sees ahead, in the world of one flagfile.

Bounds, HSRL, its twins without foresight and without an actor, other agents,
and HSRL less some of its parts, all with the same seeds, users and luck. Beside
each reward stands what HSRL earns more, and what the row earns above the greedy
oracle: above 0 it takes a policy that gives up something now for later.
"""

from collections.abc import Collection, Mapping
from typing import Any

from hsrl_jax.config import Config
from hsrl_jax.evaluation import bounds
from hsrl_jax.experiments import compare, entrants, jobs
from hsrl_jax.experiments.entrants import FORESIGHT, REFERENCE, TWINS
from hsrl_jax.experiments.registry import World
from hsrl_jax.report import experiment_plots, tables

GREEDY = "greedy_oracle"
KINDS = ("bound", "method", "twin", "agent", "variant")


def run(experiment: jobs.Experiment) -> None:
  """Runs what is missing; leaves results.json, table.txt and plot.png.

  Raises:
    InputError: an agent or a variant is unknown.
  """
  configs = entered(experiment)
  runs = jobs.run_all(
    experiment,
    [jobs.Job(name, config) for name, (_, config) in configs.items()],
  )
  spent, reference = jobs.seconds(experiment), runs[REFERENCE]
  rows = {
    name: row | {"kind": "bound"}
    for name, row in compare.bound_rows(experiment, reference).items()
  }
  greedy = (reference, GREEDY)
  for name, row in rows.items():
    row.setdefault("above_greedy", None)
    if name == GREEDY:
      row["above_greedy"] = None
    elif row["difference"]:
      row["above_greedy"] = compare.difference(
        experiment, (reference, name), greedy
      )
  for name, (kind, config) in configs.items():
    rows[name] = compare.entrant_row(
      experiment, reference, runs[name], spent.get(name, {})
    )
    rows[name]["kind"] = kind
    rows[name]["above_greedy"] = compare.difference(
      experiment, (runs[name], config.agent), greedy
    )
  first, base = reference.results(), experiment.base
  results = {
    "world": experiment.workdir.name,
    "dataset": first["dataset"],
    "protocol": first["protocol"],
    "split": first["split"],
    "episodes": first["episodes"],
    "iterations": base.train.iterations,
    "users": base.train.users,
    "resamples": experiment.config.resamples,
    "reference": REFERENCE,
    "simulator": first["simulator"],
    "rows": rows,
  }
  jobs.finish(
    experiment, results, table(results), experiment_plots.world(results)
  )


def compared(config: World) -> Collection[str]:
  """The agents that the experiment trains."""
  changes = _variants(config).values()
  return dict.fromkeys((*config.named, *entrants.agents(changes)))


def entered(experiment: jobs.Experiment) -> dict[str, tuple[str, Config]]:
  """Name to kind and configuration of whoever is trained.

  Raises:
    InputError: an agent or a variant is unknown.
  """
  c = experiment.config
  tuned = entrants.tuned(c.tuned)
  own = tuned.get(REFERENCE, {})
  changes = {REFERENCE: {}} | TWINS
  found = {
    name: ("twin" if name in TWINS else "method", config)
    for name, config in entrants.varied(experiment, changes, own).items()
  }
  for name in entrants.able(experiment, c.named):
    if name not in (REFERENCE, *bounds.BOUNDS):  # These are there anyway.
      config = entrants.agent(experiment, name, tuned.get(name))
      found[name] = ("agent", config)
  for name, config in entrants.varied(experiment, _variants(c), own).items():
    key = name if name not in found else f"{REFERENCE}_{name}"
    found[key] = ("variant", config)
  return found


def _variants(config: World) -> dict[str, Mapping[str, Any]]:
  """What is left out, by name; all of FORESIGHT unless some are named."""
  names = FORESIGHT if config.variants is None else config.variants
  return entrants.variants(names, entrants.VARIANTS | FORESIGHT)


def ranked(results: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """The rows, the least total reward first."""
  rows = results["rows"].items()
  return sorted(rows, key=lambda x: x[1]["total_reward"]["mean"])


def table(results: Mapping[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  reference = results["reference"]
  head = (
    f"{results['world']}: {results['dataset']}, protocol "
    f"{results['protocol']}, split {results['split']}, "
    f"{results['episodes']:,} sessions a seed, {results['iterations']:,} "
    "iterations"
  )
  main = [("", "reward", "[95% CI]", "norm.", "depth")]
  more = [("", f"{reference} +", "[95% CI]", "greedy +", "[95% CI]")]
  for name, row in ranked(results):
    main.append(
      (
        name,
        *tables.cells(row["total_reward"]),
        tables.mean(row["normalised"]),
        tables.mean(row["depth"], "{:.1f}"),
      )
    )
    pairs = (row["difference"], row["above_greedy"])
    more.append((name, *tables.cells(pairs[0]), *tables.cells(pairs[1])))
  note = (
    f"norm.: 0 random, 1 the best bound. {reference} +: what {reference} earns "
    "more than the row; greedy +: what the row earns more than the greedy "
    "oracle, which knows the user and does not look ahead; both paired."
  )
  return "\n".join(
    (
      tables.filled(head),
      "",
      *tables.aligned(main),
      "",
      *tables.aligned(more),
      "",
      tables.filled(note),
    )
  )
