"""Heads on an encoder's state: item logits, vectors, values of slates."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks import critic, encoder
from hsrl_jax.types import Array, Observation, PRNGKey

_EPSILON = 1e-6


class ItemLogits(nn.Module):
  """logits_i = <x, w_i> + b_i, of ONE vector x; callers vmap.

  Attributes:
    free: each item has a row (w_i, b_i) of its own, which says nothing of an
      item that was never trained; else the row is a linear map of the item's
      features, as in the public benchmark.
  """

  free: bool = False

  @nn.compact
  def __call__(self, item_features: Array, x: Array) -> tuple[Array, Array]:
    """Returns the logits, float32 [N + 1], and the bias of responses, [].

    Args:
      item_features: float32 [N + 1, D], row 0 for padding.
      x: float32 [d].
    """
    width = x.shape[-1]
    zeros = nn.initializers.zeros
    if self.free:
      shape = (item_features.shape[0], width)
      rows = self.param("row", nn.initializers.normal(width**-0.5), shape)
      bias = self.param("bias", zeros, shape[:1])
    else:
      rows = nn.Dense(width, use_bias=False, name="row")(item_features)
      bias = nn.Dense(1, use_bias=False, kernel_init=zeros, name="bias")(
        item_features
      )[:, 0]
    return rows @ x + bias, self.param("response_bias", zeros, ())


class Bounded(nn.Module):
  """An MLP with its last layer in (-1, 1), of ONE vector; callers vmap.

  Attributes:
    width: of the latent space.
    hidden: widths of the hidden layers.
  """

  width: int
  hidden: Sequence[int] = ()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[any] -> [width]."""
    for width in self.hidden:
      x = nn.relu(nn.Dense(width)(x))
    return nn.tanh(nn.Dense(self.width)(x))


def normalise(x: Array) -> Array:
  """Scales vectors to a root mean square of 1, [..., d] -> [..., d]."""
  square = (x * x).mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(square + _EPSILON)


class LatentActorCritic(nn.Module):
  """State s, action a, embeddings e_i and Q(s, a) of ONE user; callers vmap.

  The slate of the largest <a, e_i> does not depend on the length of a, so all
  latent actions have a root mean square of 1.

  Attributes:
    width: d of encoder, actions and embeddings.
    layers: of the encoder.
    heads: of the encoder.
    dropout: of the encoder.
    critic_hidden: hidden widths of each critic.
    critics: C, critics that differ in their initialisation alone.
  """

  width: int = 32
  layers: int = 2
  heads: int = 4
  dropout: float = 0.1
  critic_hidden: Sequence[int] = (256, 64)
  critics: int = 1

  def setup(self):
    self.encoder = encoder.Encoder(
      self.width, self.layers, self.heads, self.dropout
    )
    self.actor = nn.Dense(self.width)
    self.item = nn.Dense(self.width)
    self.critic = critic.ActionCritic(self.critic_hidden, self.critics)
    # The bias b of the behaviour loss (docs/method.md).
    self.response_bias = self.param("response_bias", nn.initializers.zeros, ())

  def state(
    self, features: Array, observation: Observation, key: PRNGKey | None = None
  ) -> Array:
    """s, [d]; `features` is float32 [N + 1, D], `key` of the dropout."""
    return self.encoder(features, *observation, key)

  def act(self, state: Array) -> Array:
    """pi(s), [d]."""
    return normalise(self.actor(state))

  def embed(self, features: Array) -> Array:
    """e_i, [..., D] -> [..., d]."""
    return self.item(features)

  def values(self, state: Array, action: Array) -> Array:
    """Q_c(s, a), [d], [d] -> [C]."""
    return self.critic(state, action)

  def response_logits(self, features: Array, action: Array) -> Array:
    """<a, e_i> + b of items, [K, D], [d] -> [K]."""
    return self.item(features) @ action + self.response_bias

  def __call__(self, features: Array, observation: Observation) -> Array:
    """For initialisation: touches every parameter."""
    state = self.state(features, observation)
    action = self.act(state)
    values = self.values(state, action)
    return values.sum() + self.response_logits(features[:1], action).sum()


class SlateItems(NamedTuple):
  """What `SlateValues` makes of N items.

  Attributes:
    rows: float32 [N + 1, d + D], w_i and x_i.
    bias: float32 [N + 1], b_i.
    added: float32 [N + 1, d + D], what an item in a slate adds to its contexts.
  """

  rows: Array
  bias: Array
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

  Attributes:
    width: d of the state, w_i and h.
    hidden: widths of the MLP.
  """

  width: int = 32
  hidden: Sequence[int] = (256, 64)

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
    known = features * jax.lax.rsqrt(square + _EPSILON)
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
