"""`diverse`: maximal marginal relevance, and few of a kind in a slate.

Carbonell and Goldstein, "The use of MMR", 1998: an item's mean, less a weight
times the largest cosine to what the slate has already and what was shown last.
"""

import dataclasses

import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.rules import knowledge
from hsrl_jax.checked import setting

_WINDOW = 10  # Items shown last that count as if the slate had them.


@dataclasses.dataclass(frozen=True)
class Settings(knowledge.CapSettings):
  """Of `diverse`.

  Attributes:
    similarity_weight: of the largest cosine.
  """

  similarity_weight: float = setting(0.3, least=0)


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; it trains nothing."""

  def act(params, catalogue, observation, excluded, key, temperature):
    kinds, features = params["kinds"], catalogue.features
    length = jnp.linalg.norm(features, axis=1, keepdims=True)
    units = features / jnp.maximum(length, 1e-6)

    def scores(state):
      nearest, room = state
      near = settings.similarity_weight * nearest
      return params["worth"] - near - knowledge.AVOIDED * (kinds @ (room <= 0))

    def after(state, item):
      nearest, room = state
      return jnp.maximum(nearest, units @ units[item]), room - kinds[item]

    last = knowledge.lately(observation, _WINDOW)
    near = jnp.where(last[:, None] > 0, units[last] @ units.T, -1.0).max(0)
    room = jnp.full(kinds.shape[1], float(settings.rule_cap))
    return knowledge.fill(
      scores,
      after,
      (near, room),
      base.permitted(catalogue.index.active, excluded),
      spec.slate_size,
      key,
      temperature,
    )

  return knowledge.agent(act)
