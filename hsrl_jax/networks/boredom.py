"""How likes change with what was shown and liked lately, fitted to logs."""

import flax.linen as nn

from hsrl_jax.types import Array


class BoredomModel(nn.Module):
  """Logits of likes of ONE user after what was shown lately; callers vmap.

  All topics are looked at alike: what is found of a topic changes the logits of
  its own items, and the largest of what is found of any topic those of all.
  """

  # Widths of the layers that all topics share.
  hidden: tuple[int, ...] = (32, 16)

  @nn.compact
  def __call__(self, counts: Array, topics: Array, logits: Array) -> Array:
    """Returns float32 [K] logits.

    Args:
      counts: float32 [T + 1, F], of what was shown lately, by topic; row 0 is
        of items without one.
      topics: int32 [K], of the items.
      logits: float32 [K], of the click model.
    """
    total = counts.sum(0)
    # Beside the counts of a topic their total, so that shares can be told.
    first, *others = self.hidden
    x = nn.Dense(first, name="topic")(counts)
    x = nn.relu(x + nn.Dense(first, use_bias=False, name="all")(total)[None])
    for width in others:
      x = nn.relu(nn.Dense(width)(x))
    # Row 0, of items without a topic, makes nothing boring.
    largest = x[1:].max(0)
    zeros = nn.initializers.zeros
    own = nn.Dense(1, kernel_init=zeros, name="own")(x)[:, 0]
    everything = nn.Dense(1, kernel_init=zeros, name="everything")(largest)
    scale = self.param("scale", nn.initializers.ones, ())
    return scale * logits + own[topics] + everything
