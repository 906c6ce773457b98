"""SidIndex: the fixed lookup SID <-> item, ready for constrained decoding.

A trie over the sorted SIDs. Node l, i is the i-th distinct prefix of l tokens.
For each node a bit per token says whether a child is there (`present`) and
whether an active item lies below it (`reachable`). A child's number is the
number of children before it: `first_child` of its parent plus the bits set
before its own. So one gather and a bit count follow a token, at any depth.

The shapes depend on capacity, L and V alone: an index that has changed, or
another one of the same sizes, does not re-trace a jitted function.
`build_index`, `add_items` and `remove_items` work on the host; the rest is for
the device.
"""

import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import files
from hsrl_jax.sid import resolve
from hsrl_jax.types import Array

_WORD = 32
_FORMAT = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SidIndex:
  """A pytree of arrays. Ids are 1..C, C the capacity; 0 is padding.

  W = ceil(V / 32). Level l = 0..L-1 has room for nodes_l = min(V^l, C) nodes
  (one at least); those that are not in use come last and have no children.

  Attributes:
    tokens: uint8, uint16 or int32 (by V) [C + 1, L], the SID of each item.
    known: bool [C + 1], whether the id has a SID; it keeps it for life.
    active: bool [C + 1], whether an item may be recommended.
    present: per level, uint32 [nodes_l, W].
    reachable: the same, for children with an active item below.
    first_child: per level, int32 [nodes_l].
    live: per level, int32 [nodes_l], the active items below each node.
    leaf_item: int32 [min(V^L, C)], the item of each leaf, in order of SIDs.
    vocab_size: V, static.
  """

  tokens: Array
  known: Array
  active: Array
  present: tuple[Array, ...]
  reachable: tuple[Array, ...]
  first_child: tuple[Array, ...]
  live: tuple[Array, ...]
  leaf_item: Array
  vocab_size: int = dataclasses.field(metadata={"static": True})

  @property
  def levels(self) -> int:
    """L."""
    return self.tokens.shape[1]

  @property
  def capacity(self) -> int:
    """C, the largest id that fits; static under jit."""
    return self.tokens.shape[0] - 1

  @property
  def num_items(self) -> int:
    """The largest id that has a SID, active or not; host only."""
    return int(np.flatnonzero(np.asarray(self.known)).max(initial=0))


def build_index(
  tokens: np.ndarray,
  vocab_size: int,
  active: np.ndarray | None = None,
  capacity: int | None = None,
) -> SidIndex:
  """Builds the index on the host.

  >>> index = build_index([[0, 1], [2, 0], [0, 3]], vocab_size=4, capacity=8)
  >>> int(lookup(index, jnp.asarray([2, 0])))
  2
  >>> sid_of(index, 3).tolist()
  [0, 3]
  >>> valid_tokens(index, jnp.int32(0), level=0).tolist()
  [True, False, True, False]

  Args:
    tokens: int [N, L], row i is the SID of item i + 1; distinct rows.
    vocab_size: V; V^L is below 2^63.
    active: bool [N], all True by default.
    capacity: C, N by default.

  Raises:
    ValueError: a token outside 0..V-1, a SID that two items share, or a
      capacity below N.
  """
  tokens = np.asarray(tokens)
  items = np.arange(1, len(tokens) + 1)
  if active is None:
    active = np.ones(len(tokens), bool)
  if capacity is None:
    capacity = len(tokens)
  return _build(items, tokens, vocab_size, np.asarray(active, bool), capacity)


