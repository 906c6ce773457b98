"""Experiment `benchmark`: all agents, both protocols, the same budget.

Encoder, simulator, users, iterations, batch and evaluation are those of the
flags for every agent. What differs is in OVERRIDES, tuned on the validation
split alone.
"""

import dataclasses

from hsrl_jax.config import Config
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import comparison, jobs
from hsrl_jax.stages.run import LEARN_FROM_LOGS, Run

# What the public benchmark's A2C and HSRL have in common, in PolicyConfig.
AS_PUBLISHED = {
  "item_credit": False,
  "behaviour_weight": 0.0,
  "actor_weight": 1.0,
  "entropy_weight": 0.1,
  "entropy_weight_end": 0.1,
  "temperature": 1.0,
  "temperature_end": 1.0,
  "explore_no_repeat": False,
}
# Fields of PolicyConfig by agent, in place of what the flags say.
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
  # As published; "flat_features" of the ablation is A2C with HSRL's losses.
  "a2c": AS_PUBLISHED,
}


def run(experiment: jobs.Experiment) -> None:
  """Runs it.

  Where the users come with a click model and without logged slates, agents that
  learn from such are left out.

  Raises:
    InputError: HSRL, to which all are compared, is not among the agents.
  """
  agents = experiment.config.agents
  if comparison.REFERENCE not in agents:
    raise InputError(
      f"--experiment_agents is {','.join(agents)}; expected hsrl among them, "
      "to which the others are compared"
    )
  base = Run(experiment.base, experiment.workdir)
  if base.own_users and (without := set(agents) & set(LEARN_FROM_LOGS)):
    print(
      f"left out: {', '.join(sorted(without))}, which learn from logs; "
      f"{base.name} has none"
    )
    agents = [name for name in agents if name not in without]
  comparison.run(
    experiment, {name: entrant(experiment.base, name) for name in agents}
  )


def entrant(base: Config, agent: str) -> Config:
  """The configuration of an agent in the benchmark."""
  policy = dataclasses.replace(
    base.policy, agent=agent, **OVERRIDES.get(agent, {})
  )
  return dataclasses.replace(base, policy=policy)
