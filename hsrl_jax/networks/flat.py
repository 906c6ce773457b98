"""A policy with one logit per item, in place of the hierarchy of tokens."""

import flax.linen as nn

from hsrl_jax.types import Array


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
