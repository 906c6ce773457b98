"""Hierarchical policy trained on the next item's tokens, coarse to fine.

Residual state modelling with the tokens taken ("sampled"), for l = 1..L:

  h_l = c_{l-1} + MLP_l([c_{l-1}, c_0]);  logits_l = W_l h_l + b_l
  c_l = LayerNorm_l(c_{l-1} - E_l[z_l])

It is PolicyNetwork's recursion with a small block before each level's logits,
and without codebooks: SIDs that are brought have none.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks import encoder
from hsrl_jax.ops import masking
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid.beam_search import Beams, beam_search
from hsrl_jax.types import Array, PRNGKey


class Context(NamedTuple):
  """Facts of prefixes; leading axes are the caller's."""

  state: Array  # float32 [..., d], c_0.
  residual: Array  # float32 [..., d], c_l.
  node: Array  # int32 [...], the prefix in the SidIndex; -1 is none.


class TokenDecoder(nn.Module):
  """Log-probabilities of tokens after a prefix; states [..., d]."""

  levels: int  # L.
  vocab_size: int  # V.
  width: int  # D.
  # Width of the block before each level's logits; 0 for no block.
  hidden: int = 256
  dropout: float = 0.1  # Rate on the block's hidden layer.
  # The softmax of a level is over tokens that lead to an active item; then the
  # probabilities of all active items sum to 1.
  constrained: bool = True

  def setup(self):
    shape = (self.levels, self.vocab_size, self.width)
    small = nn.initializers.normal(0.02)
    self.kernel = self.param("kernel", small, shape)
    self.embedding = self.param("embedding", small, shape)
    self.bias = self.param("bias", nn.initializers.zeros, shape[:-1])
    self.norms = [
      nn.LayerNorm(name=f"norm_{l}") for l in range(self.levels - 1)
    ]
    if self.hidden:
      self.wide = [
        nn.Dense(self.hidden, name=f"wide_{l}") for l in range(self.levels)
      ]
      self.narrow = [
        nn.Dense(self.width, name=f"narrow_{l}") for l in range(self.levels)
      ]

  def start(self, state: Array) -> Context:
    """The context of the empty prefix."""
    return Context(state, state, jnp.zeros(state.shape[:-1], jnp.int32))

  def log_probs(
    self,
    index: sid_index.SidIndex,
    context: Context,
    level: int,
    key: PRNGKey | None = None,
  ) -> Array:
    """log pi of the next tokens, float32 [..., V]; `key` is of the dropout."""
    logits = self._logits(context, level, key)
    if self.constrained:
      valid = jnp.vectorize(
        lambda node: sid_index.valid_tokens(index, node, level),
        signature="()->(v)",
      )(context.node)
      logits = jnp.where(valid, logits, masking.NEGATIVE)
    return jax.nn.log_softmax(logits)

  def _logits(self, context: Context, level: int, key: PRNGKey | None) -> Array:
    x = context.residual
    if self.hidden:
      wide = jnp.concatenate([x, context.state], -1)
      wide = nn.gelu(self.wide[level](wide))
      if key is not None and self.dropout:
        (scale,) = encoder.dropout_scales(key, self.dropout, [wide.shape])
        wide = wide * scale
      x = x + self.narrow[level](wide)
    logits = x @ self.kernel[level].T
    return logits + jnp.broadcast_to(self.bias[level], logits.shape)

  def advance(
    self, index: sid_index.SidIndex, context: Context, token: Array, level: int
  ) -> Context:
    """The contexts once `token`, int32 [...], is taken at a level below L."""
    residual = context.residual - self.embedding[level, token]
    node = jnp.vectorize(
      lambda node, token: sid_index.child(index, node, token, level)
    )(context.node, token)
    return context._replace(residual=self.norms[level](residual), node=node)

  def taken(
    self,
    index: sid_index.SidIndex,
    state: Array,
    sid: Array,
    key: PRNGKey | None = None,
  ) -> Array:
    """Log-probabilities at all levels along SIDs (teacher forcing).

    Args:
      index: the catalogue.
      state: float32 [..., d], c_0.
      sid: int32 [..., L].
      key: of the dropout; None for none.

    Returns:
      float32 [..., L, V].
    """
    context, out = self.start(state), []
    for level in range(self.levels):
      level_key = None if key is None else jax.random.fold_in(key, level)
      out.append(self.log_probs(index, context, level, level_key))
      if level < self.levels - 1:
        context = self.advance(index, context, sid[..., level], level)
    return jnp.stack(out, -2)

  def search(
    self, index: sid_index.SidIndex, state: Array, beams: int, **how: Any
  ) -> Beams:
    """The most probable items of ONE state [d].

    Args:
      index: the catalogue.
      state: float32 [d], c_0.
      beams: B.
      **how: further keywords of `beam_search`.
    """
    return beam_search(
      index,
      self.start(state),
      lambda context, level: self.log_probs(index, context, level),
      lambda context, token, level: self.advance(index, context, token, level),
      beams=beams,
      **how,
    )

  def __call__(self, index: sid_index.SidIndex, state: Array) -> Array:
    """For initialisation: touches every parameter."""
    return self.taken(index, state, jnp.zeros(self.levels, jnp.int32))
