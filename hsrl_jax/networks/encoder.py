"""History encoder: SASRec whose last position alone is computed."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.networks.interactions import Interactions
from hsrl_jax.ops import sampling
from hsrl_jax.ops.attention import attend
from hsrl_jax.types import Array, PRNGKey, Shown

_MAX_LOGIT = 30.0  # In attention.
_KEPT = 0.9  # Weight of a like, of that of the next one.


class Encoder(nn.Module):
  """Maps ONE user to a state vector c_0 (docs/policy.md); callers vmap.

  The user's profile enters by an MLP twice: at all positions, so that what is
  attended to depends on the user, and beside the last one.
  """

  width: int = 32  # D of all layers.
  # Transformer layers, post-norm, feed-forward of 2 d; 0: the history is summed
  # up, evenly and with weights that fall with age.
  layers: int = 2
  heads: int = 4  # Attention heads; divides `width`.
  # Rate on the embeddings and on the output of each sub-layer.
  dropout: float = 0.1

  @nn.compact
  def __call__(
    self,
    item_features: Array,
    profile: Array,
    history: Array,
    shown: Shown | None = None,
    dropout_key: PRNGKey | None = None,
  ) -> Array:
    """Returns c_0, float32 [d].

    Args:
      item_features: float32 [N + 1, D], row 0 for padding.
      profile: float32 [P], P may be 0.
      history: int32 [H], left-padded with 0; may be all padding.
      shown: what was shown lately; None where that is not observed.
      dropout_key: None for no dropout.
    """
    of = self._attended if self.layers else self._of_sums
    state = of(item_features, profile, history, history > 0, dropout_key)
    if shown is not None:
      state = state + Interactions(self.width, name="interactions")(
        item_features, shown
      )
    return nn.LayerNorm(name="state_norm")(state)

  def _attended(self, item_features, profile, history, mask, dropout_key):
    """By transformer layers, [d]."""
    position = self.param(
      "position", nn.initializers.normal(0.02), (len(history), self.width)
    )
    x = nn.Dense(self.width, name="item")(item_features[history]) + position
    if profile.shape[-1]:
      user = nn.Dense(4 * self.width, name="profile_hidden")(profile)
      user = nn.Dense(2 * self.width, name="profile")(nn.relu(user))
      attended, added = jnp.split(user, 2)
      x = x + attended[None]
    x = nn.LayerNorm(name="norm")(x)
    causal = jnp.tri(len(history), dtype=bool)
    lengths = [len(history)] * (self.layers - 1) + [1]
    if dropout_key is None or not self.dropout:
      scales = [1.0] * (1 + 2 * self.layers)
    else:
      scales = dropout_scales(
        dropout_key,
        self.dropout,
        [(n, self.width) for n in (len(history), *lengths, *lengths)],
      )
    x = x * scales[0]
    for layer in range(self.layers):
      last = layer == self.layers - 1
      x = Layer(self.heads, name=f"layer_{layer}")(
        x,
        mask[None] if last else mask[None] & causal,
        scales[1 + layer],
        scales[1 + self.layers + layer],
      )
    # With no history at all, what is left is a constant and the profile.
    state = jnp.where(mask[-1], x[-1], 0.0)
    return state + added if profile.shape[-1] else state

  def _of_sums(self, item_features, profile, history, mask, dropout_key):
    """By sums over the history, [d]."""
    del dropout_key
    age = jnp.arange(len(history))[::-1]
    weights = jnp.stack([_KEPT**age / 10.0, jnp.ones(len(age)) / len(age)])
    sums = (weights * mask[None]) @ item_features[history]
    x = jnp.concatenate([sums.ravel(), profile])
    return nn.Dense(self.width, name="sums")(x)


class Layer(nn.Module):
  """Self-attention and feed-forward, each with residual and norm."""

  heads: int  # Attention heads.

  @nn.compact
  def __call__(
    self,
    x: Array,
    usable: Array,
    attention_scale: Array | float,
    feed_forward_scale: Array | float,
  ) -> Array:
    """The last Q of H positions, float32 [Q, d].

    Args:
      x: float32 [H, d].
      usable: bool [Q, H], which positions each of the last Q may attend to.
      attention_scale: dropout's scale of the attention's output, [Q, d].
      feed_forward_scale: the same of the feed-forward's output.
    """
    length, width = x.shape
    query = x[length - len(usable) :]
    out = attention(self.heads, query, x, usable) * attention_scale
    x = nn.LayerNorm(name="attention_norm")(query + out)
    out = nn.Dense(width, name="narrow")(
      nn.relu(nn.Dense(2 * width, name="wide")(x))
    )
    return nn.LayerNorm(name="feed_forward_norm")(x + out * feed_forward_scale)


def attention(heads: int, query: Array, x: Array, usable: Array) -> Array:
  """Multi-head attention, called within a module that gets its four maps.

  Args:
    heads: divides d.
    query: float32 [Q, d].
    x: float32 [H, d], what is attended to.
    usable: bool [Q, H].

  Returns:
    float32 [Q, d].
  """
  width = x.shape[-1]
  size = width // heads
  q = nn.Dense(width, name="query")(query) * size**-0.5
  k = nn.Dense(width, use_bias=False, name="key")(x)  # It would cancel.
  v = nn.Dense(width, name="value")(x)
  split = [y.reshape(-1, heads, size).swapaxes(0, 1) for y in (q, k, v)]
  mixed = jax.vmap(attend, in_axes=(0, 0, 0, None, None))(
    *split, usable.T, _MAX_LOGIT
  )
  return nn.Dense(width, name="out")(mixed.reshape(width, -1).T)


def dropout_scales(
  key: PRNGKey, rate: float, shapes: Sequence[tuple[int, ...]]
) -> list[Array]:
  """Inverted dropout for several arrays by one draw of 8 bits an element.

  Multiply by them: 0 with probability `rate`, else 1 / (1 - rate). The rate is
  rounded to 1/256.
  """
  dropped = round(rate * 256)
  ends = np.cumsum([np.prod(shape) for shape in shapes])
  words = sampling.bits(key, -(-int(ends[-1]) // 4))
  bits = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)
  scale = jnp.where(bits >= dropped, 256.0 / (256 - dropped), 0.0)
  parts = jnp.split(scale[: ends[-1]], ends[:-1])
  return [x.reshape(s) for x, s in zip(parts, shapes, strict=True)]
