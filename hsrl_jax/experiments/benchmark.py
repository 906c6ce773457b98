"""Experiment `benchmark`: all agents with the same budget, by each protocol."""

from collections.abc import Collection

from hsrl_jax.errors import InputError
from hsrl_jax.experiments import compare, entrants, jobs
from hsrl_jax.experiments.registry import Benchmark


def run(experiment: jobs.Experiment) -> None:
  """Runs what is missing; leaves results.json, table.txt and plot.png.

  Where the users come with a click model and without logged slates, agents that
  learn from such are left out.

  Raises:
    InputError: HSRL, to which all are compared, is not among the agents.
  """
  agents = entrants.able(experiment, experiment.config.named)
  if entrants.REFERENCE not in agents:
    raise InputError(
      f"--experiment_agents is {','.join(agents)}; expected hsrl among them, "
      "to which the others are compared"
    )
  tuned = entrants.tuned(experiment.config.tuned)
  compare.compare(
    experiment,
    {
      name: entrants.agent(experiment, name, tuned.get(name)) for name in agents
    },
  )


def compared(config: Benchmark) -> Collection[str]:
  """The agents that the experiment trains."""
  return config.named
