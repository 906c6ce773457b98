"""Discrete CQL (Kumar et al., arXiv 2006.04779) over the places of a slate.

A slate is K steps of one item each, as in on-policy HSRL: Q(s, b, i) is the
value of item i after the items b of the places before it, where the places
after it are filled as they were logged. It has two parts, since what an item
earns itself is known with little noise, and what follows with much:

  Q(s, b, i) = r(s, b, i) + K f(s, b, i).

The reward of a place is that of its item, r_k = R + shares_k, where a slate
earns the mean. With double Q-learning (arXiv 1509.06461) from slate to slate::

  y_k = sum_{j > k} r_j / K + gamma (1 - terminated) Q'(s', (), i*) / K;
  loss = mean_k (r(s, b_k, i_k) - r_k)^2 + mean_k (f(s, b_k, i_k) - y_k)^2
         + w (log sum_i exp Q(s, b_k, i) - Q_k), of one place k that is drawn.

Within a slate nothing is bootstrapped: a maximum in each of K steps without a
discount diverges. The last term, with w the conservative weight, lowers what
was not logged. Of the conservative methods it is the simplest here: one value,
no model of the logging policy, no propensities, and the sum over all items is
one product. The slate is greedy, place by place.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import scored
from hsrl_jax.checked import setting
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.ops import masking, plackett_luce, returns, sampling
from hsrl_jax.types import Array

PLACES = "places"  # Of the parameters: K in training, for slates of any size.


@dataclasses.dataclass(frozen=True)
class Settings(base.DiscountSettings):
  """Of CQL.

  Attributes:
    conservative_weight: of the term that lowers the values of what was not
      logged; 0: Q-learning as it is.
  """

  conservative_weight: float = setting(0.1, least=0)


class SlateItems(NamedTuple):
  """N items as `SlateValues` embeds them."""

  rows: Array  # float32 [N + 1, d + D], w_i and x_i.
  bias: Array  # float32 [N + 1], b_i.
  # float32 [N + 1, d + D], what an item in a slate adds to its contexts.
  added: Array

  def values(self, context: Array) -> Array:
    """Values of all items, [d + D + 1] -> [N + 1]."""
    return self.rows @ context[:-1] + self.bias + context[-1]

  def value(self, context: Array, item: Array) -> Array:
    """The value of one item, [d + D + 1], int32 [] -> []."""
    return context[:-1] @ self.rows[item] + self.bias[item] + context[-1]


class SlateValues(nn.Module):
  """Q(s, b, i) = <h, w_i> + b_i + v + a sum_b <x_b, x_i> of item i in a slate.

  The items b are those before it. h, v and a are an MLP of the state, the sum
  of what the items b add, and their number, of ONE user; callers vmap. x_i are
  the item's features at length one: that items like those before are worth
  less, or more, is learned of all kinds of items at once, since slates full of
  one kind are rarely logged.
  """

  width: int = 32  # D of the state, w_i and h.
  hidden: Sequence[int] = (256, 64)  # Widths of the MLP.

  def setup(self):
    zeros = nn.initializers.zeros
    self.row = nn.Dense(self.width, use_bias=False)
    self.bias = nn.Dense(1, use_bias=False, kernel_init=zeros)
    self.added = nn.Dense(self.width, use_bias=False)
    self.layers = [nn.Dense(width) for width in self.hidden]
    self.out = nn.Dense(self.width + 1)
    self.alike = nn.Dense(1, kernel_init=zeros)

  def items(self, features: Array) -> SlateItems:
    """Of all items; `features` is float32 [N + 1, D]."""
    bias = self.bias(features)[:, 0]
    square = (features**2).sum(1, keepdims=True)
    known = features * jax.lax.rsqrt(square + 1e-6)
    return SlateItems(
      jnp.concatenate([self.row(features), known], 1),
      bias,
      jnp.concatenate([self.added(features), known], 1),
    )

  def context(self, state: Array, before: Array, place: Array) -> Array:
    """h, a times the sum of x_b, and v, [d + D + 1].

    Args:
      state: float32 [d].
      before: float32 [d + D], sum of what the items before add.
      place: int32 [], how many they are.
    """
    number = jnp.asarray(place, jnp.float32)[None] / 10.0
    x = jnp.concatenate([state, before[: self.width], number])
    for layer in self.layers:
      x = nn.relu(layer(x))
    out = self.out(x)
    alike = self.alike(x) * before[self.width :]
    return jnp.concatenate([out[:-1], alike, out[-1:]])

  def contexts(self, state: Array, items: SlateItems, slate: Array) -> Array:
    """Of each place of a slate, int32 [K] -> [K, d + D + 1]."""
    added = items.added[slate]
    before = jnp.cumsum(added, 0) - added
    context = jax.vmap(self.context, (None, 0, 0))
    return context(state, before, jnp.arange(len(slate)))

  def __call__(self, features: Array, state: Array) -> Array:
    """Values of all items in the first place, [N + 1]."""
    items = self.items(features)
    nothing = jnp.zeros(items.added.shape[1])
    return items.values(self.context(state, nothing, 0))


class _Cql(NamedTuple):
  """CQL with the modules of s, and of r and f; see base.Agent."""

  encoder: Encoder
  values: SlateValues
  settings: Settings
  spec: base.Spec

  def init(self, key, catalogue, observation):
    state = jnp.zeros(self.spec.network.width)
    return {PLACES: jnp.float32(self.spec.slate_size)} | scored.init(
      key,
      encoder=(self.encoder, catalogue.features, *observation),
      items=(self.values, catalogue.features, state),
      future=(self.values, catalogue.features, state),
    )

  def state(self, params, catalogue, observation, key=None):
    """s, [d]; `key` is of the dropout."""
    return base.encoded(self.encoder, params, catalogue, observation, key)

  def bound(self, params):
    """r and f with their parameters."""
    return self.values.bind(params["items"]), self.values.bind(params["future"])

  def first(self, params, catalogue, observation):
    """Q of all items in the first place, [N + 1]."""
    state = self.state(params, catalogue, observation)
    earned, future = (x(catalogue.features, state) for x in self.bound(params))
    return earned + jax.lax.stop_gradient(params[PLACES]) * future

  def act(self, params, catalogue, observation, excluded, key, temperature):
    """Each place has Gumbel noise of its own."""
    count = self.spec.slate_size
    state = self.state(params, catalogue, observation)
    modules = self.bound(params)
    items = [x.items(catalogue.features) for x in modules]

    def place(before, number):
      earned, future = (
        own.values(module.context(state, sum_, number))
        for module, own, sum_ in zip(modules, items, before, strict=True)
      )

      def after(item, allowed):
        del allowed
        added = zip(before, items, strict=True)
        return tuple(x + own.added[item] for x, own in added), q[item]

      q = earned + params[PLACES] * future
      return q, after

    slate, propensity, value = plackett_luce.in_turn(
      place,
      (jnp.zeros(items[0].added.shape[1]),) * 2,
      base.permitted(catalogue.index.active, excluded),
      count,
      key,
      temperature,
    )
    return base.Action(slate, value, jnp.zeros(0), propensity=propensity)

  def loss(self, params, target_params, catalogue, transition, key, progress):
    del progress
    place_key, dropout_key = sampling.split(key, 2)
    slate, count = transition.slate, self.spec.slate_size
    place = sampling.index(place_key, len(slate))
    state = self.state(params, catalogue, transition.observation, dropout_key)
    taken, of_place = [], []
    for module in self.bound(params):
      items = module.items(catalogue.features)
      contexts = module.contexts(state, items, slate)
      taken.append(jax.vmap(items.value)(contexts, slate))
      of_place.append(items.values(contexts[place]))
    rewards = transition.reward + self.spec.reward.shares(transition.response)
    y = self.future(params, target_params, catalogue, transition, rewards)
    reward_loss = ((taken[0] - rewards) ** 2).mean()
    error = ((taken[1] - y) ** 2).mean()
    left = _left(slate, catalogue.index.active)[place]
    q = jnp.where(left, of_place[0] + count * of_place[1], masking.NEGATIVE)
    conservative = jax.nn.logsumexp(q) - q[slate[place]]
    weight = self.settings.conservative_weight
    loss = reward_loss + error + weight * conservative
    return loss, {
      "loss": loss,
      "reward_loss": reward_loss,
      "critic_loss": error,
      "conservative_loss": conservative,
      "value": taken[1].mean(),
      "target": y.mean(),
    }

  def future(self, params, target_params, catalogue, transition, rewards):
    """y of each place, [K], no gradient; `rewards`, [K], are r_k.

    The parameters say which item comes next, the target's what it is worth.
    """
    observation = transition.next_observation
    q = self.first(params, catalogue, observation)
    best = jnp.where(catalogue.index.active, q, masking.NEGATIVE).argmax()
    value = self.first(target_params, catalogue, observation)[best]
    after = jnp.cumsum(rewards[::-1])[::-1] - rewards
    count, discount = self.spec.slate_size, self.settings.discount
    return returns.td_target(
      after / count, transition.terminated, value / count, discount
    )


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  values = SlateValues(spec.network.width, spec.network.critic_hidden)
  cql = _Cql(base.encoder(spec.network), values, settings, spec)
  return base.Agent(
    cql.init,
    cql.act,
    cql.loss,
    scores=cql.first,
    frozen=(PLACES,),
    place_by_place=True,
  )


def _left(slate: Array, active: Array) -> Array:
  """Which items each place may show, bool [K, N + 1]: not those before it."""
  count = len(slate)
  place, before = jnp.tril_indices(count, -1)
  left = jnp.broadcast_to(active, (count, len(active)))
  return left.at[place, slate[before]].set(False)
