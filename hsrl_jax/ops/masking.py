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