def add_items(
  index: SidIndex, items: np.ndarray, codebooks: np.ndarray, x: np.ndarray
) -> SidIndex:
  """A new index with more active items; on the host.

  An id that was removed gets its old SID back. A new id is encoded to a SID
  that no item has ever had. As long as the ids fit the capacity, all shapes
  stay; else the capacity at least doubles.

  >>> codebooks = np.asarray([[[0.0], [10.0]], [[0.0], [1.0]]], np.float32)
  >>> index = build_index([[0, 0], [1, 0]], vocab_size=2, capacity=3)
  >>> index = add_items(index, [3], codebooks, [[0.2]])
  >>> sid_of(index, 3).tolist()  # [0, 0] is nearest, but taken.
  [0, 1]
  >>> add_items(index, [4], codebooks, [[9.0]]).capacity
  6

  Args:
    index: the index.
    items: int [M], distinct ids above 0 that are not active.
    codebooks: float32 [L, V, D], those of the index's SIDs.
    x: float32 [M, D], what to encode; rows of ids that have a SID are ignored.

  Raises:
    ValueError: an id that is active, twice there or outside 1..2^31-2; `x` or
      `codebooks` of another shape; a new item's row that is not finite; no SID
      left.
  """
  items, x, codebooks = _ids(items), np.asarray(x), np.asarray(codebooks)
  sizes = (index.levels, index.vocab_size)
  if codebooks.ndim != 3 or codebooks.shape[:2] != sizes:
    raise ValueError(
      f"codebooks have the shape {list(codebooks.shape)}; expected those that "
      f"gave the SIDs of the index, [{sizes[0]}, {sizes[1]}, width]"
    )
  if x.shape != (len(items), codebooks.shape[2]):
    raise ValueError(
      f"x has the shape {list(x.shape)} for {len(items)} items; expected "
      f"{[len(items), codebooks.shape[2]]}"
    )
  index = jax.tree.map(np.asarray, index)
  if items.max(initial=0) > index.capacity:
    index = _grow(index, max(2 * index.capacity, int(items.max())))
  if index.active[items].any():
    item = items[index.active[items].argmax()]
    raise ValueError(f"item {item} is active already; expected new or removed")
  new = ~index.known[items]
  bad = new & ~np.isfinite(x).all(1)
  if bad.any():
    raise ValueError(
      f"{np.count_nonzero(bad)} rows of x are not finite, the first of item "
      f"{items[bad.argmax()]}; expected finite numbers"
    )
  if new.any():
    tokens = resolve.encode_unique(codebooks, x[new], taken=_taken(index))
    index = _insert(index, items[new], np.asarray(tokens))
  return jax.tree.map(jnp.asarray, _switch(index, items, True))


def remove_items(index: SidIndex, items: np.ndarray) -> SidIndex:
  """A new index of the same shapes without these items; on the host.

  >>> index = build_index([[0, 1], [2, 0]], vocab_size=4)
  >>> index = remove_items(index, [2])
  >>> int(lookup(index, jnp.asarray([2, 0])))
  0
  >>> sid_of(index, 2).tolist()  # Kept, for the case that it comes back.
  [2, 0]

  Args:
    index: the index.
    items: int [M], distinct ids of active items.

  Raises:
    ValueError: an id that is not active, or is there twice.
  """
  items, index = _ids(items), jax.tree.map(np.asarray, index)
  active = index.active[np.minimum(items, index.capacity)]
  active &= items <= index.capacity
  if not active.all():
    raise ValueError(
      f"item {items[active.argmin()]} is not active; expected an active item"
    )
  return jax.tree.map(jnp.asarray, _switch(index, items, False))


def save_index(path: str | os.PathLike, index: SidIndex) -> None:
  """Writes the index to `path`, one .npz, all or nothing."""
  buffer = io.BytesIO()
  np.savez(buffer, format=_FORMAT, **to_arrays(index))
  files.write_atomic(pathlib.Path(path), buffer.getvalue())


def load_index(path: str | os.PathLike) -> SidIndex:
  """Reads what `save_index` wrote: the same index, array for array.

  Raises:
    ValueError: the file is damaged, of another kind or of another format.
    OSError: the file cannot be opened.
  """
  with open(path, "rb") as file:
    try:
      return _read(file)
    except Exception as error:  # Any error of the readers is a damaged file.
      raise ValueError(
        f"{path} is no index that can be read ({error}); expected a file that "
        "save_index wrote: write it again"
      ) from error


