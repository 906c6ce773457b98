"""Attention by hand for speed, of one head and of several."""

import functools

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array

_LEAST = 1e-30  # Of a sum of weights.
_MOST = 75.0  # Of a logit in `attend_heads`; fitted click models have 8.


def attend(
  q: Array, k: Array, v: Array, usable: Array, bound: float | None = None
) -> Array:
  """Attention of one head, [Q, s], [H, s], [H, s], bool [H, Q] -> [s, Q].

  Dot-product attention (Vaswani et al. 2017), of queries that are scaled.
  A softmax that is normalised after the product, which takes fewer passes over
  [H, Q]. Weights have a row for each key, so that no product has to transpose
  them. A query with nothing usable yields 0.

  Args:
    q: of the queries; their product with `k` are the logits.
    k: of the keys.
    v: what is mixed.
    usable: which keys a query sees.
    bound: logits are clipped to it, which the gradient ignores, so that exp
      needs no maximum: one pass less; None: they are taken as they are.
  """
  return _attend(q, k, v, usable, bound)


# By hand: an iteration of tests/benchmarks/train_throughput.py takes 18.2 ms of
# one core with it, 20.5 with jax.nn.softmax(where=) and its gradient, and 23.5
# with jax.nn.dot_product_attention (by turns, medians of three runs).
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, usable, bound):
  return _forward(q, k, v, usable, bound)[0]


def _forward(q, k, v, usable, bound):
  logits = k @ q.T
  if bound is None:
    logits -= jnp.where(usable, logits, -1e30).max(0, keepdims=True)
  else:
    logits = jnp.clip(logits, -bound, bound)
  weights = jnp.where(usable, jnp.exp(logits), 0.0)
  norm = jnp.maximum(weights.sum(0, keepdims=True), _LEAST)
  out = (v.T @ weights) / norm
  return out, (q, k, v, weights, norm, out)


def _backward(bound, saved, grad):
  del bound
  q, k, v, weights, norm, out = saved
  grad = grad / norm
  of_weights = v @ grad - (grad * out).sum(0, keepdims=True)
  of_logits = weights * of_weights
  return (k.T @ of_logits).T, of_logits @ q, weights @ grad.T, None


_attend.defvjp(_forward, _backward)


def attend_heads(q: Array, k: Array, v: Array, usable: Array) -> Array:
  """Attention of h heads, [Q, h, s], [H, h, s] twice, bool [H] -> [h, s, Q].

  As `attend` of each head. Where no gradient is wanted, all heads share two
  products, which fill the lanes of a TPU, and logits are clipped to 75, so that
  none is read twice: the same but for rounding while they are smaller.
  """
  return _attend_heads(q, k, v, usable)


@jax.custom_vjp
def _attend_heads(q, k, v, usable):
  heads, size = q.shape[1:]
  rows = jnp.where(usable[:, None], v.reshape(len(v), -1), 0.0)
  own = jnp.eye(heads)[:, None, :, None]  # [h s, h Q], a block each head.
  queries = (own * q.transpose(1, 2, 0)[:, :, None]).reshape(heads * size, -1)
  logits = k.reshape(len(k), -1) @ queries
  weights = jnp.exp(jnp.clip(logits, -_MOST, _MOST))
  norm = usable.astype(weights.dtype) @ weights
  mixed = (rows.T @ weights) / jnp.maximum(norm, 1e-37)[None]
  mixed = mixed.reshape(heads, size, heads, -1)
  return jnp.stack([mixed[head, :, head] for head in range(heads)])


def _each_head(q, k, v, usable):
  return jax.vmap(attend, (1, 1, 1, None))(q, k, v, usable[:, None])


_attend_heads.defvjp(
  lambda *given: jax.vjp(_each_head, *given), lambda pull, grad: pull(grad)
)
