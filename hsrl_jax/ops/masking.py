"""Masked softmax. True marks what counts; an all-False mask is defined."""

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array

# Finite, so that a fully masked row yields numbers and not NaN.
NEGATIVE = -1e9


def masked_softmax(logits: Array, mask: Array) -> Array:
  """Softmax over the last axis where `mask`; all zero where nothing is left."""
  probabilities = jax.nn.softmax(jnp.where(mask, logits, NEGATIVE), axis=-1)
  return jnp.where(mask, probabilities, 0.0)


def log_softmax(logits: Array, mask: Array) -> Array:
  """logits - log sum exp over what `mask` marks, along the last axis.

  What is masked has no part in the sum, yet a finite value that can be learned
  from, such as that of an item that has left since it was shown.
  """
  norm = jax.nn.logsumexp(logits, axis=-1, where=mask, keepdims=True)
  return logits - norm
