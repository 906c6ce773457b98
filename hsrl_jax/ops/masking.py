"""Masked scores. True marks what counts."""

import jax

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
