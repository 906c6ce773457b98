"""HSRL against others under each protocol, paired."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hsrl_jax.config import Config
from hsrl_jax.evaluation import bounds, measures, statistics
from hsrl_jax.experiments import entrants, held_out_rows, jobs
from hsrl_jax.experiments.entrants import REFERENCE
from hsrl_jax.report import experiment_plots, tables
from hsrl_jax.stages.evaluate import SESSIONS
from hsrl_jax.stages.run import Run

# Of held-out logs, what a table shows.
_SHOWN = {
  name: held_out_rows.MEASURES[name]
  for name in ("auc_within_slates", "recall@10")
}


def compare(experiment: jobs.Experiment, configs: Mapping[str, Config]) -> None:
  """Runs all entrants under all protocols; writes and prints the results.

  Args:
    experiment: what is compared.
    configs: name to configuration; the protocol is put in here. REFERENCE is
      one of them; differences are its measure less that of each other.
  """
  protocols = experiment.config.protocols
  runs = jobs.run_all(
    experiment,
    [
      jobs.Job(f"{protocol}/{name}", entrants.under(config, protocol))
      for protocol in protocols
      for name, config in configs.items()
    ],
  )
  spent = jobs.seconds(experiment)
  compared = {}
  for protocol in protocols:
    reference = runs[f"{protocol}/{REFERENCE}"]
    first = reference.results()
    compared[protocol] = {
      "bounds": bound_rows(reference),
      "entrants": {
        name: entrant_row(
          experiment,
          reference,
          runs[f"{protocol}/{name}"],
          spent.get(f"{protocol}/{name}", {}),
        )
        for name in configs
      },
      "held_out": held_out_of(
        reference, {name: runs[f"{protocol}/{name}"] for name in configs}
      ),
    }
  results = {
    "dataset": first["dataset"],
    "split": first["split"],
    "episodes": first["episodes"],
    "iterations": experiment.base.train.iterations,
    "users": experiment.base.train.users,
    "resamples": statistics.RESAMPLES,
    "reference": REFERENCE,
    "simulator": first["simulator"],
    "protocols": compared,
  }
  jobs.finish(experiment, results, table, experiment_plots.compare)


def held_out_of(
  reference: Run, runs: Mapping[str, Run]
) -> dict[str, dict[str, Any]]:
  """Measures of held-out logs of entrants and simple lists, by name.

  Each with `difference`, what the reference has more, which itself has none.
  """
  ordered = held_out_rows.of_lists(reference) | {
    name: rows
    for name, run in runs.items()
    if (rows := held_out_rows.of_policy(run))
  }
  found = {}
  for name, rows in ordered.items():
    found[name] = held_out_rows.measured(rows) | {"difference": None}
    if name != REFERENCE:
      more = held_out_rows.more(ordered[REFERENCE], rows)
      found[name]["difference"] = more
  return found


def bound_rows(reference: Run) -> dict[str, dict[str, Any]]:
  """The rows of the policies that were evaluated beside the reference's."""
  agent = reference.config.agent
  mine = (reference, agent)
  return {
    name: measured | {"difference": difference(mine, (reference, name))}
    for name, measured in reference.results()["policies"].items()
    if name != agent
  }


def entrant_row(
  experiment: jobs.Experiment, reference: Run, run: Run, spent: dict[str, float]
) -> dict[str, Any]:
  """The row of results.json of one entrant under one protocol."""
  agent, train = run.config.agent, run.config.train
  row = dict(run.results()["policies"][agent])
  row["difference"] = None
  if run is not reference:
    own = (reference, reference.config.agent)
    row["difference"] = difference(own, (run, agent))
  # Of all seeds together, with compilation and the learning curve.
  trained = (run.workdir / "policy" / "metrics.jsonl").exists()
  iterations = train.iterations * len(train.seeds)
  # What a killed process had spent is not known.
  known = trained and "policy" in spent
  row["iterations_per_second"] = iterations / spent["policy"] if known else None
  row["seconds"] = sum(spent.values())
  row["changed"] = entrants.changed(experiment.base, run.config)
  return row


def difference(a: tuple[Run, str], b: tuple[Run, str]) -> dict[str, Any]:
  """Reward of a policy of a run less that of another, or of another run."""
  return statistics.difference(
    rewards(*a), rewards(*b), measures.read(a[0].workdir / SESSIONS)["user"]
  )


def rewards(run: Run, policy: str) -> np.ndarray:
  """Total reward of each session of each seed, [S, E]."""
  return measures.read(run.workdir / SESSIONS)[f"{policy}/total_reward"]


def ranked(protocol: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """Entrants and bounds of one protocol, the least total reward first."""
  rows = protocol["bounds"] | protocol["entrants"]
  return sorted(rows.items(), key=lambda x: x[1]["total_reward"]["mean"])


def table(results: Mapping[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  reference = results["reference"]
  parts = [
    tables.filled(
      f"{results['dataset']}, split {results['split']}, "
      f"{results['episodes']:,} sessions a seed, {results['iterations']:,} "
      "iterations"
    )
  ]
  protocols = results["protocols"]
  for protocol, policies in protocols.items():
    # A file of an earlier version has no held-out logs.
    for name, label in _SHOWN.items():
      rows = _held_out(policies.get("held_out", {}), name)
      if rows:
        head = (f"{protocol}: {label}", "", "[95% CI]")
        rows.insert(0, (*head, f"{reference} +", "[95% CI]"))
        parts.append(tables.aligned(rows))
    rows = [
      (protocol, "reward", "[95% CI]", "norm.", f"{reference} +", "[95% CI]")
    ]
    for name, row in ranked(policies):
      reward, more = tables.cells(row["total_reward"]), row.get("difference")
      scale = tables.mean(row["normalised"])
      rows.append((name, *reward, scale, *tables.cells(more)))
    parts.append(tables.aligned(rows))
  foreseen = any({*bounds.KNOWING} & {*x["bounds"]} for x in protocols.values())
  note = (
    f"norm.: 0 random, 1 {'best bound' if foreseen else 'greedy oracle'}. "
    f"{reference} +: what {reference} has more, paired over users and seeds. "
    "Intervals of rewards are over the seeds"
  )
  if any(x.get("held_out") for x in protocols.values()):
    heads = " and ".join(_SHOWN.values())
    note += (
      f". {heads} are of held-out logs, where nothing is simulated, beside "
      "simple lists; their intervals are over users and seeds"
    )
  return tables.blocks(*parts, tables.filled(f"{note}."))


def _held_out(rows: Mapping[str, Any], measure: str) -> list[tuple[str, ...]]:
  """Lines of a table of one measure, the least first."""
  form = "{:z.4f}"
  measured = {name: row[measure] for name, row in rows.items() if row[measure]}
  return [
    (
      name,
      *tables.cells(measured[name], form),
      *tables.cells((rows[name]["difference"] or {}).get(measure), form),
    )
    for name in sorted(measured, key=lambda x: measured[x]["mean"])
  ]
