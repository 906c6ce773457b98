"""`spaced`: the items of the largest mean, none of a category shown too often.

An item is avoided if one of its categories was among n of the last m items.
"""

import dataclasses

import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.rules import knowledge
from hsrl_jax.checked import setting


@dataclasses.dataclass(frozen=True)
class Settings(knowledge.WorthSettings):
  """Of `spaced`.

  Attributes:
    spacing_window: m, items that were shown last.
    spacing_count: n, of them with a category, for it to be avoided.
  """

  spacing_window: int = setting(5, least=1)
  spacing_count: int = setting(3, least=1)


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; it trains nothing."""

  def act(params, catalogue, observation, excluded, key, temperature):
    categories, worth = params["categories"], params["worth"]

    def scores(last):
      often = categories[last].sum(0) >= settings.spacing_count
      return worth - knowledge.AVOIDED * (categories @ often)

    return knowledge.fill(
      scores,
      lambda last, item: jnp.append(last[1:], item),
      knowledge.lately(observation, settings.spacing_window),
      base.permitted(catalogue.index.active, excluded),
      spec.slate_size,
      key,
      temperature,
    )

  return knowledge.agent(settings, act)
