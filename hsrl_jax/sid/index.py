"""SidIndex: the fixed lookup SID <-> item, ready for constrained decoding.

A trie over the sorted SIDs. Node l, i is the i-th distinct prefix of l tokens.
For each node a bit per token says whether a child is there (`present`) and
whether an active item lies below it (`reachable`). A child's number is the
number of children before it: `first_child` of its parent plus the bits set
before its own. So one gather and a bit count follow a token, at any depth.

The shapes depend on capacity, L and V alone: a jitted function is not traced
again for an index that has changed, or for another one of the same sizes.
The functions here run on the device; `trie` builds and changes an index on the
host.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.types import Array

WORD = 32  # Tokens, one bit each, in a word of `present` and `reachable`.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SidIndex:
  """Trie of SIDs, a pytree. Ids are 1..C, C the capacity; 0 is padding.

  W = ceil(V / 32). Level l = 0..L-1 has room for nodes_l = min(V^l, C) nodes
  (one at least); those that are not in use come last and have no children.
  """

  # Per level, uint8, uint16 or int32 (by V) [C + 1], the tokens of the items'
  # SIDs. One matrix of them would take 128 bytes an item on a TPU.
  tokens: tuple[Array, ...]
  # bool [C + 1], whether the id has a SID; an id keeps its SID for life.
  known: Array
  active: Array  # bool [C + 1], whether an item may be recommended.
  present: tuple[Array, ...]  # Per level, uint32 [nodes_l, W].
  # The same, for children with an active item below.
  reachable: tuple[Array, ...]
  first_child: tuple[Array, ...]  # Per level, int32 [nodes_l].
  # Per level, int32 [nodes_l], the active items below each node.
  live: tuple[Array, ...]
  # int32 [min(V^L, C)], the item of each leaf, in order of SIDs.
  leaf_item: Array
  vocab_size: int = dataclasses.field(metadata={"static": True})  # V, static.
  # What a search asks of prefixes beside, see `permits`; None: nothing.
  permit: Any = None

  @property
  def levels(self) -> int:
    """Number of levels, L."""
    return len(self.tokens)

  @property
  def capacity(self) -> int:
    """Largest id that fits, C; static under jit."""
    return len(self.known) - 1

  @property
  def num_items(self) -> int:
    """Largest id that has a SID, active or not; host only."""
    return int(np.flatnonzero(np.asarray(self.known)).max(initial=0))

  @property
  def sids(self) -> np.ndarray:
    """The tokens of all ids, [C + 1, L]; host only."""
    return np.stack(self.tokens, 1)


class Catalogue(NamedTuple):
  """The items on the device; an input of what is compiled, so it may change."""

  features: Array  # float32 [N + 1, D], row 0 for padding.
  index: SidIndex  # Their SIDs.
  codebooks: Array  # float32 [L, V, D], what the tokens mean.
  # float32 [N + 1], positive responses in the training logs; None where nobody
  # asks.
  popularity: Array | None = None
  # float32 [N + 1], showings of each item there; likewise.
  exposures: Array | None = None
  # bool [N + 1, C], those of each item; None: there are none.
  categories: Array | None = None
  # float32 [0, F], of which the width counts: an item's first F features are
  # all that users respond to, the rest are topics; None: all are.
  plain: Array | None = None


def valid_tokens(index: SidIndex, node: Array, level: int) -> Array:
  """Finds the tokens that lead from a node to an active item.

  Args:
    index: the index.
    node: int32 [], a node of `level`; -1 is no node.
    level: length of the node's prefix, 0..L-1; node 0 of level 0 is the root.

  Returns:
    bool [V].
  """
  words = _row(index.reachable[level], node)
  bits = (words[:, None] >> jnp.arange(WORD, dtype=jnp.uint32)[None]) & 1
  return (bits.reshape(-1)[: index.vocab_size] == 1) & (node >= 0)


def child(index: SidIndex, node: Array, token: Array, level: int) -> Array:
  """Follows `token`, int32 [], to a node, at the last level to a leaf.

  Nodes are those of `valid_tokens`; -1: there is none.
  """
  words = _row(index.present[level], node)
  word, bit = token // WORD, (token % WORD).astype(jnp.uint32)
  there = (words[word] >> bit) & 1
  before = jnp.where(jnp.arange(words.shape[0]) < word, words, jnp.uint32(0))
  before = jax.lax.population_count(before).sum()
  below = words[word] & ((jnp.uint32(1) << bit) - 1)
  rank = before + jax.lax.population_count(below)
  number = _row(index.first_child[level], node) + rank.astype(jnp.int32)
  return jnp.where((there == 1) & (node >= 0), number, -1)


def lookup(index: SidIndex, sid: Array) -> Array:
  """Finds the active item of a SID, int32 [L] -> int32 []; 0 is none."""
  in_range = ((sid >= 0) & (sid < index.vocab_size)).all()
  node = jnp.where(in_range, 0, -1)
  for level in range(index.levels):
    token = jnp.clip(sid[level], 0, index.vocab_size - 1)
    node = child(index, node, token, level)
  item = item_of(index, node)
  return jnp.where(index.active[item], item, 0)


def item_of(index: SidIndex, leaf: Array) -> Array:
  """Item of a leaf, active or not, int32 [...] -> int32 [...]; 0 for -1."""
  return jnp.where(leaf >= 0, _row(index.leaf_item, leaf), 0)


def sid_of(index: SidIndex, item: Array) -> Array:
  """SID of an item, active or not, int32 [...] -> int32 [..., L].

  -1 for padding and for ids that never had a SID.
  """
  tokens = jnp.stack([x[item] for x in index.tokens], -1).astype(jnp.int32)
  return jnp.where(index.known[item][..., None], tokens, -1)


def _row(array: Array, node: Array) -> Array:
  """Reads array[node], unchecked; any row where there is no node."""
  return array.at[jnp.maximum(node, 0)].get(mode="promise_in_bounds")


def live_children(
  index: SidIndex, below: tuple[Array, Array], level: int
) -> Array:
  """Active items below each of `children` of a node of `level`, int32 [V]."""
  there, number = below
  if level + 1 < index.levels:
    live = index.live[level + 1].at[number].get(mode="clip")
  else:
    leaf = index.leaf_item.at[number].get(mode="clip")
    live = index.active[leaf].astype(jnp.int32)
  return jnp.where(there, live, 0)


def children(index: SidIndex, node: Array, level: int) -> tuple[Array, Array]:
  """Whether a node has each child, and the children's numbers, [V]."""
  words = _row(index.present[level], node)
  bit = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)[None]
  there = (words[:, None] & bit) != 0
  # Counting bits is faster than a running sum over tokens.
  count = jax.lax.population_count(words)
  before = _row(index.first_child[level], node) + jnp.cumsum(count) - count
  rank = jax.lax.population_count(words[:, None] & (bit - 1))
  number = before.astype(jnp.int32)[:, None] + rank.astype(jnp.int32)
  size = index.vocab_size
  return there.reshape(-1)[:size] & (node >= 0), number.reshape(-1)[:size]


def leaves(index: SidIndex, nodes: Array) -> tuple[Array, Array]:
  """The first leaf below nodes of level L - 1, and how many, int32 [B]."""
  words = _row(index.present[-1], nodes)
  count = jax.lax.population_count(words).astype(jnp.int32).sum(-1)
  first = _row(index.first_child[-1], nodes)
  return first, jnp.where(nodes >= 0, count, 0)
