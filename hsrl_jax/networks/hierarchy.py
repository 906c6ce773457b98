"""Hierarchical policy network (HPN): a state to token logits, coarse to fine.

Residual state modelling (docs/policy.md), for l = 1..L:

  logits_l = W_l c_{l-1} + b_l;  p_l = softmax(logits_l)
  c_l = LayerNorm_l(c_{l-1} - e_l)

with the expected residual e_l = p_l E_l: no level depends on the tokens drawn.

The rows of E_l and b_l that belong to a token are sums of a free part and a
linear map of the token's codebook vector, one map for all levels, and the
logits are W_l c_{l-1} + (A C_l) c_0 + b_l: what is learned of a token carries
over to tokens of like meaning, and logits begin as inner products of the state
with quantized item features. `meaning` scores what quantization loses of the
features, for the ranking of items.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.types import Array

# Adam moves the row of a token that is hardly ever seen as far as any other; a
# tenth of the rate keeps the noise of so many rows small.
_FREE_RATE = 0.1


class Hierarchy(NamedTuple):
  """The policy's view of one state."""

  logits: Array  # float32 [L, V].
  contexts: Array  # float32 [L + 1, d], c_0 .. c_L.


class TokenParams(NamedTuple):
  """Parameters of all tokens."""

  kernel: Array  # float32 [L, V, d], the rows of W_l.
  meaning: Array  # float32 [L, V, d], the rows of A C_l.
  embedding: Array  # float32 [L, V, d], E_l.
  bias: Array  # float32 [L, V].

  def logits(self, context: Array, state: Array, level: int) -> Array:
    """Logits [V] of level `level` + 1, of c_level and c_0, both [d]."""
    logits = self.kernel[level] @ context + self.bias[level]
    return logits + self.meaning[level] @ state


class PolicyNetwork(nn.Module):
  """HPN of ONE state; callers vmap over states, items or beams."""

  levels: int  # L.
  vocab_size: int  # V.
  width: int  # D, the width of the state.
  semantic_tokens: bool = True  # False leaves the free parts alone.
  residual: bool = True  # False shows c_0 to all levels.

  def setup(self):
    shape = (self.levels, self.vocab_size, self.width)
    zeros = nn.initializers.zeros
    free = (
      zeros
      if self.semantic_tokens
      else nn.initializers.normal(self.width**-0.5)
    )
    self.kernel = self.param("kernel", free, shape)
    self.embedding = self.param("embedding", free, shape)
    self.bias = self.param("bias", zeros, shape[:-1])
    if self.semantic_tokens:
      self.meaning_map = nn.Dense(self.width, use_bias=False)
      self.embedding_map = nn.Dense(self.width, use_bias=False)
      self.bias_map = nn.Dense(1, use_bias=False, kernel_init=zeros)
    self.norms = [nn.LayerNorm(name=f"norm_{l}") for l in range(self.levels)]
    # The bias b of the behaviour loss (docs/policy.md).
    self.response_bias = self.param("response_bias", zeros, ())

  def tokens(self, codebooks: Array) -> TokenParams:
    """W, E and b of all tokens.

    Args:
      codebooks: float32 [L, V, D].
    """
    if not self.semantic_tokens:
      nothing = jnp.zeros_like(self.kernel)
      return TokenParams(self.kernel, nothing, self.embedding, self.bias)
    return TokenParams(
      _FREE_RATE * self.kernel,
      self.meaning_map(codebooks),
      _FREE_RATE * self.embedding + self.embedding_map(codebooks),
      _FREE_RATE * self.bias + self.bias_map(codebooks)[..., 0],
    )

  def meaning(self, vectors: Array, state: Array) -> Array:
    """The semantic part of scores, linear in features or codebook vectors.

    An item's, less those of its tokens' vectors, is what its SID loses: added
    to the score of its tokens, it makes the semantic part of the whole an inner
    product of c_0 and the mapped features themselves.

    Args:
      vectors: float32 [..., D].
      state: float32 [d], c_0.

    Returns:
      float32 [...].
    """
    meaning, bias = (
      x.variables["params"]["kernel"] for x in (self.meaning_map, self.bias_map)
    )
    # One product for each item: all are not mapped into the state's space.
    return vectors @ (meaning @ state + bias[:, 0])

  def _next(self, context: Array, embedding: Array, level: int) -> Array:
    if not self.residual:
      return context
    return self.norms[level](context - embedding)

  def expected(self, codebooks: Array, state: Array) -> Hierarchy:
    """All levels with the expected residual, from c_0 [d]."""
    tokens = self.tokens(codebooks)
    logits, contexts = [], [state]
    for level in range(self.levels):
      logits.append(tokens.logits(contexts[-1], state, level))
      mean = jax.nn.softmax(logits[-1]) @ tokens.embedding[level]
      contexts.append(self._next(contexts[-1], mean, level))
    return Hierarchy(jnp.stack(logits), jnp.stack(contexts))

  def __call__(self, codebooks: Array, state: Array):
    """For initialisation: touches every parameter."""
    return self.expected(codebooks, state), self.response_bias
