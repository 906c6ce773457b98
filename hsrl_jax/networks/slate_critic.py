"""The value of a state and of what was chosen so far in a slate."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.networks.slate_policy import (
  SLOTS,
  Chosen,
  Tokens,
  counts_lately,
  likeness,
  slot_of,
)
from hsrl_jax.types import Array, Observation, PRNGKey, Shown


class Kinds(nn.Module):
  """Looks at each kind of items alike (docs/method.md, Sequential slates).

  A kind is a token of the first level. Whether users have had enough of a kind
  is one question for all kinds, so that one network answers it; each kind adds
  a vector of its own.

  Attributes:
    semantic: whether what was counted of a kind counts for kinds like it too.
    hidden: widths.
  """

  semantic: bool = True
  hidden: tuple[int, int] = (32, 16)

  @nn.compact
  def __call__(self, tokens: Tokens, shown: Shown, chosen: Array) -> Array:
    """The sums over all kinds of what is found, and the largest of them.

    Args:
      tokens: of the catalogue.
      shown: of the user.
      chosen: float32 [K, 2, V], counts of what a slate has before each slot.

    Returns:
      float32 [K, 2 hidden[-1]].
    """
    count, width = chosen.shape[-1], self.hidden[0]
    like = likeness(tokens, count, self.semantic)
    lately = counts_lately(shown, tokens.first, count)
    lately = jnp.concatenate([lately, lately @ like]).T
    chosen = jnp.concatenate([chosen, chosen @ like], 1).swapaxes(1, 2)
    x = self.param("own", nn.initializers.normal(0.1), (count, width))
    x = x + nn.Dense(width, name="lately")(lately)
    x = x[None] + nn.Dense(width, use_bias=False, name="chosen")(chosen)
    x = nn.relu(nn.Dense(self.hidden[1], name="out")(nn.relu(x)))
    return jnp.concatenate([x.sum(1) / 4.0, x.max(1)], 1)


class PrefixCritic(nn.Module):
  """Values of a state and of what was chosen so far in a slate.

  Attributes:
    levels: L.
    encoder: sizes of its own Encoder.
    widths: of the hidden layers.
    kinds: what looks at each kind of items; None: nothing does.
  """

  levels: int
  encoder: tuple[int, int, int, float]
  widths: Sequence[int] = (64, 64)
  kinds: Kinds | None = None

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
    if self.kinds is not None:
      slot.append(self.kinds(tokens, observation.shown, chosen.counts))
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
