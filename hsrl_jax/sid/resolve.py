"""Unique SIDs: residual encoding in which no two items share all tokens.

Residual k-means alone gives several items the same SID. A prefix of l tokens
has room for V^(L-l) items, less the SIDs that are taken. Where more items chose
a prefix than fit, the items that lose least by another token move. At the last
level each token fits one item, and the assignment of least total distance below
each prefix is computed exactly. After each level every prefix has room for its
items, so up to V^L items always get distinct SIDs.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy

from hsrl_jax.sid import quantizer

_READ = 65_536  # Rows of a streamed array that are read together.
_HELD = 2**29  # Bytes of rows held while they get their last token.
_TABLE = 2**22  # Entries of a table of distances.


class _Free(NamedTuple):
  """SIDs that are free: all but those numbered `taken`, int64 [M], sorted."""

  taken: np.ndarray
  levels: int
  vocab_size: int

  def below(self, nodes: np.ndarray, level: int) -> np.ndarray:
    """Counts free SIDs below prefixes of level + 1 tokens, int64 [...]."""
    room = self.vocab_size ** (self.levels - level - 1)
    if not len(self.taken):
      return np.full(nodes.shape, room)
    first = np.searchsorted(self.taken, nodes * room)
    return room - (np.searchsorted(self.taken, (nodes + 1) * room) - first)


class _Encoding(NamedTuple):
  """SIDs on the way to be unique; the methods change `tokens` in place."""

  codebooks: np.ndarray  # float32 [L, V, D].
  x: Any  # float32 [N, D], or rows to stream.
  tokens: np.ndarray  # int32 [N, L].
  free: _Free  # SIDs that rows may get.

  def move_excess(self, level: int) -> None:
    """Moves rows to other tokens where a prefix has no room."""
    vocab_size = self.free.vocab_size
    prefix = numbers(self.tokens[:, :level], vocab_size)
    while True:
      token = self.tokens[:, level].astype(np.int64)
      child = prefix * vocab_size + token
      nodes, sizes = np.unique(child, return_counts=True)
      room = self.free.below(nodes, level) - sizes
      source, excess = np.searchsorted(nodes, child), -room
      crowded = np.flatnonzero(excess[source] > 0)
      if not len(crowded):
        return
      wanted = np.empty(len(crowded), np.int64)
      loss = np.empty(len(crowded), np.float32)
      done = 0
      for rows, distance in self._distances(level, crowded):
        at = np.arange(len(rows))
        now = distance[at, token[rows]]
        distance[self._full(nodes, room, prefix[rows], level)] = np.inf
        part = slice(done, done + len(rows))
        wanted[part] = distance.argmin(1)
        loss[part] = distance[at, wanted[part]] - now
        done += len(rows)
      # Least loss first; no more than must go, and no more than fit.
      order = np.argsort(loss, kind="stable")
      order = order[np.isfinite(loss[order])]
      if not len(order):
        raise ValueError("distances are not finite; expected finite rows of x")
      group = source[crowded[order]]
      order = order[_rank(group) < excess[group]]
      to = prefix[crowded[order]] * vocab_size + wanted[order]
      at = np.minimum(np.searchsorted(nodes, to), len(nodes) - 1)
      fits = np.where(nodes[at] == to, room[at], self.free.below(to, level))
      order = order[_rank(to) < fits]
      self.tokens[crowded[order], level] = wanted[order]

  def assign_last(self) -> None:
    """Sets last tokens where rows share a SID or chose a taken one."""
    vocab_size, level = self.free.vocab_size, self.free.levels - 1
    number = numbers(self.tokens, vocab_size)
    order = np.argsort(number, kind="stable")
    number = number[order]
    clash = self.free.below(number, level) < 1
    clash[1:] |= number[1:] == number[:-1]
    parent = number // vocab_size
    crowded = np.unique(parent[clash])
    if not len(crowded):
      return
    at = np.minimum(np.searchsorted(crowded, parent), len(crowded) - 1)
    inside = crowded[at] == parent
    order, parent = order[inside], parent[inside]
    # Whole parents, as many at a time as the memory allows.
    starts = np.flatnonzero(np.concatenate([[True], parent[1:] != parent[:-1]]))
    ends = np.concatenate([starts[1:], [len(order)]])
    portion = max(_HELD // (4 * self.x.shape[1]), 1)
    while len(starts):
      count = max(int(np.searchsorted(ends, starts[0] + portion, "right")), 1)
      held = order[starts[0] : ends[count - 1]]
      self._assign_parents(held, starts[:count] - starts[0])
      starts, ends = starts[count:], ends[count:]

  def _assign_parents(self, rows: np.ndarray, starts: np.ndarray) -> None:
    """Sets last tokens of `rows`, whose parents begin at `starts`."""
    vocab_size, taken = self.free.vocab_size, self.free.taken
    residual = np.empty((len(rows), self.x.shape[1]), np.float32)
    place = np.argsort(rows)
    done = 0
    for part, values in self.residuals(self.free.levels - 1, rows[place]):
      residual[place[done : done + len(part)]] = values
      done += len(part)
    parents = numbers(self.tokens[rows[starts], :-1], vocab_size)
    first = np.searchsorted(taken, parents * vocab_size)
    last = np.searchsorted(taken, (parents + 1) * vocab_size)
    ends = np.concatenate([starts[1:], [len(rows)]])
    chosen = np.empty(len(rows), np.int32)
    begin = stop = 0  # The table holds the distances of these rows.
    for i, start in enumerate(starts.tolist()):
      end = int(ends[i])
      if end > stop:
        begin, stop = start, max(end, start + max(_TABLE // vocab_size, 1))
        table = _table(residual[begin:stop], self.codebooks[-1])
      cost = table[start - begin : end - begin]
      if last[i] > first[i]:
        cost[:, taken[first[i] : last[i]] % vocab_size] = np.inf
      chosen[start:end] = scipy.optimize.linear_sum_assignment(cost)[1]
    self.tokens[rows, -1] = chosen

  def _distances(
    self, level: int, rows: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows, ascending, with squared distances to all codes, [n, V]."""
    size = max(_TABLE // self.free.vocab_size, 1)
    for part, residual in self.residuals(level, rows):
      for i in range(0, len(part), size):
        table = _table(residual[i : i + size], self.codebooks[level])
        yield part[i : i + size], table

  def residuals(
    self, level: int, rows: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields `rows`, ascending, with their residuals after `level` tokens."""
    for cut in range(0, self.x.shape[0], _READ):
      start, stop = np.searchsorted(rows, (cut, cut + _READ))
      if start == stop:
        continue
      part = rows[start:stop]
      if isinstance(self.x, np.ndarray):
        residual = np.array(self.x[part], np.float32)
      else:
        residual = self.x[cut : cut + _READ][part - cut]
      for l in range(level):
        residual -= self.codebooks[l, self.tokens[part, l]]
      yield part, residual

  def _full(
    self, nodes: np.ndarray, room: np.ndarray, prefix: np.ndarray, level: int
  ) -> np.ndarray:
    """Finds the tokens without room below each prefix, [n] -> bool [n, V]."""
    vocab_size = self.free.vocab_size
    parents, which = np.unique(prefix, return_inverse=True)
    left = self.free.below(
      parents[:, None] * vocab_size + np.arange(vocab_size), level
    )
    first = np.searchsorted(nodes, parents * vocab_size)
    count = np.searchsorted(nodes, (parents + 1) * vocab_size) - first
    # Positions first[i], first[i] + 1, ... of each parent's nodes.
    skip = np.repeat(np.cumsum(count) - count, count)
    at = np.repeat(first, count) + np.arange(count.sum()) - skip
    left[np.repeat(np.arange(len(parents)), count), nodes[at] % vocab_size] = (
      room[at]
    )
    return (left <= 0)[which]


def _table(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
  """Squared distances, [n, D], [V, D] -> [n, V], to compare rows too."""
  table = x @ (-2.0 * codes.T)
  table += (x**2).sum(1, keepdims=True)
  table += (codes**2).sum(1)
  return table


def check_capacity(num_items: int, levels: int, vocab_size: int) -> None:
  """Raises ValueError, with sizes that suffice, where V^L < num_items."""
  if vocab_size**levels >= num_items:
    return
  enough_levels = levels
  while vocab_size**enough_levels < num_items:
    enough_levels += 1
  enough_vocab = int(num_items ** (1 / levels))
  while enough_vocab**levels < num_items:
    enough_vocab += 1
  raise ValueError(
    f"vocab_size {vocab_size} and levels {levels} make "
    f"{vocab_size**levels} SIDs for {num_items} items; expected at least one "
    f"SID an item: use vocab_size {enough_vocab} or levels {enough_levels}"
  )


def encode_unique(
  codebooks: np.ndarray, x: Any, *, taken: np.ndarray | None = None
) -> np.ndarray:
  """Encodes rows as SIDs of which no two are equal.

  The result does not depend on the devices. It is the plain encoding below each
  prefix of L - 1 tokens where that encoding has no collision.

  >>> codebooks = np.asarray([[[0.0], [10.0]], [[0.0], [1.0]]])
  >>> encode_unique(codebooks, np.asarray([[0.1], [0.2], [9.0]])).tolist()
  [[0, 0], [0, 1], [1, 0]]
  >>> encode_unique(codebooks, np.asarray([[0.1]]), taken=[0, 1]).tolist()
  [[1, 0]]

  Memory beside `x` and the result: about 50 bytes a row, and 1 GiB.

  Args:
    codebooks: float32 [L, V, D].
    x: float32 [N, D], or rows to stream (see `fit`).
    taken: int64 [M], SIDs that no row may get, as numbers
      sum_l token_l V^(L-1-l), sorted and distinct. This is not checked, so that
      the cost grows with log M only.

  Returns:
    int32 [N, L], no two rows equal.

  Raises:
    ValueError: N + M > V^L, or V^L is not below 2^63.
  """
  codebooks = np.asarray(codebooks, np.float32)
  x = np.asarray(x) if isinstance(x, jax.Array) else x
  levels, vocab_size, _ = codebooks.shape
  taken = np.zeros(0, np.int64) if taken is None else np.asarray(taken)
  check_capacity(x.shape[0] + len(taken), levels, vocab_size)
  if vocab_size**levels >= 2**63:
    raise ValueError(
      f"vocab_size {vocab_size} and levels {levels} make "
      f"{vocab_size**levels} SIDs; expected fewer than 2^63: use fewer levels"
    )
  free = _Free(taken, levels, vocab_size)
  tokens = quantizer.encode(codebooks, x)
  encoding = _Encoding(codebooks, x, tokens, free)
  for level in range(levels - 1):
    before = tokens[:, level].copy()
    encoding.move_excess(level)
    moved = np.flatnonzero(tokens[:, level] != before)
    for rows, residual in encoding.residuals(level + 1, moved):
      rest = quantizer.encode(codebooks[level + 1 :], residual)
      tokens[rows, level + 1 :] = rest
  encoding.assign_last()
  return tokens


def _rank(group: np.ndarray) -> np.ndarray:
  """Counts the members of the same group before each one, int64 [n]."""
  order = np.argsort(group, kind="stable")
  ranked = group[order]
  rank = np.empty(len(group), np.int64)
  rank[order] = np.arange(len(group)) - np.searchsorted(ranked, ranked)
  return rank


def numbers(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
  """Reads SIDs or prefixes as numbers in base V, int [N, l] -> int64 [N]."""
  number = np.zeros(len(tokens), np.int64)
  for column in tokens.T:
    number *= vocab_size
    number += column
  return number
