"""Constrained beam search over SIDs of ONE user; callers vmap.

Only prefixes with an active item below them survive. What the policy says of a
prefix is computed by the caller's function, so both residual modes use it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.ops import masking
from hsrl_jax.sid import index as sid_index
from hsrl_jax.types import Array, PRNGKey

# (context, level) -> token log-probabilities [V] of that context.
LogProbFn = Callable[[Any, int], Array]
# (context, token, level) -> the context after `token`.
AdvanceFn = Callable[[Any, Array, int], Any]


class Beams(NamedTuple):
  """Completed beams, best first.

  Attributes:
    tokens: int32 [B, L].
    items: int32 [B]; 0 where invalid.
    log_probs: float32 [B], log pi of each item (no noise, no temperature).
    scores: float32 [B], by which the beams are ordered.
    valid: bool [B]; False where fewer than B items were found.
  """

  tokens: Array
  items: Array
  log_probs: Array
  scores: Array
  valid: Array


def beam_search(
  index: sid_index.SidIndex,
  context: Any,
  log_prob_fn: LogProbFn,
  advance_fn: AdvanceFn,
  *,
  beams: int,
  excluded: Array | None = None,
  temperature: float | Array = 1.0,
  key: PRNGKey | None = None,
) -> Beams:
  """Finds the `beams` items with the largest log pi.

  With a `key` it samples `beams` items WITHOUT replacement instead, from the
  distribution in proportion to pi^(1/temperature) over beams kept at each
  level (stochastic beam search, arXiv 1903.06059): each level's tokens are
  renormalised over the valid ones, and Gumbel noise is drawn top-down, given
  that a prefix's perturbed score is the largest below it.

  Args:
    index: the SidIndex.
    context: pytree, the caller's context of the empty prefix.
    log_prob_fn: see LogProbFn.
    advance_fn: see AdvanceFn; called with batched contexts under vmap.
    beams: B.
    excluded: int32 [T], items that may not be returned (0 is ignored).
    temperature: of the sampling; without a key it changes nothing.
    key: None for the best items, else for a sample. The key is consumed.

  Returns:
    Beams. If T items are excluded, the search runs T beams wider on the last
    level, so exclusion costs no beam.
  """
  levels, vocab = index.levels, index.vocab_size
  node = jnp.zeros(1, jnp.int32)
  tokens = jnp.zeros((1, 0), jnp.int32)
  log_prob = jnp.zeros(1)
  tempered = jnp.zeros(1)  # log of pi^(1/temperature), renormalised by level.
  score = jnp.zeros(1)
  context = jax.tree.map(lambda x: jnp.asarray(x)[None], context)
  extra = 0 if excluded is None else excluded.shape[0]

  for level in range(levels):
    last = level == levels - 1
    step = jax.vmap(log_prob_fn, in_axes=(0, None))(context, level)
    valid = jax.vmap(sid_index.valid_tokens, in_axes=(None, 0, None))(
      index, node, level
    )
    next_log_prob = log_prob[:, None] + step
    if key is None:
      next_tempered = jnp.where(valid, next_log_prob, masking.NEGATIVE)
      next_score = next_tempered
    else:
      logits = jnp.where(valid, step / temperature, masking.NEGATIVE)
      next_tempered = tempered[:, None] + jax.nn.log_softmax(logits)
      noise = jax.random.gumbel(jax.random.fold_in(key, level), valid.shape)
      next_score = _conditional_gumbel(
        jnp.where(valid, next_tempered + noise, masking.NEGATIVE), score
      )
      next_score = jnp.where(valid, next_score, masking.NEGATIVE)
    width = min(beams + (extra if last else 0), next_score.size)
    score, flat = jax.lax.top_k(next_score.reshape(-1), width)
    parent, token = flat // vocab, (flat % vocab).astype(jnp.int32)
    alive = score > masking.NEGATIVE / 2
    node = jax.vmap(sid_index.child, in_axes=(None, 0, 0, None))(
      index, jnp.where(alive, node[parent], -1), token, level
    )
    log_prob = next_log_prob.reshape(-1)[flat]
    tempered = next_tempered.reshape(-1)[flat]
    tokens = jnp.concatenate([tokens[parent], token[:, None]], 1)
    if not last:
      context = jax.vmap(advance_fn, in_axes=(0, 0, None))(
        jax.tree.map(lambda x, p=parent: x[p], context), token, level
      )

  items = jnp.where(node >= 0, index.leaf_item[jnp.maximum(node, 0)], 0)
  valid = index.active[items]
  if excluded is not None:
    valid = valid & ~(items[:, None] == excluded[None]).any(1)
  score = jnp.where(valid, score, masking.NEGATIVE)
  score, best = jax.lax.top_k(score, min(beams, score.shape[0]))
  valid = valid[best]
  result = Beams(
    tokens=tokens[best],
    items=jnp.where(valid, items[best], 0),
    log_probs=log_prob[best],
    scores=score,
    valid=valid,
  )
  missing = beams - score.shape[0]
  return jax.tree.map(
    lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), result
  )


def _conditional_gumbel(noisy: Array, parent: Array) -> Array:
  """Shifts perturbed scores so that each row's maximum is the parent's.

  Args:
    noisy: float32 [B, V], log probability + Gumbel noise.
    parent: float32 [B], the perturbed score of each parent.

  Returns:
    float32 [B, V]; -log(exp(-parent) - exp(-max) + exp(-noisy)), stably.
  """
  parent = parent[:, None]
  largest = noisy.max(-1, keepdims=True)
  v = parent - noisy + jnp.log1p(-jnp.exp(jnp.minimum(noisy - largest, -1e-7)))
  shifted = parent - jax.nn.relu(v) - jnp.log1p(jnp.exp(-jnp.abs(v)))
  return jnp.where(noisy >= largest, parent, shifted)
