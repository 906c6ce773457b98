"""`capped`: what is near the user's clicks, and few of a kind that was liked.

The user is a vector by coordinate: clicked over shown. A kind of items, the
rarest category of each, gets at most so many places of a slate, fewer by what
was liked of it lately.
"""

import dataclasses
import functools

import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.rules import knowledge
from hsrl_jax.checked import setting
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import observed
from hsrl_jax.types import Array, Observation, Params

_PRIOR = 2.0  # What a coordinate was shown before anything was.
_HISTORY = 0.02  # Weight of the history of likes in the user's vector.
_NOISE = 0.02  # Scale of the Gumbel noise on scores.
_LOOKS = 0.85  # A place is looked at so much less than the one before it.


@dataclasses.dataclass(frozen=True)
class Settings(knowledge.MemorySettings):
  """Of `capped`.

  Attributes:
    worth_weight: of an item's mean, beside the user's taste.
  """

  worth_weight: float = setting(0.0, least=0)


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; it trains nothing."""

  def act(params, catalogue, observation, excluded, key, temperature):
    kinds = params["kinds"]
    scores = ranked(settings, params, catalogue, observation)
    return knowledge.fill(
      lambda room: scores - knowledge.AVOIDED * (kinds @ (room <= 0)),
      lambda room, item: room - kinds[item],
      settings.rule_cap - likes(kinds, observation, settings.rule_memory),
      base.permitted(catalogue.index.active, excluded),
      spec.slate_size,
      key,
      temperature * _NOISE,
    )

  scores = functools.partial(ranked, settings)
  return knowledge.agent(act, scores, draws=True)


def likes(kinds: Array, observation: Observation, memory: int) -> Array:
  """Likes of each kind among the last `memory` ones shown, float32 [C]."""
  shown = observed.seen(observation).shown
  number = jnp.cumsum(shown.response[::-1])[::-1]  # 1 for the last like.
  recent = shown.response * (number <= memory)
  return recent @ kinds[shown.items]


def taste(features: Array, observation: Observation) -> Array:
  """The user's vector, float32 [D], of length 1, or 0 where nothing is known.

  By coordinate it is the sum over clicked items, over what was looked at, plus
  `_PRIOR`; and a little of the history.
  """
  shown = observed.seen(observation).shown
  vectors = features[shown.items]
  looks = (shown.items > 0) * _LOOKS**shown.position
  vector = (shown.response @ vectors) / (looks @ jnp.abs(vectors) + _PRIOR)
  vector += _HISTORY * features[observation.history].sum(0)
  return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-6)


def ranked(
  settings: Settings,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
) -> Array:
  """Scores before the cap, float32 [N + 1]: taste, and the items' worth."""
  features = catalogue.features
  largest = jnp.linalg.norm(features, axis=1).max()
  near = features @ taste(features, observation) / largest
  return near + settings.worth_weight * params["worth"]
