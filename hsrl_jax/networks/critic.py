"""The multi-level critic (MLC) of states."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.types import Array


class Value(nn.Module):
  """An MLP with one output."""

  hidden: Sequence[int]  # Widths of the hidden layers.

  @nn.compact
  def __call__(self, context: Array) -> Array:
    """[..., d] -> [...]."""
    for width in self.hidden:
      context = nn.relu(nn.Dense(width)(context))
    return nn.Dense(1)(context)[..., 0]


class Critic(nn.Module):
  """V(s) = sum_l softmax(w)_l V_l(c_l) with trained w (docs/policy.md)."""

  hidden: Sequence[int] = (256, 64)  # Widths of the hidden layers of each V_l.

  @nn.compact
  def __call__(self, contexts: Array) -> tuple[Array, Array]:
    """Values of ONE state; callers vmap.

    Args:
      contexts: float32 [L + 1, d], or fewer of them.

    Returns:
      V(s), float32 [], and the levels' own values, float32 [L + 1].
    """
    levels = contexts.shape[0]
    values = nn.vmap(
      Value, variable_axes={"params": 0}, split_rngs={"params": True}
    )(self.hidden, name="value")(contexts)
    weight = self.param("level_weight", nn.initializers.zeros, (levels,))
    return jnp.dot(jax.nn.softmax(weight), values), values
