"""`spaced`: the items of the largest mean, none of a category shown too often.

An item is avoided if `rule_cap` of the last `rule_memory` items had one of its
categories.
"""

import dataclasses

import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.rules import knowledge


@dataclasses.dataclass(frozen=True)
class Settings(knowledge.MemorySettings):
  """Of `spaced`."""


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; it trains nothing."""

  def act(params, catalogue, observation, excluded, key, temperature):
    categories, worth = params["categories"], params["worth"]

    def scores(last):
      often = categories[last].sum(0) >= settings.rule_cap
      return worth - knowledge.AVOIDED * (categories @ often)

    return knowledge.fill(
      scores,
      lambda last, item: jnp.append(last[1:], item),
      knowledge.lately(observation, settings.rule_memory),
      base.permitted(catalogue.index.active, excluded),
      spec.slate_size,
      key,
      temperature,
    )

  return knowledge.agent(act)
