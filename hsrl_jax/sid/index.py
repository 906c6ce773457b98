"""SidIndex: the fixed lookup SID <-> item, ready for constrained decoding.

A trie over the sorted SIDs. Node l, i is the i-th distinct prefix of l tokens.
For each node a bit per token says whether a child is there (`present`) and
whether an active item lies below it (`active`). A child's number is the
number of children before it: `first_child` of its parent plus the bits set
before its own. So one gather and a bit count follow a token, at any depth.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from hsrl_jax.types import Array

_WORD = 32


@struct.dataclass
class SidIndex:
  """A pytree of device arrays. Ids are 1..N; 0 is padding. W = ceil(V / 32).

  Attributes:
    tokens: int32 [N + 1, L], the SID of each item; row 0 is -1.
    active: bool [N + 1], whether an item may be recommended.
    present: per level l = 0..L-1, uint32 [nodes_l, W].
    reachable: the same, for children with an active item below.
    first_child: per level, int32 [nodes_l].
    leaf_item: int32 [N], the item of each leaf, in the order of the SIDs.
    vocab_size: V, static.
  """

  tokens: Array
  active: Array
  present: tuple[Array, ...]
  reachable: tuple[Array, ...]
  first_child: tuple[Array, ...]
  leaf_item: Array
  vocab_size: int = struct.field(pytree_node=False)

  @property
  def levels(self) -> int:
    """L."""
    return self.tokens.shape[1]

  @property
  def num_items(self) -> int:
    """N, active or not."""
    return self.tokens.shape[0] - 1


def build(
  tokens: np.ndarray, vocab_size: int, active: np.ndarray | None = None
) -> SidIndex:
  """Builds the index on the host.

  Args:
    tokens: int [N, L], row i is the SID of item i + 1; distinct rows.
    vocab_size: V.
    active: bool [N], all True by default.

  Raises:
    ValueError: a token outside 0..V-1, or a SID that two items share.
  """
  tokens = np.asarray(tokens, np.int32)
  num_items, levels = tokens.shape
  if active is None:
    active = np.ones(num_items, bool)
  outside = (tokens < 0) | (tokens >= vocab_size)
  if outside.any():
    row = int(outside.any(1).argmax())
    raise ValueError(
      f"item {row + 1} has the SID {tokens[row].tolist()}; "
      f"expected tokens from 0 to {vocab_size - 1}"
    )
  order = np.lexsort(tokens.T[::-1])
  ranked, alive = tokens[order], np.asarray(active, bool)[order]
  # differs[i] = the first level at which leaf i differs from the leaf before.
  change = ranked[1:] != ranked[:-1]
  shared = ~change.any(1)
  if shared.any():
    row = int(shared.argmax())
    raise ValueError(
      f"items {order[row] + 1} and {order[row + 1] + 1} share the SID "
      f"{ranked[row].tolist()}; expected one item a SID"
    )
  differs = np.concatenate([[0], change.argmax(1)]).astype(np.int64)

  present, reachable, first_child = [], [], []
  parent = np.zeros(num_items, np.int64)  # Node of each leaf at this level.
  for level in range(levels):
    starts = differs <= level  # Leaves at which a new child starts.
    child = np.cumsum(starts) - 1
    num_nodes = int(parent[-1]) + 1 if num_items else 1
    child_parent, child_token = parent[starts], ranked[starts, level]
    child_alive = np.zeros(int(starts.sum()), bool)
    np.logical_or.at(child_alive, child, alive)
    present.append(_pack(child_parent, child_token, num_nodes, vocab_size))
    reachable.append(
      _pack(
        child_parent[child_alive],
        child_token[child_alive],
        num_nodes,
        vocab_size,
      )
    )
    first_child.append(
      np.searchsorted(child_parent, np.arange(num_nodes)).astype(np.int32)
    )
    parent = child
  return SidIndex(
    tokens=jnp.asarray(np.vstack([np.full((1, levels), -1), tokens])),
    active=jnp.asarray(np.concatenate([[False], active])),
    present=tuple(map(jnp.asarray, present)),
    reachable=tuple(map(jnp.asarray, reachable)),
    first_child=tuple(map(jnp.asarray, first_child)),
    leaf_item=jnp.asarray((order + 1).astype(np.int32)),
    vocab_size=vocab_size,
  )


def valid_tokens(index: SidIndex, node: Array, level: int) -> Array:
  """Which tokens lead from a node to an active item.

  Args:
    index: the index.
    node: int32 [], a node of `level`; -1 is no node.
    level: length of the node's prefix, 0..L-1; node 0 of level 0 is the root.

  Returns:
    bool [V].
  """
  words = index.reachable[level][jnp.maximum(node, 0)]
  token = jnp.arange(index.vocab_size)
  bits = (words[token // _WORD] >> (token % _WORD).astype(jnp.uint32)) & 1
  return (bits == 1) & (node >= 0)


def child(index: SidIndex, node: Array, token: Array, level: int) -> Array:
  """The node (at the last level: the leaf) that `token` leads to, or -1.

  Args:
    index: the index.
    node: int32 [], a node of `level`; -1 is no node.
    token: int32 [], 0..V-1.
    level: length of the node's prefix, 0..L-1.
  """
  row = jnp.maximum(node, 0)
  words = index.present[level][row]
  word, bit = token // _WORD, (token % _WORD).astype(jnp.uint32)
  there = (words[word] >> bit) & 1
  before = jnp.where(jnp.arange(words.shape[0]) < word, words, jnp.uint32(0))
  before = jax.lax.population_count(before).sum()
  below = words[word] & ((jnp.uint32(1) << bit) - 1)
  rank = before + jax.lax.population_count(below)
  number = index.first_child[level][row] + rank.astype(jnp.int32)
  return jnp.where((there == 1) & (node >= 0), number, -1)


def lookup(index: SidIndex, sid: Array) -> Array:
  """The item with the SID `sid`, int32 [L] -> int32 []; 0 where there is none.

  Inactive items count as none.
  """
  in_range = ((sid >= 0) & (sid < index.vocab_size)).all()
  node = jnp.where(in_range, 0, -1)
  for level in range(index.levels):
    token = jnp.clip(sid[level], 0, index.vocab_size - 1)
    node = child(index, node, token, level)
  item = jnp.where(node >= 0, index.leaf_item[jnp.maximum(node, 0)], 0)
  return jnp.where(index.active[item], item, 0)


def sid_of(index: SidIndex, item: Array) -> Array:
  """The SID of `item`, int32 [...] -> int32 [..., L]; -1 for padding."""
  return index.tokens[item]


def _pack(
  row: np.ndarray, token: np.ndarray, num_rows: int, vocab_size: int
) -> np.ndarray:
  """Sets bit `token` of `row` in uint32 [num_rows, W]."""
  words = np.zeros((num_rows, -(-vocab_size // _WORD)), np.uint32)
  bit = np.uint32(1) << (token % _WORD).astype(np.uint32)
  np.bitwise_or.at(words, (row, token // _WORD), bit)
  return words