def to_arrays(index: SidIndex) -> dict[str, np.ndarray]:
  """What `from_arrays` makes the index of: small, and a file's members.

  Returns:
    vocab_size and capacity []; of the M known ids, ascending: items int32 [M],
    tokens [M, L] and active bool [M].
  """
  known = np.asarray(index.known)
  return {
    "vocab_size": np.asarray(index.vocab_size),
    "capacity": np.asarray(index.capacity),
    "items": np.flatnonzero(known).astype(np.int32),
    "tokens": np.asarray(index.tokens)[known],
    "active": np.asarray(index.active)[known],
  }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> SidIndex:
  """The index of what `to_arrays` returned; another capacity may be put there.

  Raises:
    KeyError: an array is missing.
    ValueError: see `build_index`.
  """
  return _build(
    _ids(arrays["items"]),
    arrays["tokens"],
    int(arrays["vocab_size"]),
    arrays["active"],
    int(arrays["capacity"]),
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
  words = _row(index.reachable[level], node)
  bits = (words[:, None] >> jnp.arange(_WORD, dtype=jnp.uint32)[None]) & 1
  return (bits.reshape(-1)[: index.vocab_size] == 1) & (node >= 0)


def child(index: SidIndex, node: Array, token: Array, level: int) -> Array:
  """The node (at the last level: the leaf) that `token` leads to, or -1.

  Args:
    index: the index.
    node: int32 [], a node of `level`; -1 is no node.
    token: int32 [], 0..V-1.
    level: length of the node's prefix, 0..L-1.
  """
  words = _row(index.present[level], node)
  word, bit = token // _WORD, (token % _WORD).astype(jnp.uint32)
  there = (words[word] >> bit) & 1
  before = jnp.where(jnp.arange(words.shape[0]) < word, words, jnp.uint32(0))
  before = jax.lax.population_count(before).sum()
  below = words[word] & ((jnp.uint32(1) << bit) - 1)
  rank = before + jax.lax.population_count(below)
  number = _row(index.first_child[level], node) + rank.astype(jnp.int32)
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
  item = item_of(index, node)
  return jnp.where(index.active[item], item, 0)


def item_of(index: SidIndex, leaf: Array) -> Array:
  """The item of a leaf, active or not, int32 [...] -> int32 [...]; 0 for -1."""
  return jnp.where(leaf >= 0, _row(index.leaf_item, leaf), 0)


def sid_of(index: SidIndex, item: Array) -> Array:
  """The SID of `item`, int32 [...] -> int32 [..., L].

  Active or not; -1 for padding and for ids that never had a SID.
  """
  tokens = index.tokens[item].astype(jnp.int32)
  return jnp.where(index.known[item][..., None], tokens, -1)


def _row(array: Array, node: Array) -> Array:
  """array[node], unchecked; any row where there is no node."""
  return array.at[jnp.maximum(node, 0)].get(mode="promise_in_bounds")


# The rest is for the host: a SidIndex whose leaves are numpy arrays, of which
# nothing is changed in place.


def _build(
  items: np.ndarray,
  tokens: np.ndarray,
  vocab_size: int,
  active: np.ndarray,
  capacity: int,
) -> SidIndex:
  """An index of the ids [N] with the SIDs [N, L]."""
  if tokens.ndim != 2 or not tokens.shape[1] or tokens.dtype.kind not in "iu":
    raise ValueError(
      f"tokens are {tokens.dtype} of the shape {list(tokens.shape)}; expected "
      "integers [items, levels]"
    )
  levels = tokens.shape[1]
  if vocab_size**levels >= 2**63:
    raise ValueError(
      f"{vocab_size}^{levels} SIDs; expected fewer than 2^63: use fewer levels"
    )
  if active.shape != items.shape:
    raise ValueError(
      f"active has the shape {list(active.shape)}; expected {[len(items)]}"
    )
  if items.max(initial=0) > capacity:
    raise ValueError(
      f"capacity {capacity}; expected {items.max()}, the largest id, or more"
    )
  outside = (tokens < 0) | (tokens >= vocab_size)
  if outside.any():
    row = int(outside.any(1).argmax())
    raise ValueError(
      f"item {items[row]} has the SID {tokens[row].tolist()}; "
      f"expected tokens from 0 to {vocab_size - 1}"
    )
  words = -(-vocab_size // _WORD)
  nodes = [_nodes(l, vocab_size, capacity) for l in range(levels + 1)]
  bits = tuple(np.zeros((n, words), np.uint32) for n in nodes[:-1])
  counts = tuple(np.zeros(n, np.int32) for n in nodes[:-1])
  dtype = next(
    d
    for d in (np.uint8, np.uint16, np.int32)
    if vocab_size - 1 <= np.iinfo(d).max
  )
  index = SidIndex(
    tokens=np.zeros((capacity + 1, levels), dtype),
    known=np.zeros(capacity + 1, bool),
    active=np.zeros(capacity + 1, bool),
    present=bits,
    reachable=bits,
    first_child=counts,
    live=counts,
    leaf_item=np.zeros(nodes[-1], np.int32),
    vocab_size=vocab_size,
  )
  index = _insert(index, items, tokens.astype(dtype))
  index = _switch(index, items[active], True)
  return jax.tree.map(jnp.asarray, index)


def _nodes(level: int, vocab_size: int, capacity: int) -> int:
  """Room for prefixes of `level` tokens: as many as there can ever be."""
  return min(vocab_size**level, max(capacity, 1))


def _grow(index: SidIndex, capacity: int) -> SidIndex:
  """The same items with more room."""

  def pad(array, rows):
    after = [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, after)

  def levels(arrays):
    return tuple(
      pad(array, _nodes(level, index.vocab_size, capacity))
      for level, array in enumerate(arrays)
    )

  return dataclasses.replace(
    index,
    tokens=pad(index.tokens, capacity + 1),
    known=pad(index.known, capacity + 1),
    active=pad(index.active, capacity + 1),
    present=levels(index.present),
    reachable=levels(index.reachable),
    first_child=levels(index.first_child),
    live=levels(index.live),
    leaf_item=pad(
      index.leaf_item, _nodes(index.levels, index.vocab_size, capacity)
    ),
  )


def _insert(index: SidIndex, items: np.ndarray, tokens: np.ndarray) -> SidIndex:
  """Gives the unknown ids [M] the SIDs [M, L]; they are not active yet."""
  order = np.argsort(resolve.numbers(tokens, index.vocab_size), kind="stable")
  items, tokens = items[order], tokens[order]
  present, reachable, first_child, live = [], [], [], []
  row = np.zeros(len(items), np.int64)  # Of each SID's prefix, at this level.
  fresh = row[:0]  # The rows that are new at this level, ascending.
  for level in range(index.levels):
    words = _spread(index.present[level], fresh)
    token = tokens[:, level]
    place, bit = _place(words, row, token)
    there = (words.reshape(-1)[place] & bit) != 0
    starts = ~there  # Where a child is new, and not that of the SID before.
    starts[1:] &= (place[1:] != place[:-1]) | (bit[1:] != bit[:-1])
    np.bitwise_or.at(words.reshape(-1), place[starts], bit[starts])
    present.append(words)
    reachable.append(_spread(index.reachable[level], fresh))
    live.append(_spread(index.live[level], fresh))
    before = _before(words)
    first_child.append(before[:: words.shape[1]].copy())
    row = _children(words, before, row, token)
    fresh = row[starts]
  leaf_item = _spread(index.leaf_item, fresh)
  if not starts.all():
    again = int(starts.argmin())
    raise ValueError(
      f"items {items[again - 1]} and {items[again]} share the SID "
      f"{tokens[again].tolist()}; expected one item a SID"
    )
  leaf_item[row] = items
  all_tokens, known = index.tokens.copy(), index.known.copy()
  all_tokens[items], known[items] = tokens, True
  return dataclasses.replace(
    index,
    tokens=all_tokens,
    known=known,
    present=tuple(present),
    reachable=tuple(reachable),
    first_child=tuple(first_child),
    live=tuple(live),
    leaf_item=leaf_item,
  )


def _switch(index: SidIndex, items: np.ndarray, on: bool) -> SidIndex:
  """Makes the ids [M], all known and the other way now, active or inactive."""
  rows = [np.zeros(len(items), np.int64)]  # Of each prefix, by level.
  live = []
  for level in range(index.levels):
    change = np.bincount(rows[level], minlength=len(index.live[level]))
    change = change.astype(np.int32)
    live.append(index.live[level] + (change if on else -change))
    token = index.tokens[items, level]
    words = index.present[level]
    rows.append(_children(words, _before(words), rows[level], token))
  reachable = []
  for level in range(index.levels):
    words = index.reachable[level].copy()
    place, bit = _place(words, rows[level], index.tokens[items, level])
    if on:
      np.bitwise_or.at(words.reshape(-1), place, bit)
    else:
      dead = np.ones(len(items), bool)
      if level + 1 < index.levels:
        dead = live[level + 1][rows[level + 1]] == 0
      np.bitwise_and.at(words.reshape(-1), place[dead], ~bit[dead])
    reachable.append(words)
  active = index.active.copy()
  active[items] = on
  return dataclasses.replace(
    index, active=active, reachable=tuple(reachable), live=tuple(live)
  )


def _spread(array: np.ndarray, fresh: np.ndarray) -> np.ndarray:
  """A copy with rows of 0 in the places `fresh`; unused rows drop out."""
  if not len(fresh):
    return array.copy()
  old = np.ones(len(array), bool)
  old[fresh] = False
  spread = np.zeros_like(array)
  spread[old] = array[: len(array) - len(fresh)]
  return spread


def _place(
  words: np.ndarray, row: np.ndarray, token: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Where in the flat words, and which bit there, stands for a token."""
  place = row * words.shape[1] + token // _WORD
  return place, np.uint32(1) << (token % _WORD).astype(np.uint32)


def _before(words: np.ndarray) -> np.ndarray:
  """How many bits are set before each of the flat words, int32."""
  counts = np.bitwise_count(words).reshape(-1)
  return np.cumsum(counts, dtype=np.int32) - counts


def _children(
  words: np.ndarray, before: np.ndarray, row: np.ndarray, token: np.ndarray
) -> np.ndarray:
  """The number of each row's child, which must be there; int64."""
  place, bit = _place(words, row, token)
  below = words.reshape(-1)[place] & (bit - np.uint32(1))
  return before[place] + np.bitwise_count(below).astype(np.int64)


def _taken(index: SidIndex) -> np.ndarray:
  """The numbers of all SIDs ever given, ascending."""
  items = index.leaf_item[: np.count_nonzero(index.known)]
  tokens = index.tokens[: items.max(initial=0) + 1]
  return resolve.numbers(tokens, index.vocab_size)[items]


def _ids(items: np.ndarray) -> np.ndarray:
  """Checks ids [M]: integers above 0, distinct."""
  items = np.asarray(items)
  if items.ndim != 1 or (items.size and items.dtype.kind not in "iu"):
    raise ValueError(
      f"items are {items.dtype} of the shape {list(items.shape)}; expected "
      "integers [items]"
    )
  items = items.astype(np.int64)
  outside = (items < 1) | (items > 2**31 - 2)
  if outside.any():
    raise ValueError(
      f"item {items[outside.argmax()]}; expected ids from 1 to {2**31 - 2}"
    )
  ranked = np.sort(items)
  twice = ranked[1:] == ranked[:-1]
  if twice.any():
    raise ValueError(
      f"item {ranked[twice.argmax()]} is there twice; expected distinct items"
    )
  return items


def _read(file: BinaryIO) -> SidIndex:
  with np.load(file) as arrays:
    if arrays["format"] != _FORMAT:
      raise ValueError(f"format {arrays['format']}, expected {_FORMAT}")
    return from_arrays(arrays)
