"""Wolpertinger (Dulac-Arnold et al., arXiv 1512.07679) for slates.

The M items of the largest <a, e_i> are the candidates of the proto action a;
those of the largest Q(s, e_i) among them are shown. The critic is of single
items: each item shown has a target of its own,
y_k = r + (the item's share) + gamma (1 - terminated) mean_j Q'(s', e_j'),
where the e_j' are the slate that the target networks would show in s' (items
already seen included). The mean of y_k over the slate is the slate's own
target. The critic sees directions of embeddings, so that the proto action, at
which the actor climbs, is of the same kind. No gradient of the critic reaches
the embeddings. For the rest see latent.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import latent
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array, Metrics

CANDIDATES = 5  # M, in slates.


@dataclasses.dataclass(frozen=True)
class Settings(base.ValueSettings):
  """Of Wolpertinger."""


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  rank = functools.partial(_rank, spec.slate_size)
  return latent.make(settings, spec, _loss, rank=rank)


def _values(network: latent.Network, features: Array, state: Array) -> Array:
  """Q(s, e_i) of items, [M, D], [d] -> [M]."""
  directions = jax.lax.stop_gradient(latent.normalise(network.item(features)))
  return jax.vmap(network.critic, (None, 0))(state, directions)[:, 0]


def _rank(
  slate_size: int,
  network: latent.Network,
  catalogue: Catalogue,
  state: Array,
  action: Array,
  excluded: Array,
) -> base.Ranked:
  """The candidates by their values."""
  near = latent.nearest(network, catalogue, state, action, excluded)
  count = min(CANDIDATES * slate_size, catalogue.index.capacity)
  items = latent.best(near, count)
  values = _values(network, catalogue.features[items], state)
  return base.Ranked(items, values, near.allowed[items])


def _loss(step: latent.Step) -> tuple[Array, Metrics]:
  count, nothing = step.spec.slate_size, jnp.zeros(0, jnp.int32)
  ranked = _rank(
    *(count, step.target, step.catalogue),
    *(step.next_state, step.next_action, nothing),
  )
  next_values = ranked.scores[latent.best(ranked, count)]
  target = step.td_target(next_values.mean())
  targets = target + step.spec.reward.shares(step.transition.response)
  values = _values(step.own, step.shown, step.state)
  return latent.total(step, target, ((values - targets) ** 2).mean())
