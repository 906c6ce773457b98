"""Builds and changes a SidIndex on the host; nothing is changed in place.

Inside this file the leaves of a SidIndex are numpy arrays.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.sid import resolve
from hsrl_jax.sid.index import WORD, SidIndex


def build_index(
  tokens: np.ndarray,
  vocab_size: int,
  active: np.ndarray | None = None,
  capacity: int | None = None,
) -> SidIndex:
  """Builds an index.

  >>> index = build_index([[0, 1], [2, 0], [0, 3]], vocab_size=4, capacity=8)
  >>> int(sid.lookup(index, jnp.asarray([2, 0])))
  2
  >>> sid.sid_of(index, 3).tolist()
  [0, 3]
  >>> sid.valid_tokens(index, jnp.int32(0), level=0).tolist()
  [True, False, True, False]

  Args:
    tokens: int [N, L], row i is the SID of item i + 1; distinct rows.
    vocab_size: V; V^L is below 2^63.
    active: bool [N], all True by default.
    capacity: C, N by default.

  Raises:
    ValueError: a token is outside 0..V-1, two items share a SID, or the
      capacity is below N.
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
  """Returns a new index with more active items.

  An id that was removed gets its old SID back. A new id gets a SID that no
  item has ever had. While the ids fit the capacity all shapes stay; otherwise
  the capacity at least doubles.

  >>> codebooks = np.asarray([[[0.0], [10.0]], [[0.0], [1.0]]], np.float32)
  >>> index = build_index([[0, 0], [1, 0]], vocab_size=2, capacity=3)
  >>> index = add_items(index, [3], codebooks, [[0.2]])
  >>> sid.sid_of(index, 3).tolist()  # [0, 0] is nearest, but taken.
  [0, 1]
  >>> add_items(index, [4], codebooks, [[9.0]]).capacity
  6

  Args:
    index: the index.
    items: int [M], distinct ids above 0 that are not active.
    codebooks: float32 [L, V, D], by which the SIDs of the index were encoded.
    x: float32 [M, D], vectors to encode; those of ids with a SID are ignored.

  Raises:
    ValueError: an id is active, given twice or outside 1..2^31-2; `x` or
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
  """Returns a new index of the same shapes without these items.

  >>> index = build_index([[0, 1], [2, 0]], vocab_size=4)
  >>> index = remove_items(index, [2])
  >>> int(sid.lookup(index, jnp.asarray([2, 0])))
  0
  >>> sid.sid_of(index, 2).tolist()  # Kept in case the item comes back.
  [2, 0]

  Args:
    index: the index.
    items: int [M], distinct ids of active items.

  Raises:
    ValueError: an id is not active, or is given twice.
  """
  items, index = _ids(items), jax.tree.map(np.asarray, index)
  active = index.active[np.minimum(items, index.capacity)]
  active &= items <= index.capacity
  if not active.all():
    raise ValueError(
      f"item {items[active.argmin()]} is not active; expected an active item"
    )
  return jax.tree.map(jnp.asarray, _switch(index, items, False))


def to_arrays(index: SidIndex) -> dict[str, np.ndarray]:
  """Returns the few arrays from which `from_arrays` rebuilds the index.

  Returns:
    vocab_size and capacity []; of the M known ids, ascending: items int32 [M],
    tokens [M, L] and active bool [M].
  """
  known = np.asarray(index.known)
  return {
    "vocab_size": np.asarray(index.vocab_size),
    "capacity": np.asarray(index.capacity),
    "items": np.flatnonzero(known).astype(np.int32),
    "tokens": index.sids[known],
    "active": np.asarray(index.active)[known],
  }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> SidIndex:
  """Rebuilds the index from the arrays of `to_arrays`.

  The capacity among them may be replaced by another one.

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


def _build(
  items: np.ndarray,
  tokens: np.ndarray,
  vocab_size: int,
  active: np.ndarray,
  capacity: int,
) -> SidIndex:
  """Builds an index of the ids [N] with the SIDs [N, L], after checks."""
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
  words = -(-vocab_size // WORD)
  nodes = [_nodes(l, vocab_size, capacity) for l in range(levels + 1)]
  bits = tuple(np.zeros((n, words), np.uint32) for n in nodes[:-1])
  counts = tuple(np.zeros(n, np.int32) for n in nodes[:-1])
  dtype = next(
    d
    for d in (np.uint8, np.uint16, np.int32)
    if vocab_size - 1 <= np.iinfo(d).max
  )
  index = SidIndex(
    tokens=tuple(np.zeros((levels, capacity + 1), dtype)),
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
  """Largest possible number of prefixes of `level` tokens."""
  return min(vocab_size**level, max(capacity, 1))


def _grow(index: SidIndex, capacity: int) -> SidIndex:
  """Pads all arrays to a larger capacity."""

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
    tokens=tuple(pad(x, capacity + 1) for x in index.tokens),
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
  row = np.zeros(len(items), np.int64)  # Node of each SID at this level.
  fresh = row[:0]  # Nodes that are new at this level, ascending.
  for level in range(index.levels):
    words = _spread(index.present[level], fresh)
    token = tokens[:, level]
    place, bit = _place(words, row, token)
    there = (words.reshape(-1)[place] & bit) != 0
    starts = ~there  # New children, each marked at its first SID alone.
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
  all_tokens, known = index.sids, index.known.copy()
  all_tokens[items], known[items] = tokens, True
  return dataclasses.replace(
    index,
    tokens=tuple(all_tokens.T.copy()),
    known=known,
    present=tuple(present),
    reachable=tuple(reachable),
    first_child=tuple(first_child),
    live=tuple(live),
    leaf_item=leaf_item,
  )


def _switch(index: SidIndex, items: np.ndarray, on: bool) -> SidIndex:
  """Makes the ids [M] active, or inactive; all are known, none is so yet."""
  rows = [np.zeros(len(items), np.int64)]  # Node of each item, by level.
  live = []
  for level in range(index.levels):
    change = np.bincount(rows[level], minlength=len(index.live[level]))
    change = change.astype(np.int32)
    live.append(index.live[level] + (change if on else -change))
    token = index.tokens[level][items]
    words = index.present[level]
    rows.append(_children(words, _before(words), rows[level], token))
  reachable = []
  for level in range(index.levels):
    words = index.reachable[level].copy()
    place, bit = _place(words, rows[level], index.tokens[level][items])
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
  """Copies an array with rows of 0 put at `fresh`; unused rows drop out."""
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
  """Finds the position in the flat words, and the bit there, of a token."""
  place = row * words.shape[1] + token // WORD
  return place, np.uint32(1) << (token % WORD).astype(np.uint32)


def _before(words: np.ndarray) -> np.ndarray:
  """Counts the bits that are set before each of the flat words, int32."""
  counts = np.bitwise_count(words).reshape(-1)
  return np.cumsum(counts, dtype=np.int32) - counts


def _children(
  words: np.ndarray, before: np.ndarray, row: np.ndarray, token: np.ndarray
) -> np.ndarray:
  """Number of each row's child, int64; the child must exist."""
  place, bit = _place(words, row, token)
  below = words.reshape(-1)[place] & (bit - np.uint32(1))
  return before[place] + np.bitwise_count(below).astype(np.int64)


def _taken(index: SidIndex) -> np.ndarray:
  """Numbers of all SIDs ever given, ascending."""
  items = index.leaf_item[: np.count_nonzero(index.known)]
  return resolve.numbers(index.sids[items], index.vocab_size)


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
