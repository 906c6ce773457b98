"""Discrete CQL (Kumar et al., arXiv 2006.04779) over the places of a slate.

A slate is K steps of one item each, as in on-policy HSRL: Q(s, b, i) is the
value of item i after the items b of the places before it. Within a slate
nothing is discounted; after its last place comes the next state. The reward of
a place is r_k = R + shares_k, the item's own where a slate earns the mean. With
double Q-learning (arXiv 1509.06461),

  y_k = r_k + Q'(s, b_{k+1}, i*) for k < K;
  y_K = r_K + gamma (1 - terminated) Q'(s', (), i*);
  loss = mean_k (Q_k - y_k)^2 + w mean_k (log sum_i exp Q(s, b_k, i) - Q_k).

The second term, with w the conservative weight, lowers what was not logged. Of
the conservative methods it is the simplest here: one value, no model of the
logging policy, no propensities, and the sum over all items is one product. The
slate is greedy, place by place.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.checked import setting
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.networks.heads import SlateValues
from hsrl_jax.ops import masking, returns, sampling
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  Params,
  PRNGKey,
  Transition,
)


@dataclasses.dataclass(frozen=True)
class Settings(base.Settings):
  """Of CQL.

  Attributes:
    discount: gamma.
    conservative_weight: of the term that lowers the values of what was not
      logged; 0: Q-learning as it is.
  """

  discount: float = setting(0.9, least=0, most=1)
  conservative_weight: float = setting(0.1, least=0)


class _Networks(NamedTuple):
  """The modules, and what the agent was built for."""

  encoder: Encoder
  values: SlateValues
  settings: Settings
  spec: base.Spec

  def state(
    self,
    params: Params,
    catalogue: base.ActionSpace,
    observation: Observation,
    key: PRNGKey | None = None,
  ) -> Array:
    """s, [d]; `key` is of the dropout."""
    return self.encoder.apply(
      params["encoder"], catalogue.features, *observation, key
    )

  def bound(self, params: Params) -> SlateValues:
    """The values with their parameters."""
    return self.values.bind(params["items"])


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  values = SlateValues(spec.network.width, spec.network.critic_hidden)
  networks = _Networks(base.encoder(spec.network), values, settings, spec)
  parts = (_init, _act, _loss, _scores)
  init, act, loss, scores = (functools.partial(x, networks) for x in parts)
  return base.Agent(init, act, loss, scores=scores)


def _init(
  networks: _Networks,
  key: PRNGKey,
  catalogue: base.ActionSpace,
  observation: Observation,
) -> Params:
  """See base.Agent.init."""
  keys, features = jax.random.split(key), catalogue.features
  state = jnp.zeros(networks.spec.network.width)
  return {
    "encoder": networks.encoder.init(keys[0], features, *observation),
    "items": networks.values.init(keys[1], features, state),
  }


def _scores(
  networks: _Networks,
  params: Params,
  catalogue: base.ActionSpace,
  observation: Observation,
) -> Array:
  """See base.Agent.scores: the values of all items in the first place."""
  state = networks.state(params, catalogue, observation)
  return networks.bound(params)(catalogue.features, state)


def _act(
  networks: _Networks,
  params: Params,
  catalogue: base.ActionSpace,
  observation: Observation,
  excluded: Array,
  key: PRNGKey | None,
  temperature: Array | float,
) -> base.Action:
  """See base.Agent.act; each place has Gumbel noise of its own."""
  count = networks.spec.slate_size
  state, values = (
    networks.state(params, catalogue, observation),
    networks.bound(params),
  )
  items = values.items(catalogue.features)
  noise = jnp.zeros((count, 1))
  if key is not None:
    shape = (count, len(catalogue.features))
    noise = sampling.gumbel(key, shape) * temperature

  def place(carry, inputs):
    before, allowed = carry
    number, noise = inputs
    q = items.values(values.context(state, before, number))
    item = jnp.argmax(jnp.where(allowed, q + noise, masking.NEGATIVE))
    return (before + items.added[item], allowed.at[item].set(False)), item

  start = (
    jnp.zeros(items.added.shape[1]),
    base.permitted(catalogue.index.active, excluded),
  )
  _, slate = jax.lax.scan(place, start, (jnp.arange(count), noise))
  return base.Action(slate.astype(jnp.int32), jnp.zeros(count), jnp.zeros(0))


def _loss(
  networks: _Networks,
  params: Params,
  target_params: Params,
  catalogue: base.ActionSpace,
  transition: Transition,
  key: PRNGKey,
  progress: Array,
) -> tuple[Array, Metrics]:
  """See base.Agent.loss."""
  del progress
  slate = transition.slate
  state = networks.state(params, catalogue, transition.observation, key)
  values = networks.bound(params)
  items = values.items(catalogue.features)
  q = jax.vmap(items.values)(values.contexts(state, items, slate))
  q = jnp.where(_left(slate, catalogue.index.active), q, masking.NEGATIVE)
  taken = q[jnp.arange(len(slate)), slate]
  y = _targets(networks, params, target_params, catalogue, transition, q)
  error = ((taken - y) ** 2).mean()
  conservative = (jax.nn.logsumexp(q, 1) - taken).mean()
  loss = error + networks.settings.conservative_weight * conservative
  return loss, {
    "loss": loss,
    "critic_loss": error,
    "conservative_loss": conservative,
    "value": taken[0],
    "target": y[0],
  }


def _targets(
  networks: _Networks,
  params: Params,
  target_params: Params,
  catalogue: base.ActionSpace,
  transition: Transition,
  q: Array,
) -> Array:
  """y of each place, float32 [K], no gradient.

  The parameters say which item comes next, the target's what it is worth.

  Args:
    networks: of the agent.
    params: of the networks.
    target_params: their average.
    catalogue: the items.
    transition: what happened.
    q: float32 [K, N + 1], by `params`, of what each place may show.
  """
  observation = transition.next_observation
  first = _scores(networks, params, catalogue, observation)
  first = jnp.where(catalogue.index.active, first, masking.NEGATIVE)
  values = networks.bound(target_params)
  items = values.items(catalogue.features)
  state = networks.state(target_params, catalogue, transition.observation)
  contexts = values.contexts(state, items, transition.slate)
  within = jax.vmap(items.value)(contexts, q.argmax(1))
  next_state = networks.state(target_params, catalogue, observation)
  context = values.context(next_state, jnp.zeros(items.added.shape[1]), 0)
  after = returns.td_target(
    jnp.float32(0),
    transition.terminated,
    items.value(context, first.argmax()),
    networks.settings.discount,
  )
  shares = networks.spec.reward.shares(transition.response)
  y = transition.reward + shares + jnp.append(within[1:], after)
  return jax.lax.stop_gradient(y)


def _left(slate: Array, active: Array) -> Array:
  """Which items each place may show, bool [K, N + 1]: not those before it."""
  count = len(slate)
  place, before = jnp.tril_indices(count, -1)
  left = jnp.broadcast_to(active, (count, len(active)))
  return left.at[place, slate[before]].set(False)
