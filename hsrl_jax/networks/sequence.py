"""Rows of items, and the states after each item of packed sequences."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks import encoder
from hsrl_jax.types import Array, PRNGKey


class ItemRows(nn.Module):
  """Vectors of items out of what is there of each: id, tokens, features.

  The sum of an embedding of the item's id, an embedding of each of its tokens
  and a linear map of its features. Computed once, the rows can be put where an
  Encoder or a policy expects item features.
  """

  width: int  # Of the rows.
  num_items: int  # N.
  levels: int = 0  # L, 0 where tokens are not used.
  vocab_size: int = 0  # V.
  # Whether items have an embedding of their own; zeros for an item above N,
  # which came later. Without, items without tokens and features are all alike.
  ids: bool = True

  @nn.compact
  def __call__(
    self,
    item: Array,
    tokens: Sequence[Array] | None = None,
    features: Array | None = None,
  ) -> Array:
    """Returns float32 [..., width]; 0 for padding.

    Args:
      item: int32 [...], ids; 0 for padding.
      tokens: per level, [N + 1] of all items; used where L is above 0.
      features: float32 [N + 1, D] of all items, or None.
    """
    small = nn.initializers.normal(0.02)
    rows = jnp.zeros((*item.shape, self.width))
    if self.ids:
      table = self.param("id", small, (self.num_items + 1, self.width))
      known = (item <= self.num_items)[..., None]
      rows = rows + jnp.where(known, table[item], 0.0)
    if self.levels:
      shape = (self.levels, self.vocab_size, self.width)
      table = self.param("token", small, shape)
      for level in range(self.levels):
        rows = rows + table[level, tokens[level][item]]
    if features is not None:
      scale = self.param("feature_scale", lambda key: _unit_scale(features))
      scaled = jnp.broadcast_to(scale, features[item].shape) * features[item]
      rows = rows + nn.Dense(self.width, name="feature")(scaled)
    return jnp.where((item > 0)[..., None], rows, 0.0)


def _unit_scale(features: Array) -> Array:
  """Factor that gives rows a mean square length of one; row 0 is padding."""
  square = (features**2).sum() / max(len(features) - 1, 1)
  return jax.lax.rsqrt(jnp.maximum(square, 1e-12))


class SequenceEncoder(nn.Module):
  """SASRec (arXiv 1808.09781) at every position of a row of sequences.

  Layers are pre-norm: with the post-norm layers of the Encoder, and with a map
  and a norm between an item's row and the first layer, NDCG@10 of the next item
  of Amazon Beauty was a sixth less.
  """

  width: int  # D of all layers, and of the items' rows.
  layers: int  # Transformer layers, feed-forward of 2 d.
  heads: int  # Attention heads; divides `width`.
  dropout: float  # Rate on the embeddings and on the output of each sub-layer.

  @nn.compact
  def __call__(
    self,
    vectors: Array,
    position: Array,
    segment: Array,
    dropout_key: PRNGKey | None = None,
  ) -> Array:
    """Returns the states after each item of ONE row, float32 [T, d].

    Args:
      vectors: float32 [T, d], of each item, by ItemRows.
      position: int32 [T], 0..T-1, T - 1 for the newest of a sequence.
      segment: int32 [T], attention stays within a segment; 0 for padding.
      dropout_key: None for no dropout.
    """
    length = len(vectors)
    usable = (segment[:, None] == segment[None]) & jnp.tri(length, dtype=bool)
    usable &= (segment > 0)[None]
    table = self.param(
      "position", nn.initializers.normal(0.02), (length, self.width)
    )
    x = vectors * self.width**0.5 + table[position]
    scales = [1.0] * (1 + 2 * self.layers)
    if dropout_key is not None and self.dropout:
      scales = encoder.dropout_scales(
        dropout_key, self.dropout, [x.shape] * len(scales)
      )
    x = x * scales[0]
    for layer in range(self.layers):
      x = _Layer(self.heads, name=f"layer_{layer}")(
        x, usable, *scales[1 + 2 * layer : 3 + 2 * layer]
      )
    x = jnp.where((segment > 0)[:, None], x, 0.0)
    return nn.LayerNorm(name="state_norm")(x)


class _Layer(nn.Module):
  """Self-attention and feed-forward, each of what a norm leaves of [T, d]."""

  heads: int

  @nn.compact
  def __call__(self, x, usable, attention_scale, feed_forward_scale):
    y = nn.LayerNorm(name="attention_norm")(x)
    out = encoder.attention(self.heads, y, y, usable)
    x = x + out * attention_scale
    y = nn.LayerNorm(name="feed_forward_norm")(x)
    y = nn.relu(nn.Dense(2 * x.shape[-1], name="wide")(y))
    return x + nn.Dense(x.shape[-1], name="narrow")(y) * feed_forward_scale
