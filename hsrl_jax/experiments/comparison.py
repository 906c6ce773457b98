"""One reference against others: rows of results, their table and their plot."""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hsrl_jax.agents import configure
from hsrl_jax.config import Config
from hsrl_jax.evaluation import bootstrap, simulate
from hsrl_jax.experiments import jobs
from hsrl_jax.report import plots, run_page
from hsrl_jax.stages.run import SESSIONS, Run

REFERENCE = "hsrl"
_WIDTH = 80


def run(experiment: jobs.Experiment, entrants: Mapping[str, Config]) -> None:
  """Runs all entrants under all protocols; writes and prints what is found.

  Args:
    experiment: what is compared.
    entrants: name to configuration; the protocol is put in here. REFERENCE is
      one of them; differences are what it has more than each other.
  """
  protocols = experiment.config.protocols
  runs = jobs.run_all(
    experiment,
    [
      jobs.Job(f"{protocol}/{name}", under(config, protocol))
      for protocol in protocols
      for name, config in entrants.items()
    ],
  )
  spent = jobs.seconds(experiment)
  found = {}
  for protocol in protocols:
    reference = runs[f"{protocol}/{REFERENCE}"]
    first = reference.results()
    found[protocol] = {
      "bounds": {
        name: first["policies"][name]
        | {"difference": _difference(experiment, reference, reference, name)}
        for name in simulate.BOUNDS
      },
      "entrants": {
        name: _row(
          experiment,
          reference,
          runs[f"{protocol}/{name}"],
          spent.get(f"{protocol}/{name}", {}),
        )
        for name in entrants
      },
    }
  results = {
    "dataset": first["dataset"],
    "split": first["split"],
    "episodes": first["episodes"],
    "iterations": experiment.base.train.iterations,
    "users": experiment.base.train.users,
    "resamples": experiment.config.resamples,
    "reference": REFERENCE,
    "simulator": first["simulator"],
    "protocols": found,
  }
  jobs.finish(experiment, results, table(results), plot(results))


def under(config: Config, protocol: str) -> Config:
  """The configuration under another protocol."""
  simulator = dataclasses.replace(config.simulator, protocol=protocol)
  return dataclasses.replace(config, simulator=simulator)


def _row(
  experiment: jobs.Experiment, reference: Run, run: Run, spent: dict[str, float]
) -> dict[str, Any]:
  """What results.json says of one entrant under one protocol."""
  agent, train = run.config.agent, run.config.train
  row = dict(run.results()["policies"][agent])
  row["difference"] = None
  if run is not reference:
    row["difference"] = _difference(experiment, reference, run, agent)
  # Of all seeds together, with compilation and the learning curve.
  trained = (run.workdir / "policy" / "metrics.jsonl").exists()
  iterations = train.iterations * len(train.seeds)
  # What a killed process had spent is not known.
  known = trained and "policy" in spent
  row["iterations_per_second"] = iterations / spent["policy"] if known else None
  row["seconds"] = sum(spent.values())
  row["changed"] = changed(experiment.base, run.config)
  return row


def _difference(
  experiment: jobs.Experiment, reference: Run, run: Run, policy: str
) -> dict[str, Any]:
  """What the reference's agent earns more than a policy of a run."""
  return bootstrap.difference(
    _rewards(reference, REFERENCE),
    _rewards(run, policy),
    resamples=experiment.config.resamples,
    seed=experiment.config.seed,
  )


def _rewards(run: Run, policy: str) -> np.ndarray:
  """Total reward of each session of each seed, [S, E]."""
  return simulate.read(run.workdir / SESSIONS)[f"{policy}/total_reward"]


def changed(base: Config, config: Config) -> dict[str, Any]:
  """The fields of quantizer and policy in which a configuration differs.

  What only the other agent reads counts where it is not as by default.
  """
  old = configure(base, config.agent)
  parts = [("quantizer", old.quantizer, config.quantizer)] + [
    ("policy", getattr(old, name), getattr(config, name))
    for name in ("network", "train", "settings")
  ]
  differing = {
    f"{stage}.{field}": value
    for stage, before, after in parts
    for field, value in dataclasses.asdict(after).items()
    if value != getattr(before, field)
  }
  if base.agent != config.agent:
    differing["policy.agent"] = config.agent
  return differing


def ranked(protocol: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """Entrants and bounds of one protocol, the least total reward first."""
  rows = protocol["bounds"] | protocol["entrants"]
  return sorted(rows.items(), key=lambda x: x[1]["total_reward"]["mean"])


def table(results: Mapping[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  reference = results["reference"]
  parts = [
    textwrap.fill(
      f"{results['dataset']}, split {results['split']}, "
      f"{results['episodes']:,} sessions a seed, {results['iterations']:,} "
      "iterations",
      _WIDTH,
    )
  ]
  for protocol, found in results["protocols"].items():
    rows = [
      (protocol, "reward", "[95% CI]", "norm.", f"{reference} +", "[95% CI]")
    ]
    for name, row in ranked(found):
      reward, more = row["total_reward"], row.get("difference")
      rows.append(
        (
          name,
          f"{reward['mean']:z.2f}",
          _interval(reward),
          f"{row['normalised']['mean']:z.2f}",
          f"{more['mean']:z.2f}" if more else "",
          _interval(more) if more else "",
        )
      )
    parts += ["", *run_page.aligned(rows)]
  note = (
    f"norm.: 0 random, 1 greedy oracle. {reference} +: what {reference} earns "
    "more, with the interval of a paired bootstrap over sessions and seeds. "
    "The other intervals are over the seeds."
  )
  return "\n".join([*parts, "", textwrap.fill(note, _WIDTH)])


def _interval(measure: Mapping[str, Any]) -> str:
  low, high = measure["ci95"]
  return f"[{low:z.2f}, {high:z.2f}]"


def plot(results: Mapping[str, Any]) -> Figure:
  """Total reward of each entrant with its interval, one panel a protocol."""
  protocols = results["protocols"]
  first = next(iter(protocols.values()))
  names = [name for name, _ in ranked(first) if name in first["entrants"]]
  figure = Figure(
    figsize=(1.6 + 3.6 * len(protocols), 1.4 + 0.3 * len(names)),
    layout="constrained",
  )
  for axes, (protocol, found) in zip(
    figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0],
    protocols.items(),
    strict=True,
  ):
    plots.style(axes, "", "total reward of a session")
    axes.set_title(f"protocol {protocol}", fontsize=10.5, loc="left", pad=26)
    for i, (name, row) in enumerate(found["bounds"].items()):
      value = row["total_reward"]["mean"]
      axes.axvline(value, color=plots.GREY, linewidth=1, linestyle="--")
      axes.annotate(
        name.replace("_", " "),
        (value, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3 + 10 * (i % 2)),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=plots.GREY,
      )
    for place, name in enumerate(names):
      reward = found["entrants"][name]["total_reward"]
      special = name == results["reference"]
      colour = plots.RED if special else plots.BLUE
      axes.plot(reward["ci95"], [place] * 2, color=colour, linewidth=1.8)
      axes.plot(
        reward["mean"],
        place,
        color=colour,
        marker="D" if special else "o",
        markersize=6,
      )
    axes.set_yticks(range(len(names)), [x.replace("_", " ") for x in names])
    axes.margins(x=0.08)
    axes.set_ylim(-0.6, len(names) - 0.4)
  return figure
