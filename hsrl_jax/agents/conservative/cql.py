"""Discrete CQL (Kumar et al., arXiv 2006.04779) over the places of a slate.

A slate is K steps of one item each, as in on-policy HSRL: Q(s, b, i) is the
value of item i after the items b of the places before it, where the places
after it are filled as they were logged. The reward of a place is that of its
item, r_k = R + shares_k, where a slate earns the mean. With double Q-learning
(arXiv 1509.06461) from slate to slate,

  y_k = sum_{j >= k} r_j + gamma (1 - terminated) Q'(s', (), i*);
  loss = (Q_k - y_k)^2 + w (log sum_i exp Q(s, b_k, i) - Q_k),

of one place k, drawn for each transition and update. Within a slate nothing is
bootstrapped: a maximum in each of K steps without a discount diverges. The
second term, with w the conservative weight, lowers what was not logged. Of the
conservative methods it is the simplest here: one value, no model of the logging
policy, no propensities, and the sum over all items is one product. The slate is
greedy, place by place.
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
  place_key, dropout_key = sampling.split(key, 2)
  slate, features = transition.slate, catalogue.features
  place = sampling.index(place_key, len(slate))
  left = _left(slate, catalogue.index.active)
  state = networks.state(params, catalogue, transition.observation, dropout_key)
  values = networks.bound(params)
  items = values.items(features)
  context = values.contexts(state, items, slate)[place]
  q = jnp.where(left[place], items.values(context), masking.NEGATIVE)
  taken = q[slate[place]]

  # The parameters say which item comes next, the target's what it is worth.
  next_q = items.values(_after(networks, params, catalogue, transition))
  next_q = jnp.where(catalogue.index.active, next_q, masking.NEGATIVE)
  known = networks.bound(target_params).items(features)
  after = _after(networks, target_params, catalogue, transition)
  rewards = transition.reward + networks.spec.reward.shares(transition.response)
  rest = jnp.where(jnp.arange(len(slate)) >= place, rewards, 0.0).sum()
  y = returns.td_target(
    rest,
    transition.terminated,
    known.value(after, next_q.argmax()),
    networks.settings.discount,
  )
  error = (taken - y) ** 2
  conservative = jax.nn.logsumexp(q) - taken
  loss = error + networks.settings.conservative_weight * conservative
  return loss, {
    "loss": loss,
    "critic_loss": error,
    "conservative_loss": conservative,
    "value": taken,
    "target": y,
  }


def _after(
  networks: _Networks,
  params: Params,
  catalogue: base.ActionSpace,
  transition: Transition,
) -> Array:
  """The context of the first place of the next slate, [d + 1]."""
  state = networks.state(params, catalogue, transition.next_observation)
  nothing = jnp.zeros(networks.spec.network.width)
  return networks.bound(params).context(state, nothing, 0)


def _left(slate: Array, active: Array) -> Array:
  """Which items each place may show, bool [K, N + 1]: not those before it."""
  count = len(slate)
  place, before = jnp.tril_indices(count, -1)
  left = jnp.broadcast_to(active, (count, len(active)))
  return left.at[place, slate[before]].set(False)
