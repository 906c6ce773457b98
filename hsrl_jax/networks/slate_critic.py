"""The value of a state and of what was chosen so far in a slate."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.networks.slate_policy import SLOTS, Chosen, Tokens, slot_of
from hsrl_jax.types import Array, Observation, PRNGKey


class PrefixCritic(nn.Module):
  """Values of a state and of what was chosen so far in a slate."""

  levels: int  # L.
  encoder: tuple[int, int, int, float]  # Sizes of its own Encoder.
  widths: Sequence[int] = (64, 64)  # Of the hidden layers.

  @nn.compact
  def __call__(
    self,
    tokens: Tokens,
    observation: Observation,
    hidden: Array,
    user: Array,
    chosen: Chosen,
    partial: Array,
    key: PRNGKey | None = None,
  ) -> Array:
    """Values before each choice, float32 [K, L].

    Args:
      tokens: of the catalogue.
      observation: of the user.
      hidden: float32 [Z], what the critic alone sees.
      user: float32 [W + 1], the response head.
      chosen: before each slot, leaves [K, 2, ...].
      partial: float32 [K, L, W], sums of the vectors of the tokens above.
      key: of the dropout.
    """
    state = Encoder(*self.encoder, name="encoder")(
      tokens.features, *observation, key
    )
    state = jnp.concatenate([state, hidden, user])
    first, *others = self.widths
    slot = [
      chosen.counts.reshape(len(partial), -1) / 2.0,
      chosen.vectors.reshape(len(partial), -1) / 2.0,
      jax.nn.one_hot(slot_of(jnp.arange(len(partial))), SLOTS),
    ]
    slot = jnp.concatenate(slot, 1)
    levels = jnp.eye(self.levels)[None, : partial.shape[1]]
    choice = jnp.concatenate(
      [partial, jnp.broadcast_to(levels, (*partial.shape[:2], self.levels))], -1
    )
    x = nn.Dense(first, name="state")(state)[None, None]
    x = x + nn.Dense(first, use_bias=False, name="slot")(slot)[:, None]
    x = nn.relu(x + nn.Dense(first, use_bias=False, name="choice")(choice))
    for width in others:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(1, kernel_init=nn.initializers.normal(0.01))(x)[..., 0]
