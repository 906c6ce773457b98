"""From vectors to points of a bounded latent space."""

from collections.abc import Sequence

import flax.linen as nn

from hsrl_jax.types import Array


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
