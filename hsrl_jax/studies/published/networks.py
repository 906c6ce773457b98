"""The networks of the published code, as its framework builds them.

What differs from `encoder`, `hierarchy` and `critic`: docs/policy.md, Published
to the letter. The actor is of ONE user; callers vmap. The critic is of a whole
batch, by whose statistics it is normalised.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks.encoder import dropout_scales
from hsrl_jax.networks.hierarchy import Hierarchy
from hsrl_jax.types import Array, PRNGKey

_EPSILON = 1e-5  # Of all normalisations.
# By 1 / fan_in, where lecun_uniform goes by 3 / fan_in.
_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_EMBEDDING = nn.initializers.normal(1.0)


def _linear(x: Array, features: int, name: str) -> Array:
  """A dense layer whose weights and biases begin within +- fan_in^-1/2."""
  bound = x.shape[-1] ** -0.5

  def bias(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.Dense(features, kernel_init=_KERNEL, bias_init=bias, name=name)(x)


class _Layer(nn.Module):
  """A transformer layer, post-norm, feed-forward of 4 d, [H, d] -> [Q, d]."""

  heads: int

  @nn.compact
  def __call__(
    self, x: Array, usable: Array, scales: Sequence[Array | float]
  ) -> Array:
    """The last Q of H positions.

    Args:
      x: float32 [H, d].
      usable: bool [Q, H], which positions each of the last Q attends to.
      scales: dropout's, see `dropout_shapes`.
    """
    width = x.shape[-1]
    of_weights, of_attended, of_hidden, of_fed = scales
    query = x[len(x) - len(usable) :]
    # The three maps are one matrix there, whose fan_out is 3 d.
    kernel = nn.initializers.variance_scaling(0.5, "fan_in", "uniform")

    def heads(name, y):
      y = nn.Dense(width, kernel_init=kernel, name=name)(y)
      return y.reshape(len(y), self.heads, -1)

    q, k, v = heads("query", query), heads("key", x), heads("value", x)
    logits = jnp.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    weights = (
      jax.nn.softmax(jnp.where(usable[None], logits, -jnp.inf)) * of_weights
    )
    out = jnp.einsum("hqk,khd->qhd", weights, v).reshape(query.shape)
    out = nn.Dense(width, kernel_init=_KERNEL, name="out")(out)
    x = nn.LayerNorm(_EPSILON, name="attention_norm")(query + out * of_attended)
    hidden = nn.relu(_linear(x, 4 * width, "wide")) * of_hidden
    out = _linear(hidden, width, "narrow") * of_fed
    return nn.LayerNorm(_EPSILON, name="feed_forward_norm")(x + out)

  @staticmethod
  def dropout_shapes(heads: int, queries: int, length: int, width: int):
    """Of attention weights, attention, hidden layer and feed-forward."""
    return [
      (heads, queries, length),
      (queries, width),
      (queries, 4 * width),
      (queries, width),
    ]


class Actor(nn.Module):
  """A history to token logits and contexts, level by level, of ONE user.

  The user's profile is not looked at, and padding is attended to. Each level
  takes from the context the mean embedding of its tokens under their softmax.
  """

  levels: int  # L.
  tokens: int  # Outputs of each level's softmax, at least V.
  width: int  # D.
  layers: int  # Transformer layers.
  heads: int  # Attention heads; divides `width`.
  dropout: float  # Rate.

  @nn.compact
  def __call__(
    self,
    item_features: Array,
    history: Array,
    dropout_key: PRNGKey | None = None,
  ) -> Hierarchy:
    """Returns logits, [L, tokens], and contexts c_0 .. c_L, [L + 1, d].

    Args:
      item_features: float32 [N + 1, D], row 0 for padding.
      history: int32 [H], left-padded with 0.
      dropout_key: None for no dropout.
    """
    length = len(history)
    queries = [length] * (self.layers - 1) + [1]  # Of each layer.
    shapes = [(length, self.width)]
    for count in queries:
      shapes += _Layer.dropout_shapes(self.heads, count, length, self.width)
    scales = [1.0] * len(shapes)
    if dropout_key is not None and self.dropout:
      scales = dropout_scales(dropout_key, self.dropout, shapes)
    position = self.param("position", _EMBEDDING, (length, self.width))
    x = _linear(item_features[history], self.width, "item") + position
    x = nn.LayerNorm(_EPSILON, name="norm")(x * scales[0])
    causal = jnp.tri(length, dtype=bool)
    for layer, count in enumerate(queries):
      x = _Layer(self.heads, name=f"layer_{layer}")(
        x, causal[length - count :], scales[1 + 4 * layer : 5 + 4 * layer]
      )
    logits, contexts = [], [x[-1]]
    for level in range(self.levels):
      head = _linear(contexts[-1][None], self.tokens, f"head_{level}")
      logits.append(head[0])
      table = self.param(
        f"embedding_{level}", _EMBEDDING, (self.tokens, self.width)
      )
      taken = contexts[-1] - jax.nn.softmax(logits[-1]) @ table
      norm = nn.LayerNorm(_EPSILON, name=f"norm_{level}")
      contexts.append(norm(taken[None])[0])
    return Hierarchy(jnp.stack(logits), jnp.stack(contexts))


class Critic(nn.Module):
  """One MLP for the contexts of all levels, of a BATCH.

  Each hidden layer is linear, ReLU, dropout, then normalised by the mean and
  variance of the batch at hand. The published code also keeps running averages
  of these, which neither acting nor training reads; there are none here.
  """

  hidden: Sequence[int] = (256, 64)  # Widths of the hidden layers.
  dropout: float = 0.2  # Rate.

  @nn.compact
  def __call__(
    self,
    contexts: Array,
    dropout_keys: PRNGKey | None = None,
    axis_name: str | None = None,
  ) -> Array:
    """Values, float32 [B, M].

    Args:
      contexts: float32 [B, M, d].
      dropout_keys: [B]; None for no dropout.
      axis_name: of the devices that share the batch, each with a part of the
        same size.
    """
    x, levels = contexts, contexts.shape[1]
    scales = [1.0] * len(self.hidden)
    if dropout_keys is not None and self.dropout:
      shapes = [(levels, width) for width in self.hidden]
      scales = jax.vmap(lambda key: dropout_scales(key, self.dropout, shapes))(
        dropout_keys
      )
    for i, (width, scale) in enumerate(zip(self.hidden, scales, strict=True)):
      x = nn.relu(_linear(x, width, f"hidden_{i}")) * scale
      x = _BatchNorm(name=f"norm_{i}")(x, axis_name)
    return _linear(x, 1, "out")[..., 0]


class _BatchNorm(nn.Module):
  """Normalises each feature over all leading axes, and over devices."""

  @nn.compact
  def __call__(self, x: Array, axis_name: str | None) -> Array:
    def mean(y):
      own = y.mean(tuple(range(y.ndim - 1)), keepdims=True)
      return own if axis_name is None else jax.lax.pmean(own, axis_name)

    width = x.shape[-1]
    centred = x - mean(x)
    scale = self.param("scale", nn.initializers.ones, (width,))
    bias = self.param("bias", nn.initializers.zeros, (width,))
    ones = (1,) * (x.ndim - 1)
    normed = centred * jax.lax.rsqrt(mean(centred**2) + _EPSILON)
    return normed * scale.reshape(*ones, -1) + bias.reshape(*ones, -1)
