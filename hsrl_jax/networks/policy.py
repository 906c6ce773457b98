"""Hierarchical policy network (HPN): a state to token logits, coarse to fine.

Residual state modelling (DESIGN, section 4), for l = 1..L:
  logits_l = W_l c_{l-1} + b_l;  p_l = softmax(logits_l)
  c_l = LayerNorm_l(c_{l-1} - e_l)
with e_l = p_l E_l ("expected") or e_l = E_l[z_l] ("sampled").
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.types import Array


class Hierarchy(NamedTuple):
  """The policy's view of one state.

  Attributes:
    logits: float32 [L, V].
    contexts: float32 [L + 1, d], c_0 .. c_L.
  """

  logits: Array
  contexts: Array


class PolicyNetwork(nn.Module):
  """HPN of ONE state; callers vmap over states, items or beams.

  Attributes:
    levels: L.
    vocab_size: V.
    width: d, the width of the state.
  """

  levels: int
  vocab_size: int
  width: int

  def setup(self):
    shape = (self.levels, self.width, self.vocab_size)
    dense = nn.initializers.lecun_normal(batch_axis=(0,))
    self.kernel = self.param("kernel", dense, shape)
    zeros = nn.initializers.zeros
    self.bias = self.param("bias", zeros, (self.levels, self.vocab_size))
    self.embedding = self.param(
      "embedding",
      nn.initializers.normal(self.width**-0.5),
      (self.levels, self.vocab_size, self.width),
    )
    self.norms = [nn.LayerNorm(name=f"norm_{l}") for l in range(self.levels)]
    # The bias b of the behaviour loss (DESIGN, section 6).
    self.response_bias = self.param("response_bias", zeros, ())

  def logits(self, context: Array, level: int) -> Array:
    """Token logits of one level, [d] -> [V]; `level` is 0-based."""
    return context @ self.kernel[level] + self.bias[level]

  def advance(self, context: Array, token: Array, level: int) -> Array:
    """The next context once `token` (int32 []) is chosen, [d] -> [d]."""
    return self.norms[level](context - self.embedding[level, token])

  def expected(self, state: Array) -> Hierarchy:
    """All levels with the expected residual, from c_0 [d]."""
    logits, contexts = [], [state]
    for level in range(self.levels):
      logits.append(self.logits(contexts[-1], level))
      mean = jax.nn.softmax(logits[-1]) @ self.embedding[level]
      contexts.append(self.norms[level](contexts[-1] - mean))
    return Hierarchy(jnp.stack(logits), jnp.stack(contexts))

  def taken(self, state: Array, tokens: Array) -> Hierarchy:
    """All levels with the residual of the `tokens` taken, int32 [L]."""
    logits, contexts = [], [state]
    for level in range(self.levels):
      logits.append(self.logits(contexts[-1], level))
      contexts.append(self.advance(contexts[-1], tokens[level], level))
    return Hierarchy(jnp.stack(logits), jnp.stack(contexts))

  def __call__(self, state: Array) -> tuple[Hierarchy, Array]:
    """For initialisation: touches every parameter."""
    return self.expected(state), self.response_bias
