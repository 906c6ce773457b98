"""Actor and critic of a latent action, a direction among item embeddings."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from hsrl_jax.networks import critic, encoder
from hsrl_jax.types import Array, Observation, PRNGKey

_EPSILON = 1e-6


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
    # The bias b of the behaviour loss (DESIGN, section 6).
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
