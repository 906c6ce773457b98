"""Experiment `benchmark`: all agents, both protocols, the same budget.

Encoder, simulator, users, iterations, batch and evaluation are those of the
flags for every agent. What differs is in OVERRIDES, tuned on the validation
split alone.
"""

from collections.abc import Collection

from hsrl_jax.agents import AGENTS, PUBLISHED, make_agent, reads
from hsrl_jax.config import Config, ExperimentConfig, TrainConfig
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import comparison, jobs
from hsrl_jax.stages.run import Run

# Settings by agent, in place of what the flags say.
OVERRIDES = {
  # At HSRL's 0.01 the behaviour loss decides all but alone, and the critic,
  # which makes these agents what they are, next to nothing: see "ddpg" of the
  # ablation.
  **{
    name: {"actor_weight": 0.1}
    for name in ("ddpg", "td3", "wolpertinger", "hac", "pgra")
  },
  # At the flags' rate it overfits the logs after 500 iterations.
  "sasrec": {"learning_rate": 5e-4},
  # What it has in common with HSRL as published; "flat_features" of the
  # ablation is A2C with HSRL's losses.
  "a2c": {
    name: value
    for name, value in PUBLISHED.items()
    if name in reads("a2c") or hasattr(TrainConfig, name)
  },
}


def run(experiment: jobs.Experiment) -> None:
  """Runs it.

  Where the users come with a click model and without logged slates, agents that
  learn from such are left out.

  Raises:
    InputError: HSRL, to which all are compared, is not among the agents.
  """
  agents = compared(experiment.config)
  if unknown := sorted(set(agents) - set(AGENTS)):
    raise InputError(
      f"--experiment_agents has {unknown[0]!r}; expected at least one of "
      f"{tuple(AGENTS)}"
    )
  if comparison.REFERENCE not in agents:
    raise InputError(
      f"--experiment_agents is {','.join(agents)}; expected hsrl among them, "
      "to which the others are compared"
    )
  base = Run(experiment.base, experiment.workdir)
  without = {
    name
    for name in agents
    if make_agent(entrant(experiment, name), 1, items=1).offline
  }
  if base.own_users and without:
    print(
      f"left out: {', '.join(sorted(without))}, which learn from logs; "
      f"{base.name} has none"
    )
    agents = [name for name in agents if name not in without]
  comparison.run(
    experiment, {name: entrant(experiment, name) for name in agents}
  )


def compared(config: ExperimentConfig) -> Collection[str]:
  """The agents that the benchmark trains."""
  return tuple(AGENTS) if config.agents is None else config.agents


def entrant(experiment: jobs.Experiment, agent: str) -> Config:
  """The configuration of an agent in the benchmark."""
  return experiment.with_agent(agent, **OVERRIDES.get(agent, {}))
