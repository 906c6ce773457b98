"""Hierarchical policy-gradient terms of ONE state; callers vmap."""

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array


def token_values(levels: Array, tokens: Array) -> Array:
  """Picks `levels[..., l, tokens[..., l]]`.

  Args:
    levels: float32 [L, V], such as log-probabilities.
    tokens: int32 [..., L], each in 0..V-1: unchecked.

  Returns:
    float32 [..., L].
  """
  picked = [
    levels[l].at[tokens[..., l]].get(mode="promise_in_bounds")
    for l in range(len(levels))
  ]
  return jnp.stack(picked, -1)


def entropy(logits: Array) -> Array:
  """Entropy over the last axis, nats; [..., V] -> [...]."""
  log_probs = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_probs) * log_probs).sum(-1)


def importance_weights(
  log_prob: Array, behaviour_log_prob: Array, clip: float
) -> Array:
  """min(pi / mu, clip) of each item, no gradient; [K], [K] -> [K].

  Truncated importance weights of replayed actions; `clip` > 0.
  """
  ratio = jnp.exp(jax.lax.stop_gradient(log_prob) - behaviour_log_prob)
  return jnp.minimum(ratio, clip)
