"""Constrained beam search over SIDs of ONE user; callers vmap.

Only prefixes with an active item below them survive, and where the index has a
`permit`, those below which it permits one. The caller's function computes the
policy at a prefix, so both residual modes share this search.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.ops import masking, sampling
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid import permits
from hsrl_jax.types import Array, PRNGKey

# (context, level) -> token log-probabilities [V] of that context.
LogProbFn = Callable[[Any, int], Array]
# (context, token, level) -> the context after `token`.
AdvanceFn = Callable[[Any, Array, int], Any]


class Beams(NamedTuple):
  """Completed beams, best first."""

  tokens: Array  # int32 [B, L]; -1 where invalid.
  items: Array  # int32 [B]; 0 where invalid.
  # float32 [B], log pi of each item (no noise, no temperature); 0 where
  # invalid.
  log_probs: Array
  scores: Array  # float32 [B], by which the beams are ordered.
  # float32 [B], of a sample: the standard Gumbel noise of each item,
  # independent of all others', which is its score less its log-probability in
  # the distribution that was sampled. Without a key 0.
  noise: Array
  valid: Array  # bool [B]; False where fewer than B items were found.


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

  A prefix takes no beam at any level where all active items below it are
  excluded.

  >>> index = sid.build_index([[0, 1], [1, 0], [1, 1]], vocab_size=2)
  >>> log_probs = jnp.log(jnp.asarray([[0.4, 0.6], [0.1, 0.9]]))
  >>> beams = beam_search(
  ...   index,
  ...   (),  # These log-probabilities need no context.
  ...   lambda context, level: log_probs[level],
  ...   lambda context, token, level: context,
  ...   beams=3,
  ...   excluded=jnp.asarray([1]),
  ... )
  >>> beams.items.tolist(), beams.valid.tolist()
  ([3, 2, 0], [True, True, False])
  >>> [round(p, 2) for p in jnp.exp(beams.log_probs[:2]).tolist()]
  [0.54, 0.06]

  Args:
    index: the SidIndex.
    context: pytree, the caller's context of the empty prefix.
    log_prob_fn: see LogProbFn.
    advance_fn: see AdvanceFn; called with batched contexts under vmap.
    beams: B.
    excluded: int32 [T], items that may not be returned; ids of no active item
      are ignored. The cost grows with T (T + B) per level.
    temperature: divides the logits of the sample; unused without a key.
    key: of the sample, and then consumed; None for the best items.

  Returns:
    Beams.
  """
  vocab, permit = index.vocab_size, index.permit
  node = jnp.zeros(1, jnp.int32)
  log_prob = jnp.zeros(1)
  tempered = jnp.zeros(1)  # log of pi^(1/temperature), renormalised by level.
  score = jnp.zeros(1)
  if key is not None:  # The largest of all items' perturbed scores.
    score = sampling.gumbel(jax.random.fold_in(key, index.levels), (1,))
  context = jax.tree.map(lambda x: jnp.asarray(x)[None], context)
  closed = None if excluded is None else _closed(index, excluded)

  for level in range(index.levels):
    step = jax.vmap(log_prob_fn, in_axes=(0, None), axis_size=len(node))(
      context, level
    )
    next_log_prob = log_prob[:, None] + step
    if permit is not None and key is None and level == index.levels - 1:
      if closed is not None:
        next_log_prob = _close(next_log_prob, node, closed[level])
      score, node = permits.best_leaves(index, node, next_log_prob, beams)
      alive, log_prob = node >= 0, score
      break
    valid = jax.vmap(permits.tokens, (None, 0, None))(index, node, level)
    if closed is not None:
      valid = _close(valid, node, closed[level])
    if key is None:
      next_score = jnp.where(valid, next_log_prob, masking.NEGATIVE)
    else:
      logits = jnp.where(valid, step / temperature, masking.NEGATIVE)
      next_tempered = tempered[:, None] + jax.nn.log_softmax(logits)
      noise = sampling.gumbel(jax.random.fold_in(key, level), valid.shape)
      next_score = _conditional_gumbel(
        jnp.where(valid, next_tempered + noise, masking.NEGATIVE), score
      )
      next_score = jnp.where(valid, next_score, masking.NEGATIVE)
    width = min(beams, next_score.size)
    if permit is not None and level == index.levels - 2:
      score, flat = permits.best_prefixes(index, node, next_score, width)
    else:
      score, flat = jax.lax.top_k(next_score.reshape(-1), width)
    parent, token = flat // vocab, (flat % vocab).astype(jnp.int32)
    alive = score > masking.NEGATIVE / 2
    node = jax.vmap(sid_index.child, in_axes=(None, 0, 0, None))(
      index, jnp.where(alive, _take(node, parent), -1), token, level
    )
    if key is None:
      log_prob = score
    else:
      log_prob = _take(next_log_prob.reshape(-1), flat)
      tempered = _take(next_tempered.reshape(-1), flat)
    if level < index.levels - 1:
      context = jax.vmap(advance_fn, in_axes=(0, 0, None))(
        jax.tree.map(lambda x, p=parent: _take(x, p), context), token, level
      )

  items = sid_index.item_of(index, node)
  missing = (0, beams - len(items))
  items = jnp.pad(items, missing)
  noise = jnp.zeros_like(score)
  if key is not None:
    noise = jnp.where(alive, score - tempered, 0.0)
  return Beams(
    tokens=sid_index.sid_of(index, items),
    items=items,
    log_probs=jnp.pad(jnp.where(alive, log_prob, 0.0), missing),
    scores=jnp.pad(score, missing, constant_values=masking.NEGATIVE),
    noise=jnp.pad(noise, missing),
    valid=jnp.pad(alive, missing),
  )


