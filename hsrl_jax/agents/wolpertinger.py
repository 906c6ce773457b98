"""Wolpertinger (Dulac-Arnold et al., arXiv 1512.07679) for slates.

The M items of the largest <a, e_i> are the candidates of the proto action a;
those of the largest Q(s, e_i) among them are shown. The critic is of single
items: each item shown has a target of its own,
y_k = r + (the item's share) + gamma (1 - terminated) mean_j Q'(s', e_j'),
where the e_j' are the slate that the target networks would show in s' (items
already seen included). With `item_credit` off the middle term is dropped. The
mean of y_k over the slate is the slate's own target. The critic sees directions
of embeddings, so that the proto action, at which the actor climbs, is of the
same kind. No gradient of the critic reaches the embeddings. For the rest see
agents/latent.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base, latent
from hsrl_jax.networks.heads import LatentActorCritic, normalise
from hsrl_jax.ops import masking, returns
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  Params,
  PRNGKey,
  Transition,
)

CANDIDATES = 5  # M, in slates.


@dataclasses.dataclass(frozen=True)
class Settings(base.ValueSettings, base.ItemCreditSettings):
  """Of Wolpertinger."""


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  network = latent.network(spec.network)
  choose = functools.partial(_choose, network, spec.slate_size)
  return base.Agent(
    init=functools.partial(latent.init, network),
    act=functools.partial(_act, network, choose),
    loss=functools.partial(_loss, network, choose, settings, spec.reward),
  )


def _item_values(
  network: LatentActorCritic,
  params: Params,
  catalogue: Catalogue,
  state: Array,
  items: Array,
) -> Array:
  """Q(s, e_i) of items, int32 [M] -> float32 [M]."""
  embedded = network.apply(params, catalogue.features[items], method="embed")
  directions = jax.lax.stop_gradient(normalise(embedded))
  values = functools.partial(network.apply, params, state, method="values")
  return jax.vmap(values)(directions)[:, 0]


def _choose(
  network: LatentActorCritic,
  slate_size: int,
  params: Params,
  catalogue: Catalogue,
  state: Array,
  action: Array,
  excluded: Array,
) -> tuple[Array, Array, base.Ranked]:
  """The slate, int32 [K], the items' values, float32 [K], and candidates."""
  embedded = network.apply(params, catalogue.features, method="embed")
  scores = base.usable(catalogue.index.active, embedded @ action, excluded)
  count = min(CANDIDATES * slate_size, catalogue.index.capacity)
  items = base.top(scores, count)
  values = _item_values(network, params, catalogue, state, items)
  allowed = scores[items] > masking.NEGATIVE
  best = base.top(jnp.where(allowed, values, masking.NEGATIVE), slate_size)
  return items[best], values[best], base.Ranked(items, values, allowed)


def _act(
  network: LatentActorCritic,
  choose,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
  excluded: Array,
  key: PRNGKey | None,
  noise: Array | float,
) -> base.Action:
  """See base.Agent.act."""
  state = network.apply(params, catalogue.features, observation, method="state")
  action = network.apply(params, state, method="act")
  if key is not None:
    action = latent.explore(action, key, noise)
  slate, _, ranked = choose(params, catalogue, state, action, excluded)
  return base.Action(slate, jnp.zeros(len(slate)), action, ranked=ranked)


def _loss(
  network: LatentActorCritic,
  choose,
  settings: Settings,
  reward: Reward,
  params: Params,
  target_params: Params,
  catalogue: Catalogue,
  transition: Transition,
  key: PRNGKey,
  progress: Array,
) -> tuple[Array, Metrics]:
  """See base.Agent.loss."""
  del progress
  step = latent.look(network, params, target_params, catalogue, transition, key)
  nothing = jnp.zeros(0, jnp.int32)
  _, next_values, _ = choose(
    target_params, catalogue, step.next_state, step.next_action, nothing
  )
  target = returns.td_target(
    transition.reward,
    transition.terminated,
    next_values.mean(),
    settings.discount,
  )
  targets = target
  if settings.item_credit:
    targets = target + reward.shares(transition.response)
  values = _item_values(
    network, params, catalogue, step.state, transition.slate
  )
  return latent.total(
    network,
    settings,
    params,
    catalogue,
    transition,
    step,
    target,
    critic=((values - targets) ** 2).mean(),
  )
