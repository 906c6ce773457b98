"""Masked scores. True marks what counts."""

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array

# Of what may not be chosen. Finite, so that a fully masked row yields numbers
# and not NaN.
NEGATIVE = -1e9


def log_softmax(logits: Array, mask: Array) -> Array:
  """logits - log sum exp over what `mask` marks, along the last axis.

  A masked element has no part in the sum, yet a finite value that can be
  learned from, such as that of an item that has left since it was shown.
  """
  norm = jax.nn.logsumexp(logits, axis=-1, where=mask, keepdims=True)
  return logits - norm


def log_sum(x: Array, mask: Array) -> Array:
  """log sum exp over what `mask` marks, []; finite where nothing is marked."""
  return jax.nn.logsumexp(jnp.where(mask, x, NEGATIVE))


def entropy(log_probs: Array, mask: Array) -> Array:
  """-sum p log p over what `mask` marks, nats; [..., V] -> [...].

  Args:
    log_probs: of `log_softmax`. Those of masked elements may be so large that
      their exponential is no number, which gradients must not meet.
    mask: bool, of the same shape.
  """
  own = jnp.where(mask, log_probs, 0.0)
  return -(jnp.exp(own) * own).sum(-1)


def divergence(log_probs: Array, anchor: Array, mask: Array) -> Array:
  """KL(p || anchor) over what `mask` marks, nats; [..., V] -> [...].

  The arguments are as those of `entropy`; no gradient flows into the anchor.
  """
  own = jnp.where(mask, log_probs, 0.0)
  anchor = jnp.where(mask, jax.lax.stop_gradient(anchor), 0.0)
  return (jnp.exp(own) * (own - anchor)).sum(-1)


def finite_logit(probability: Array) -> Array:
  """log p - log(1 - p) of probabilities that are kept 1e-6 from 0 and 1."""
  probability = jnp.clip(probability, 1e-6, 1 - 1e-6)
  return jnp.log(probability) - jnp.log1p(-probability)


def largest(x: Array, count: int) -> Array:
  """Which are the `count` largest, with all that equal the least of them.

  Exact, and without a sort: the bits of the least one are found one by one.

  Args:
    x: float32 [M], no NaN.
    count: at least 1; all are where M is less.

  Returns:
    bool [M].
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  # As unsigned integers in the same order.
  bits = jnp.where(bits < 0, ~bits, bits ^ jnp.int32(-(2**31)))
  keys = jax.lax.bitcast_convert_type(bits, jnp.uint32)

  def bit(number, least):
    tried = least | (jnp.uint32(1) << (31 - number).astype(jnp.uint32))
    return jnp.where((keys >= tried).sum() >= count, tried, least)

  return keys >= jax.lax.fori_loop(0, 32, bit, jnp.uint32(0))


def pick(x: Array, position: Array) -> Array:
  """Reads x[..., position], [..., V] and int32 [...] -> [...]; 0 for -1.

  Leading axes are broadcast. By a sum: the gradient of a gather is a scatter,
  which a TPU does one by one for all that is mapped.
  """
  there = jax.nn.one_hot(position, x.shape[-1], dtype=bool)
  shape = jnp.broadcast_shapes(x.shape, there.shape)
  there, x = jnp.broadcast_to(there, shape), jnp.broadcast_to(x, shape)
  return jnp.where(there, x, 0).sum(-1)


def rank_within(groups: Array, scores: Array) -> Array:
  """The rank of each score among those of its group, int32 [N], 0 the best.

  Args:
    groups: int32 [N].
    scores: float32 [N]; of equal ones the first ranks higher.
  """
  order = jnp.lexsort((-scores, groups))
  ordered = groups[order]
  rank = jnp.arange(len(groups)) - jnp.searchsorted(ordered, ordered)
  return jnp.zeros(len(groups), jnp.int32).at[order].set(rank)