class _Edges(NamedTuple):
  """Edges of the trie at one level, one for each excluded item."""

  node: Array  # int32 [T], the node where the edge starts; -1 is none.
  token: Array  # int32 [T].
  # bool [T], whether all active items below the edge are excluded.
  closed: Array


def _closed(index: sid_index.SidIndex, excluded: Array) -> list[_Edges]:
  """Finds the edges on the way to the excluded items [T], level by level."""
  known = (excluded > 0) & (excluded <= index.capacity)
  items = jnp.where(known, excluded, 0)
  order = jnp.arange(len(items))
  again = (items[:, None] == items[None]) & (order[:, None] > order[None])
  tokens = jnp.maximum(sid_index.sid_of(index, items), 0)
  node = jnp.where(index.active[items] & ~again.any(1), 0, -1)
  edges = []
  for level in range(index.levels):
    token = tokens[:, level]
    below = jax.vmap(sid_index.child, in_axes=(None, 0, 0, None))(
      index, node, token, level
    )
    closed = below >= 0
    if level < index.levels - 1:
      gone = (below[:, None] == below[None]).sum(1)
      closed &= gone == _take(index.live[level + 1], jnp.maximum(below, 0))
    edges.append(_Edges(node, token, closed))
    node = below
  return edges


def _close(tokens: Array, node: Array, edges: _Edges) -> Array:
  """Takes closed edges out of the tokens [B, V] of the nodes [B].

  `tokens` says which are valid, or has their scores.
  """
  beams = len(node)
  here = (node[:, None] == edges.node[None]) & edges.closed[None]
  # The beams' nodes differ: at most one beam is at an edge; `beams` is none.
  beam = beams + jnp.where(here, jnp.arange(beams)[:, None] - beams, 0).sum(0)
  out = False if tokens.dtype == bool else masking.NEGATIVE
  return tokens.at[beam, edges.token].set(out, mode="drop")


def _take(x: Array, place: Array) -> Array:
  """Reads x[place], unchecked."""
  return x.at[place].get(mode="promise_in_bounds")


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
