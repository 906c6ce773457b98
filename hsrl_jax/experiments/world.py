"""Experiment `world`: who sees ahead, in the world of one flagfile.

Bounds, HSRL, its twins without foresight and without an actor, other agents,
and HSRL less some of its parts, all with the same seeds, users and luck. Beside
each reward stands what HSRL earns more, and what the row earns above the greedy
oracle: above 0 it takes a policy that gives up something now for later.

The row `rule` is the rule, and its settings, that earned most of validation
users in the trials of `tune`. Where rules alone are compared nothing is
trained, and the first of them is what the others are compared with.
"""

from collections.abc import Collection, Mapping
from typing import Any

from hsrl_jax.agents import RULES
from hsrl_jax.config import Config
from hsrl_jax.evaluation import bounds, statistics
from hsrl_jax.experiments import compare, entrants, jobs
from hsrl_jax.experiments.entrants import FORESIGHT, REFERENCE, TWINS
from hsrl_jax.experiments.registry import World
from hsrl_jax.report import experiment_plots, tables

GREEDY = "greedy_oracle"
KINDS = ("bound", "method", "twin", "rule", "agent", "variant")
RULE = "rule"


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
  first = REFERENCE if REFERENCE in configs else next(iter(configs))
  spent, reference = jobs.seconds(experiment), runs[first]
  rows = {
    name: row | {"kind": "bound"}
    for name, row in compare.bound_rows(reference).items()
  }
  greedy = (reference, GREEDY)
  for name, row in rows.items():
    row["above_greedy"] = None
    if name != GREEDY:
      row["above_greedy"] = compare.difference((reference, name), greedy)
  for name, (kind, config) in configs.items():
    run, agent = runs[name], config.agent
    row = compare.entrant_row(experiment, reference, run, spent.get(name, {}))
    row |= {"kind": kind, "agent": agent}
    row["above_greedy"] = compare.difference((run, agent), greedy)
    rows[name] = row
  measured, base = reference.results(), experiment.base
  results = {
    "world": experiment.workdir.name,
    **{x: measured[x] for x in ("dataset", "protocol", "split", "episodes")},
    "iterations": base.train.iterations,
    "users": base.train.users,
    "resamples": statistics.RESAMPLES,
    "reference": first,
    "simulator": measured["simulator"],
    "rows": rows,
  }
  jobs.finish(experiment, results, table, experiment_plots.world)


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
  agents, tuned = c.named, entrants.tuned(c.tuned)
  own = tuned.get(REFERENCE, {})
  changes = {REFERENCE: {}} | TWINS
  found, chosen = {}, entrants.best_rule(c.tuned)
  if chosen and set(RULES) & set(agents):
    found[RULE] = ("rule", entrants.agent(experiment, *chosen))
    agents = [x for x in agents if x not in RULES or x == entrants.PLAYLIST]
  if not _alone(c):
    found |= {
      name: ("twin" if name in TWINS else "method", config)
      for name, config in entrants.varied(experiment, changes, own).items()
    }
  for name in entrants.able(experiment, agents):
    if name not in (REFERENCE, *bounds.BOUNDS):  # These are there anyway.
      config = entrants.agent(experiment, name, tuned.get(name))
      found[name] = ("rule" if name in RULES else "agent", config)
  for name, config in entrants.varied(experiment, _variants(c), own).items():
    key = name if name not in found else f"{REFERENCE}_{name}"
    found[key] = ("variant", config)
  return found


def _alone(config: World) -> bool:
  """Whether rules alone are compared."""
  return bool(config.agents) and {*config.agents} <= {*RULES}


def _variants(config: World) -> dict[str, Mapping[str, Any]]:
  """Variants of HSRL by name; all of FORESIGHT unless some are named."""
  names = FORESIGHT if config.variants is None else config.variants
  if config.variants is None and _alone(config):
    names = ()
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
  which = [
    f"{name} is {row['agent']}"
    for name, row in results["rows"].items()
    if row.get("agent", name) != name and row["kind"] == "rule"
  ]
  note = (
    f"norm.: 0 random, 1 the best bound. {reference} +: what {reference} earns "
    "more than the row; greedy +: what the row earns more than the greedy "
    "oracle, which knows the user and does not look ahead; both paired."
  )
  if which:
    note = f"{', '.join(which)}. {note}"
  both = tables.aligned(main), tables.aligned(more)
  return tables.blocks(tables.filled(head), *both, tables.filled(note))
