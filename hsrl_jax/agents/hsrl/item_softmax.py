"""A softmax over all items of ONE user, as a choice token by token.

The probability of a token is that of all items below it, so the product along a
SID is the probability of its item. Callers vmap.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.sid.index import SidIndex, children
from hsrl_jax.types import Array

_ROW = 32  # Leaves whose running sums are one product with a matrix.
# The largest item below a first token weighs 1. Weights are differences of
# sums, so what is smaller than this is rounding.
_LEAST = 1e-8
_NOTHING = -1e9  # The logit of an item that has no part in it.


class Below(NamedTuple):
  """Softmax weights of the items below each node."""

  # float32 [nodes_1], the largest logit below each first token. Items weigh
  # exp(logit - scale), so that those below a poor token are told apart however
  # good the best items are.
  scale: Array
  # For each level 1..L-1 float32 [nodes_l], sums of the weights of the items
  # below; and of the leaves, each at its place.
  weights: tuple[Array, ...]
  place: Array  # int32 [leaves], of each leaf.


class LeafRows(NamedTuple):
  """Leaves in rows, of which each has leaves below one first token alone.

  So what is largest below a first token, or summed, is so over whole rows.
  """

  item: Array  # int32 [R, S], of the leaf there; 0: none.
  # int32 [R], the first token of the leaves, as a number of its node.
  token: Array
  leaf_place: Array  # int32 [leaves], in the rows, one after the other.
  # int32 [C + 1], the same by item; R S of an item without a SID.
  item_place: Array
  # For each level 1..L-1 int32 [nodes_l] twice, the first leaf below each node,
  # and what follows the last one.
  ranges: list[tuple[Array, Array]]


def rows_of(index: SidIndex) -> LeafRows:
  """See LeafRows; the same for all users."""
  leaves, ranges = len(index.leaf_item), _leaves_below(index)
  if index.levels == 1:
    token = leaf_place = jnp.arange(leaves)
    item = index.leaf_item[:, None]
  else:
    first, end = ranges[0]
    count = -(-(end - first) // _ROW)
    start = jnp.cumsum(count) - count
    size = -(-leaves // _ROW) + len(first)  # At most, whatever the ranges.
    owner = _owner(first, end, leaves)
    leaf_place = _ROW * start[owner] + jnp.arange(leaves) - first[owner]
    item = jnp.zeros(size * _ROW, jnp.int32)
    item = item.at[leaf_place].set(index.leaf_item, mode="drop")
    item = item.reshape(size, _ROW)
    token = _owner(start, start + count, size)
  item_place = jnp.full(index.capacity + 1, item.size)
  item_place = item_place.at[index.leaf_item].set(leaf_place)
  item_place = item_place.at[0].set(item.size)
  return LeafRows(item, token, leaf_place, item_place, ranges)


def weights_below(
  index: SidIndex, rows: LeafRows, logits: Array, excluded: Array
) -> Below:
  """See Below; of active items.

  Args:
    index: of the items.
    rows: of the index.
    logits: float32 [R, S], of the items there.
    excluded: int32 [T], items that have no part in it; 0 is ignored.
  """
  scores = jnp.where(index.active[rows.item], logits, _NOTHING).reshape(-1)
  scores = scores.at[rows.item_place[excluded]].set(_NOTHING, mode="drop")
  scores = scores.reshape(logits.shape)
  first = index.first_child[1] if index.levels > 1 else index.leaf_item
  scale = jnp.full(len(first), _NOTHING).at[rows.token].max(scores.max(1))
  # Below a token with no such item all weigh 0.
  largest = jnp.where(scale > _NOTHING, scale, 0.0)[rows.token]
  weights = jnp.exp(scores - largest[:, None])
  sums = _sums(weights, rows)
  return Below(scale, (*sums, weights.reshape(-1)), rows.leaf_place)


def token_logits(
  index: SidIndex, below: Below, nodes: tuple[Array, Array], level: int
) -> Array:
  """Logits of the tokens that lead to `children` of a node, float32 [V].

  Of tokens without an item below they are finite, and mean nothing.
  """
  there, number = nodes
  weight = jnp.where(there, _weights(index, below, number, level), 0.0)
  logits = jnp.log(jnp.maximum(weight, _LEAST))
  if level:
    return logits
  return logits + below.scale.at[number].get(mode="clip")


def without(index: SidIndex, below: Below, path: list[Array]) -> Below:
  """Weights that are left without an item.

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

  put(index.levels - 1, below.place.at[path[-1]].get(mode="clip"), 0.0)
  for level in reversed(range(1, index.levels)):
    node = path[level - 1]
    there, number = children(index, node, level)
    left = below._replace(weights=tuple(weights))
    each = _weights(index, left, number, level)
    put(level - 1, node, jnp.where(there, each, 0.0).sum())
  return below._replace(weights=tuple(weights))


def _weights(index: SidIndex, below: Below, nodes: Array, level: int) -> Array:
  """Of nodes of `level` + 1; any where there is no such node."""
  if level + 1 == index.levels:
    nodes = below.place.at[nodes].get(mode="clip")
  return below.weights[level].at[nodes].get(mode="clip")


def _leaves_below(index: SidIndex) -> list[tuple[Array, Array]]:
  """For each level 1..L-1, each node's first leaf and what follows its last."""
  found: list[tuple[Array, Array]] = []
  for level in reversed(range(1, index.levels)):
    bits = jax.lax.population_count(index.present[level])
    first = index.first_child[level]
    end = first + bits.sum(-1).astype(jnp.int32)
    if found:
      firsts, ends = found[-1]
      last = ends.at[end - 1].get(mode="clip")
      empty, first = first == end, firsts.at[first].get(mode="clip")
      end = jnp.where(empty, first, last)
    found.append((first, end))
  return found[::-1]


def _owner(first: Array, end: Array, count: int) -> Array:
  """Which of the ranges, in their order, each of `count` places is in."""
  starts = jnp.where(end > first, first, count)
  begun = jnp.zeros(count, jnp.int32).at[starts].add(1, mode="drop")
  return jnp.maximum(jnp.cumsum(begun) - 1, 0)


def _sums(weights: Array, rows: LeafRows) -> list[Array]:
  """The sums of the weights below each node of the levels 1..L-1.

  Differences of running sums, which begin anew with each row, and of whole
  rows, anew with each first token: they are as exact as their largest term.
  """
  size = weights.shape[1]
  ones = jnp.triu(jnp.ones((size, size)), 1)
  within = jnp.matmul(weights, ones, precision="highest")
  totals = within[:, -1] + weights[:, -1]
  new = rows.token != jnp.roll(rows.token, 1)
  new = new.at[0].set(True)
  _, upto = jax.lax.associative_scan(_add_since, (new, totals))
  before = jnp.where(new, 0.0, jnp.roll(upto, 1))
  within, weights = within.reshape(-1), weights.reshape(-1)
  found = []
  for first, end in rows.ranges:
    begin = rows.leaf_place.at[first].get(mode="clip")
    last = rows.leaf_place.at[end - 1].get(mode="clip")
    whole = before[last // size] - before[begin // size]
    total = whole + within[last] - within[begin] + weights[last]
    found.append(jnp.where(end > first, total, 0.0))
  return found


def _add_since(
  earlier: tuple[Array, Array], later: tuple[Array, Array]
) -> tuple[Array, Array]:
  """Adds sums, (whether one begins anew, sum), of two neighbouring parts."""
  total = jnp.where(later[0], later[1], earlier[1] + later[1])
  return earlier[0] | later[0], total
