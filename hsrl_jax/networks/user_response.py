"""User response model (URM): the click model that drives the simulator.

Architecture of the public benchmark (docs/simulator.md): attention over the
history, then cross-attention with the user as the only query. It returns
LOGITS; the sigmoid is applied exactly once, by the loss or by the simulator.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from hsrl_jax.ops import attention
from hsrl_jax.types import Array


class UserResponseModel(nn.Module):
  """Logits that ONE user responds positively to each item; callers vmap."""

  features: int = 16  # Width F of the space in which user and item meet.
  hidden: int = 256  # Width of the hidden layer of the profile's MLP.
  heads: int = 2  # Attention heads; divides `features`.
  # True for the MovieLens variant, which mixes interest and user vector by a
  # last Dense; False for the RL4RS variant.
  final_dense: bool = True
  # Rate on the history's items and on the hidden layer, in training.
  dropout: float = 0.0
  # Rate at which, in training, an item is known by its features alone, which is
  # how newcomers are known; None: items have no embedding of their ids at all,
  # as in the public benchmark.
  id_dropout: float | None = None
  # Whether in training the sigmoid of each logit is returned in its place, so
  # that the loss applies it twice, as the public benchmark's does: a response
  # of probability p is fitted by sigmoid(sigmoid(logit)), which is never
  # outside (0.5, 0.731).
  double_sigmoid: bool = False

  @nn.compact
  def __call__(
    self,
    item_features: Array,
    profile: Array,
    history: Array,
    slate: Array,
    *,
    deterministic: bool = True,
  ) -> Array:
    """Returns float32 [K] logits.

    Args:
      item_features: float32 [N + 1, D], row 0 for padding.
      profile: float32 [P], P may be 0.
      history: int32 [H], left-padded with 0; may be all padding.
      slate: int32 [K]; any K, so a whole catalogue too.
      deterministic: False applies dropout, with the rng "dropout".
    """
    drop = nn.Dropout(self.dropout, deterministic=deterministic)
    if not profile.shape[-1]:
      profile = jnp.ones(1)  # One user vector for everybody.
    hidden = drop(nn.relu(nn.Dense(self.hidden, name="user_hidden")(profile)))
    user = nn.Dense(self.features, name="user_out")(hidden)
    project = nn.Dense(self.features, name="item")
    past = project(item_features[history])
    shown = project(item_features[slate])
    if self.id_dropout is not None:
      embed = functools.partial(self._embedding, len(item_features))
      lose = nn.Dropout(self.id_dropout, (-1,), deterministic=deterministic)
      past += lose(embed("past_ids", history))
      shown += lose(embed("shown_ids", slate))
    past = drop(past)

    mask = history > 0
    past = _Attention(self.heads, name="self_attention")(past, past, mask)
    interest = _Attention(self.heads, name="cross_attention")(
      user[None], past, mask
    )[0]
    if self.final_dense:
      interest = nn.Dense(self.features, name="mix")(
        jnp.concatenate([interest, user])
      )
    logits = shown @ interest
    if self.double_sigmoid and not deterministic:
      return nn.sigmoid(logits)
    return logits

  def _embedding(self, count: int, name: str, items: Array) -> Array:
    """Embeddings of ids, [M] -> [M, F]; zero for items that never occurred.

    They start at zero, so an item without gradients stays there. The table is
    as large as the catalogue of the fit; items that came later have no row.
    """
    if self.has_variable("params", name):
      table = self.get_variable("params", name)
    else:
      table = self.param(name, nn.initializers.zeros, (count, self.features))
    return jnp.asarray(table).at[items].get(mode="fill", fill_value=0.0)


class _Attention(nn.Module):
  """Multi-head attention, biases in all four projections, no residual."""

  heads: int

  @nn.compact
  def __call__(self, queries: Array, values: Array, mask: Array) -> Array:
    """[Q, F], [H, F], bool [H] of usable values -> [Q, F]."""
    width = queries.shape[-1]
    size = width // self.heads
    split = (self.heads, size)
    q = nn.DenseGeneral(split, name="query")(queries) * size**-0.5
    k = nn.DenseGeneral(split, name="key")(values)
    v = nn.DenseGeneral(split, name="value")(values)
    mixed = attention.attend_heads(q, k, v, mask)
    mixed = jnp.moveaxis(mixed, -1, 0)  # [heads, size, Q] -> [Q, heads, size].
    return nn.DenseGeneral(width, axis=(-2, -1), name="out")(mixed)
