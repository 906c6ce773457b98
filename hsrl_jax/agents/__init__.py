"""The agents by the name that --agent gives them."""

import dataclasses
import functools
from typing import Any

from hsrl_jax.agents import next_item
from hsrl_jax.agents.base import Agent, Algorithm, PartsSettings, Settings, Spec
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
from hsrl_jax.agents.hsrl import categories, flat, sequential
from hsrl_jax.agents.hsrl import settings as hsrl_settings
from hsrl_jax.agents.rules import best_playlist, capped, diverse, spaced
from hsrl_jax.config import RECIPES, Config
from hsrl_jax.errors import InputError
from hsrl_jax.sim import reward

# The registry: a new agent is a file of its own, and its line here.
AGENTS = {
  "random": Algorithm(simple.Settings, simple.make_random),
  "popularity": Algorithm(simple.Settings, simple.make_popularity),
  "sasrec": Algorithm(
    sasrec.Settings, sasrec.make, ("replay", "logs", "next_item")
  ),
  "a2c": Algorithm(a2c.Settings, a2c.make, ("replay", "logs")),
  "ddpg": Algorithm(ddpg.Settings, ddpg.make, ("replay", "logs")),
  "cql": Algorithm(cql.Settings, cql.make, ("replay", "logs")),
  "td3": Algorithm(td3.Settings, td3.make),
  "pgra": Algorithm(pgra.Settings, pgra.make),
  "wolpertinger": Algorithm(wolpertinger.Settings, wolpertinger.make),
  "hac": Algorithm(hac.Settings, hac.make),
  "planner": Algorithm(planner.Settings, planner.make),
  "ppo": Algorithm(
    hsrl_settings.SlateSettings, flat.make, ("on_policy", "next_item,on_policy")
  ),
  "ppo_categories": Algorithm(
    hsrl_settings.SlateSettings, categories.make, ("on_policy",)
  ),
  "a2c_sequential": Algorithm(
    hsrl_settings.SlateSettings, flat.make_a2c, ("on_policy",)
  ),
  "capped": Algorithm(capped.Settings, capped.make),
  "spaced": Algorithm(spaced.Settings, spaced.make),
  "diverse": Algorithm(diverse.Settings, diverse.make),
  "best_playlist": Algorithm(best_playlist.Settings, best_playlist.make),
  "hsrl": Algorithm(hsrl.Settings, hsrl.make, RECIPES),
}
# What an agent is by a recipe, where that is another algorithm.
_BY_RECIPE = {
  ("hsrl", "on_policy"): Algorithm(
    hsrl_settings.OnPolicySettings, sequential.make
  ),
  ("hsrl", "next_item,on_policy"): Algorithm(
    hsrl_settings.SupervisedTokens, sequential.make
  ),
  ("ppo", "next_item,on_policy"): Algorithm(
    hsrl_settings.SupervisedItems, flat.make
  ),
}
# What learns nothing, and is chosen by its settings alone.
RULES = ("capped", "spaced", "diverse", "best_playlist")
DEFAULT, FROM_LOGS = "hsrl", "cql"  # FROM_LOGS: without propensities.


def settings_of(agent: str, recipe: str) -> type[Settings]:
  """The dataclass of an agent's own settings by a recipe."""
  if recipe == "next_item":
    return Settings  # All of them are those of NextItemConfig.
  return _BY_RECIPE.get((agent, recipe), AGENTS[agent]).settings


def all_settings() -> list[type[Settings]]:
  """The dataclasses of all agents and recipes."""
  return [x.settings for x in (*AGENTS.values(), *_BY_RECIPE.values())]


def trained_by(recipe: str) -> tuple[str, ...]:
  """The agents that a recipe trains."""
  return tuple(name for name, x in AGENTS.items() if recipe in x.recipes)


def recipe_for(agent: str, recipe: str) -> str:
  """The recipe itself, or the agent's first one where it has no such recipe."""
  able = AGENTS[agent].recipes
  return recipe if recipe in able else able[0]


def make_agent(config: Config, slate_size: int, items: int) -> Agent:
  """Builds the agent that a configuration names.

  Args:
    config: of the run.
    slate_size: K.
    items: in the catalogue in training, also where another one is served.

  Raises:
    InputError: the agent searches SIDs that items share, or has no such recipe.
  """
  check(config)
  name, recipe = config.agent, config.train.recipe
  if recipe == "next_item":
    return next_item.make(config, slate_size, items)
  start = None
  if config.train.goes_on:
    start = next_item.start(config, slate_size, items)
  spec = Spec(
    levels=config.quantizer.levels,
    vocab_size=config.quantizer.vocab_size,
    slate_size=slate_size,
    reward=reward.of_config(config.simulator),
    items=items,
    network=config.network,
    train=config.train,
    supervised=start,
  )
  algorithm = _BY_RECIPE.get((name, recipe), AGENTS[name])
  agent = algorithm.make(config.settings, spec)
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
  """Raises InputError where a recipe does not train the agent, or its parts."""
  name, recipe = config.agent, config.train.recipe
  if recipe not in AGENTS[name].recipes:
    raise InputError(
      f"recipe is {recipe!r} with {name}; expected "
      f"{' or '.join(AGENTS[name].recipes)}, or one of "
      f"{', '.join(trained_by(recipe))}"
    )
  own = config.settings
  has_parts = isinstance(own, PartsSettings)
  if has_parts and (other := {*own.without} - {*own.parts}):
    raise InputError(
      f"without is {','.join(own.without)}; {name} by recipe={recipe} has no "
      f"{min(other)}, expected some of {', '.join(own.parts)}"
    )


def needs_logs(config: Config) -> bool:
  """Whether the agent, or what it goes on from, learns from logged slates."""
  train = config.train
  if train.recipe == "next_item" or train.from_logs or train.goes_on:
    return True
  return make_agent(config, slate_size=1, items=1).offline


def reads(agent: str, recipe: str = RECIPES[0]) -> set[str]:
  """The names of an agent's own settings by a recipe, or by its first one."""
  own = settings_of(agent, recipe_for(agent, recipe))
  return {x.name for x in dataclasses.fields(own)}


def configure(
  config: Config, agent: str, settings: Settings | None = None, **values: Any
) -> Config:
  """The configuration for an agent, with other values of some fields.

  Args:
    config: which holds where nothing else is said.
    agent: a name in AGENTS.
    settings: of the agent by any recipe; None: those of `config`. What it has
      in common with them counts, for the rest its defaults.
    **values: by name of a field: of TrainConfig, NetworkConfig, or of the
      agent's settings. Without the recipe of `config` the agent is trained by
      its first one.

  Raises:
    TypeError: there is no such field.
    ValueError: a value is out of range.
  """
  recipe = recipe_for(agent, values.pop("recipe", config.train.recipe))
  values["recipe"] = recipe
  source = config.settings if settings is None else settings
  known = {
    name: getattr(source, name)
    for name in reads(agent, recipe)
    if hasattr(source, name)
  }
  settings = settings_of(agent, recipe)(**known)
  parts = {"network": config.network, "train": config.train}
  for name, part in parts.items():
    fields = {x.name for x in dataclasses.fields(part)} & values.keys()
    parts[name] = dataclasses.replace(
      part, **{x: values.pop(x) for x in fields}
    )
  settings = dataclasses.replace(settings, **values)
  return dataclasses.replace(config, agent=agent, settings=settings, **parts)
