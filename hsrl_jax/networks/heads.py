"""Heads on an encoder's state: item logits, bounded vectors, latent actions."""

from collections.abc import Sequence

import flax.linen as nn
import jax

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
