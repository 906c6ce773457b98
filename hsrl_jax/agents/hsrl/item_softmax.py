"""A softmax over all items of ONE user, as a choice token by token.

The probability of a token is that of all items below it, so the product along a
SID is the probability of its item. Callers vmap.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.sid.index import SidIndex, children
from hsrl_jax.types import Array

_BLOCK = 64  # Of running sums; a scan over single leaves is slower on a CPU.
# The largest item below a first token weighs 1. Weights are differences of
# sums, so what is smaller than this is rounding.
_LEAST = 1e-8
_NOTHING = -1e9  # The logit of an item that has no part in it.


class Below(NamedTuple):
  """What the items below each node weigh.

  Attributes:
    scale: float32 [nodes_1], the largest logit below each first token. Items
      weigh exp(logit - scale), so that those below a poor token are told apart
      however good the best items are.
    weights: for each level 1..L float32 [nodes_l], sums of the weights of the
      items below; on the last one nodes are leaves.
  """

  scale: Array
  weights: tuple[Array, ...]


def weights_below(index: SidIndex, logits: Array, allowed: Array) -> Below:
  """See Below.

  Args:
    index: of the items.
    logits: float32 [C + 1].
    allowed: bool [C + 1], the items that have a part in it.
  """
  leaves = index.leaf_item
  scores = jnp.where(allowed[leaves], logits[leaves], _NOTHING)
  if index.levels == 1:
    return Below(scores, (jnp.where(allowed[leaves], 1.0, 0.0),))
  first, end = _leaves_below(index)
  scale = _largest(scores, first, end)
  weights = jnp.exp(scores - scale[_owner(first, end, len(scores))])
  found = [jnp.where(allowed[leaves], weights, 0.0)]
  for level in reversed(range(1, index.levels)):
    found.append(_sums(found[-1], *_children(index, level)))
  return Below(scale, tuple(found[::-1]))


def token_logits(
  index: SidIndex, below: Below, node: Array, level: int
) -> Array:
  """Logits of the tokens that go on from a node of `level`, float32 [V].

  Of tokens without an item below they are finite, and mean nothing.
  """
  there, number = children(index, node, level)
  weight = below.weights[level].at[number].get(mode="clip")
  weight = jnp.where(there & (node >= 0), weight, 0.0)
  logits = jnp.log(jnp.maximum(weight, _LEAST))
  if level:
    return logits
  return logits + below.scale.at[number].get(mode="clip")


def without(index: SidIndex, below: Below, path: list[Array]) -> Below:
  """What is left without an item.

  The sums on its path are taken anew: a difference would leave the rounding of
  what is gone.

  Args:
    index: of the items.
    below: of `weights_below`.
    path: int32 [] for each level 1..L, the nodes that lead to the item; -1 on
      the last level: there is none, and nothing changes.
  """
  weights, there_is_one = list(below.weights), path[-1] >= 0

  def put(level, node, weight):
    node = jnp.where(there_is_one, node, len(weights[level]))
    weights[level] = weights[level].at[node].set(weight, mode="drop")

  put(index.levels - 1, path[-1], 0.0)
  for level in reversed(range(1, index.levels)):
    node = path[level - 1]
    there, number = children(index, node, level)
    each = weights[level].at[number].get(mode="clip")
    put(level - 1, node, jnp.where(there, each, 0.0).sum())
  return below._replace(weights=tuple(weights))


def _children(index: SidIndex, level: int) -> tuple[Array, Array]:
  """The first child of each node of `level`, and what follows its last one."""
  bits = jax.lax.population_count(index.present[level])
  first = index.first_child[level]
  return first, first + bits.sum(-1).astype(jnp.int32)


def _leaves_below(index: SidIndex) -> tuple[Array, Array]:
  """The first leaf below each first token, and what follows its last one."""
  first, end = _children(index, 1)
  for level in range(2, index.levels):
    firsts, ends = _children(index, level)
    empty = first == end
    last = ends.at[end - 1].get(mode="clip")
    first = firsts.at[first].get(mode="clip")
    end = jnp.where(empty, first, last)
  return first, end


def _owner(first: Array, end: Array, count: int) -> Array:
  """Which of the ranges, in their order, each of `count` places is in."""
  starts = jnp.where(end > first, first, count)
  begun = jnp.zeros(count, jnp.int32).at[starts].add(1, mode="drop")
  return jnp.maximum(jnp.cumsum(begun) - 1, 0)


def _largest(values: Array, first: Array, end: Array) -> Array:
  """The largest of values[first:end], of ranges [m]; _NOTHING of an empty one.

  By blocks: those that a range has as a whole, and the two at its ends.
  """
  blocks = jnp.pad(
    values, (0, -len(values) % _BLOCK), constant_values=_NOTHING
  ).reshape(-1, _BLOCK)
  first, end = first[:, None], end[:, None]
  begins = _BLOCK * jnp.arange(len(blocks))[None]
  whole = (begins >= first) & (begins + _BLOCK <= end)
  found = jnp.where(whole, blocks.max(1)[None], _NOTHING).max(1)
  for block in (first // _BLOCK, (end - 1) // _BLOCK):
    block = jnp.clip(block, 0, len(blocks) - 1)
    place = _BLOCK * block + jnp.arange(_BLOCK)[None]
    within = (place >= first) & (place < end)
    part = jnp.where(within, blocks[block[:, 0]], _NOTHING).max(1)
    found = jnp.maximum(found, part)
  return found


def _sums(values: Array, first: Array, end: Array) -> Array:
  """The sums of values[first:end], of ranges [m].

  Differences of running sums within blocks and of those of whole blocks, each
  as small as it can be: they are as exact as their largest term.
  """
  blocks = jnp.pad(values, (0, _BLOCK - len(values) % _BLOCK))
  blocks = blocks.reshape(-1, _BLOCK)
  ones = jnp.triu(jnp.ones((_BLOCK, _BLOCK)), 1)
  within = jnp.matmul(blocks, ones, precision="highest").reshape(-1)
  totals = within[_BLOCK - 1 :: _BLOCK] + blocks[:, -1]
  before = jnp.cumsum(totals) - totals
  whole = before[end // _BLOCK] - before[first // _BLOCK]
  return whole + within[end] - within[first]
