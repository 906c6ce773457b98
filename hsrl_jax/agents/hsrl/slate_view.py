"""ONE shown slate as the losses of HSRL see it (docs/policy.md, Losses)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.ops import policy_gradient
from hsrl_jax.types import Array


class SlateView(NamedTuple):
  """What the policy says of a shown slate.

  Attributes:
    logits: float32 [K, L, V], of the levels on the way to each item.
    tokens: int32 [K, L], the items' SIDs; -1 where an item has none.
  """

  logits: Array
  tokens: Array

  def log_probs(self) -> Array:
    """log p_l(z_l), [K, L]."""
    return self._at_tokens(jax.nn.log_softmax(self.logits))

  def scores(self) -> Array:
    """sum_l logits_l[z_l], [K]: not normalised, for the behaviour loss."""
    return self._at_tokens(self.logits).sum(-1)

  def entropy(self) -> Array:
    """sum_l H(p_l), mean over the slate, []."""
    return policy_gradient.entropy(self.logits).sum(-1).mean()

  def _at_tokens(self, levels: Array) -> Array:
    """[K, L, V] at [K, L] -> [K, L]; 0 where there is no token."""
    picked = jnp.take_along_axis(levels, self.tokens[..., None], -1)[..., 0]
    return jnp.where(self.tokens < 0, 0.0, picked)
