"""The agents by the name that --agent gives them."""

import dataclasses
import functools
from typing import Any

from hsrl_jax.agents import next_item
from hsrl_jax.agents.base import Agent, Algorithm, Settings, Spec
from hsrl_jax.agents.baselines import (
  a2c,
  cql,
  ddpg,
  hac,
  pgra,
  planner,
  sasrec,
  simple,
  td3,
  wolpertinger,
)
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.agents.hsrl import pretrained
from hsrl_jax.agents.hsrl import settings as hsrl_settings
from hsrl_jax.agents.rules import best_playlist, capped, diverse, spaced
from hsrl_jax.config import Config
from hsrl_jax.errors import InputError
from hsrl_jax.sim import reward

# The registry: a new agent is a file of its own, and its line here.
AGENTS = {
  "random": Algorithm(simple.Settings, simple.make_random),
  "popularity": Algorithm(simple.Settings, simple.make_popularity),
  "sasrec": Algorithm(sasrec.Settings, sasrec.make),
  "a2c": Algorithm(a2c.Settings, a2c.make),
  "ddpg": Algorithm(ddpg.Settings, ddpg.make),
  "cql": Algorithm(cql.Settings, cql.make),
  "td3": Algorithm(td3.Settings, td3.make),
  "pgra": Algorithm(pgra.Settings, pgra.make),
  "wolpertinger": Algorithm(wolpertinger.Settings, wolpertinger.make),
  "hac": Algorithm(hac.Settings, hac.make),
  "planner": Algorithm(planner.Settings, planner.make),
  "capped": Algorithm(capped.Settings, capped.make),
  "spaced": Algorithm(spaced.Settings, spaced.make),
  "diverse": Algorithm(diverse.Settings, diverse.make),
  "best_playlist": Algorithm(best_playlist.Settings, best_playlist.make),
  "hsrl": Algorithm(hsrl.Settings, hsrl.make),
}
# By agent, what RL makes of its policy of the next item; `make` takes a Config
# in place of the settings.
CONTINUED = {
  "hsrl": Algorithm(pretrained.ContinuedSettings, pretrained.make),
}
# What learns nothing, and is chosen by its settings alone.
RULES = ("capped", "spaced", "diverse", "best_playlist")
# What can learn from logs alone.
FROM_LOGS = ("hsrl", "sasrec", "a2c", "ddpg", "cql")
# Fields of TrainConfig of which learning from logs has no use.
_OF_SIMULATOR = {
  *("buffer_size", "temperature", "temperature_end", "explore_no_repeat"),
  *("curve_every", "curve_episodes"),
}
# Fields of TrainConfig of which learning on-policy has no use.
_OF_REPLAY = {"temperature", "temperature_end", "batch_size", "buffer_size"}
DEFAULT = "hsrl"
PUBLISHED = hsrl.PUBLISHED


def make_agent(config: Config, slate_size: int, items: int) -> Agent:
  """Builds the agent that a configuration names.

  Args:
    config: of the run.
    slate_size: K.
    items: in the catalogue in training, also where another one is served.

  Raises:
    InputError: the agent searches SIDs that items share, or does not learn in
      that way.
  """
  check(config)
  if config.train.task == "next_item":
    return next_item.make(config, slate_size, items)
  spec = Spec(
    levels=config.quantizer.levels,
    vocab_size=config.quantizer.vocab_size,
    slate_size=slate_size,
    reward=reward.of_config(config.simulator),
    items=items,
    network=config.network,
    train=config.train,
  )
  if config.supervised:
    agent = CONTINUED[config.agent].make(config, spec)
  else:
    agent = AGENTS[config.agent].make(config.settings, spec)
  if agent.beams and config.quantizer.assignment == "plain":
    raise InputError(
      f"sid_assignment is 'plain' with a beam search over {items:,} items, "
      "which finds an item by a SID of its own; expected 'unique' or 'shuffled'"
    )
  return agent


# The same one for the same arguments: what acts by it is traced once. The last
# few alone, since experiments make hundreds, with all that was traced of them.
agent_of = functools.lru_cache(maxsize=4)(make_agent)


def check(config: Config) -> None:
  """Raises InputError where the agent does not learn as it should."""
  if config.train.from_logs:
    if config.agent not in FROM_LOGS:
      raise InputError(
        f"learn_from is 'logs' with {config.agent}; expected 'simulator', or "
        f"one of {', '.join(FROM_LOGS)}"
      )
    if config.supervised:
      raise InputError(
        "learn_from is 'logs' with a run that continues from a policy of the "
        "next item; expected 'simulator', or a new run"
      )
  if config.train.learning == "on_policy" and (
    config.agent not in CONTINUED or config.supervised
  ):
    agent = config.agent
    what = f"a run that continues from {agent}" if config.supervised else agent
    raise InputError(
      f"learning is 'on_policy' with {what}; expected 'replay', or a new run "
      f"of {' or '.join(CONTINUED)}"
    )


def needs_logs(config: Config) -> bool:
  """Whether the agent learns from logged slates."""
  agent = make_agent(config, slate_size=1, items=1)
  return agent.offline or config.train.from_logs or agent.logged_share > 0


def unread_of(learn_from: str) -> set[str]:
  """The names of settings of which one way of learning has no use."""
  return _OF_SIMULATOR if learn_from == "logs" else set()


def reads(agent: str) -> set[str]:
  """The names of an agent's own settings."""
  return {x.name for x in dataclasses.fields(AGENTS[agent].settings)}


def unread(config: Config) -> set[str]:
  """The names of settings that the agent reads in other configurations only.

  One that continues from its policy of the next item has the networks of that
  policy; others have nothing to stay near. On-policy there is no replay.
  """
  if config.agent not in CONTINUED:
    return set()
  if config.train.learning == "on_policy":
    return hsrl_settings.REPLAY | _OF_REPLAY
  continued = dataclasses.fields(CONTINUED[config.agent].settings)
  if config.supervised:
    return reads(config.agent) - {x.name for x in continued}
  return hsrl_settings.NEAR_START | hsrl_settings.ON_POLICY


def configure(
  config: Config,
  agent: str,
  settings: Settings | None = None,
  **values: Any,
) -> Config:
  """The configuration for an agent, with other values of some fields.

  Args:
    config: which holds where nothing else is said.
    agent: a name in AGENTS.
    settings: of the agent; None: what it has in common with those of `config`,
      for the rest its defaults.
    **values: by name of a field: of TrainConfig, NetworkConfig, or of the
      agent's settings.

  Raises:
    TypeError: there is no such field.
    ValueError: a value is out of range.
  """
  own = reads(agent)
  if settings is None:
    known = {
      name: getattr(config.settings, name)
      for name in own
      if hasattr(config.settings, name)
    }
    settings = AGENTS[agent].settings(**known)
  parts = {"network": config.network, "train": config.train}
  for name, part in parts.items():
    fields = {x.name for x in dataclasses.fields(part)} & values.keys()
    parts[name] = dataclasses.replace(
      part, **{x: values.pop(x) for x in fields}
    )
  settings = dataclasses.replace(settings, **values)
  return dataclasses.replace(config, agent=agent, settings=settings, **parts)
