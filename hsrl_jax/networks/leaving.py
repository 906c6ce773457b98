"""Which items make a user leave, learned from who left."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.types import Array

_SCALE = 4.0  # Of counts.
START = -6.0  # Logits of leaving at the start of training.
_LEAST = 1e-6


class Leaving(NamedTuple):
  """Logits by which an item, or all else, makes ONE user leave."""

  features: Array  # float32 [D], of each feature of an item.
  item: Array  # float32 [], of any item.
  anyway: Array  # float32 [], of all that is not an item.


class LeaveHead(nn.Module):
  """Looks at each feature, and at how much of it was shown lately.

  So it can learn that a kind of items drives away which was shown too often,
  where features tell kinds apart. All features share all but a vector.
  """

  widths: tuple[int, int] = (32, 16)  # Of the hidden layers.

  @nn.compact
  def __call__(self, features: Array, shown: Array, rows: Array) -> Leaving:
    """Returns Leaving.

    Args:
      features: float32 [N + 1, D], of all items.
      shown: int32 [T], items.
      rows: float32 [A, T], in which each of them counts.
    """
    first, second = self.widths
    zeros, normal = nn.initializers.zeros, nn.initializers.normal
    own = self.param("own", normal(0.1), (features.shape[1], first))
    # Whatever the units of a feature, it begins with at most 1.
    scale = self.param("scale", lambda key: 1.0 / largest(features))
    counts = (rows @ features[shown] * scale[None]).T / _SCALE
    x = nn.relu(nn.Dense(first, name="counts")(counts) + own)
    x = nn.relu(nn.Dense(second, name="hidden")(x))
    of_features = nn.Dense(1, kernel_init=zeros, name="out")(x)[:, 0]
    bias = nn.initializers.constant(START)
    always = nn.Dense(2, kernel_init=zeros, bias_init=bias, name="always")
    return Leaving(scale * of_features, *always(rows.sum(1) / _SCALE))


def largest(features: Array) -> Array:
  """The largest size of each feature, 1 of those that are 0, [N, D] -> [D]."""
  size = jnp.abs(features).max(0)
  return jnp.where(size > 0, size, 1.0)


def hazards(leaving: Leaving, features: Array) -> Array:
  """Logits by which items make the user leave, float32 [..., D] -> [...]."""
  return features @ leaving.features + leaving.item


def loss(hazards: Array, anyway: Array, left: Array) -> Array:
  """Cross-entropy of whether the user left, [].

  The user stays where no item, and nothing else, made the user leave.

  Args:
    hazards: float32 [K], the logit by which each item does.
    anyway: float32 [], the logit of all else.
    left: float32 [], 1 where the user left.
  """
  stayed = jax.nn.log_sigmoid(-hazards).sum() + jax.nn.log_sigmoid(-anyway)
  stayed = jnp.minimum(stayed, -_LEAST)
  return -jnp.where(left > 0, jnp.log(-jnp.expm1(stayed)), stayed)
