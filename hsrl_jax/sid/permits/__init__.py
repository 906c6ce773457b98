"""What a request permits of the items, as a search over their SIDs sees it.

An item is permitted if it is active, has one of the included tags (where there
are any) and none of the excluded ones, and was added late enough. A search asks
that of prefixes. Of each node of the trie there are the union and the
intersection of the tags of the active items below it, and the latest time:

- no included tag in the union: no item below is permitted;
- an excluded tag in the intersection: none is;
- the latest time too early: none is.

A search by these (`Bounds`) reads a few words for each token it looks at,
however many items there are. Of a leaf the answer is exact, so that no item
comes out that is not permitted. Of a prefix above, one rule alone is exact as
well; rules together may keep a prefix below which nothing is permitted, since
each has other items in mind. Such prefixes take beams, and may leave too few
items: `exactly` counts what is permitted below each node, in one pass over all
items, and then a search misses nothing.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.sid.index import SidIndex
from hsrl_jax.types import Array

_ALL = np.uint32(2**32 - 1)


class Allow(NamedTuple):
  """What a request allows, W words of 32 tags.

  Attributes:
    include: uint32 [W]; an item needs one of these tags, where there are any.
    exclude: uint32 [W]; an item may have none of these.
    since: uint32 [], the least `added` of an item.
  """

  include: Array
  exclude: Array
  since: Array

  def any(self) -> Array:
    """Whether anything is asked of an item at all, bool [...]."""
    asked = (self.include | self.exclude).any(-1)
    return asked | (self.since > 0)

  def of(self, union: Array, shared: Array, added: Array) -> Array:
    """Whether items may be permitted, bool [...]; W last in the words.

    Args:
      union: uint32 [..., W], tags that some of the items have.
      shared: uint32 [..., W], tags that all of them have.
      added: uint32 [...], the latest time.
    """
    include, exclude = (
      jnp.broadcast_to(x, union.shape) for x in (self.include, self.exclude)
    )
    included = ((union & include) != 0).any(-1) | (self.include == 0).all()
    excluded = ((shared & exclude) != 0).any(-1)
    return included & ~excluded & (added >= self.since)


class Summaries(NamedTuple):
  """Tags and times of the active items below each node, levels 1..L.

  Attributes:
    union: per level, uint32 [nodes, W]; of leaves the item's own tags.
    shared: the same of the tags that all have, but of leaves, whose union it
      is: L - 1 levels.
    latest: per level, uint32 [nodes].
  """

  union: tuple[Array, ...]
  shared: tuple[Array, ...]
  latest: tuple[Array, ...]


class Bounds(NamedTuple):
  """What a request permits at most below each node; exact at leaves.

  Attributes:
    summaries: of the catalogue.
    allow: of the request.
  """

  summaries: Summaries
  allow: Allow

  def may(self, level: int, nodes: Array) -> Array:
    """Whether items may be permitted below nodes of `level`, bool [...]."""
    union, shared, latest = self.summaries
    words = _rows(union[level - 1], nodes)
    all_have = words
    if level <= len(shared):
      all_have = _rows(shared[level - 1], nodes)
    return self.allow.of(words, all_have, _rows(latest[level - 1], nodes))


class Counts(NamedTuple):
  """What a request permits below each node, exactly.

  Attributes:
    there: per level 1..L, bool [nodes], whether an item is permitted below.
  """

  there: tuple[Array, ...]

  def may(self, level: int, nodes: Array) -> Array:
    """Whether an item is permitted below nodes of `level`, bool [...]."""
    return _rows(self.there[level - 1], nodes)


def _rows(array: Array, nodes: Array) -> Array:
  return array.at[nodes].get(mode="clip")


def summarise(
  index: SidIndex, words: np.ndarray, added: np.ndarray
) -> Summaries:
  """Computes the summaries, on the host.

  Args:
    index: of items 1..C.
    words: uint32 [C + 1, W], tags of the items.
    added: uint32 [C + 1], when each was added.
  """
  item = np.asarray(index.leaf_item)
  active = np.asarray(index.active)[item]
  union = np.where(active[:, None], words[item], np.uint32(0))
  shared = np.where(active[:, None], words[item], _ALL)
  latest = np.where(active, added[item], np.uint32(0))
  unions, shares, times = [union], [], [latest]
  for level in reversed(range(1, index.levels)):
    children = np.bitwise_count(np.asarray(index.present[level])).sum(1)
    starts = np.asarray(index.first_child[level])
    union = _of_children(np.bitwise_or, union, children, starts)
    shared = _of_children(np.bitwise_and, shared, children, starts)
    latest = _of_children(np.maximum, latest, children, starts)
    unions.insert(0, union)
    shares.insert(0, shared)
    times.insert(0, latest)
  return Summaries(tuple(unions), tuple(shares), tuple(times))


def _of_children(
  of: np.ufunc, array: np.ndarray, children: np.ndarray, starts: np.ndarray
) -> np.ndarray:
  """Reduces rows of nodes to rows of their parents, of which `starts` is."""
  result = np.zeros((len(children), *array.shape[1:]), np.uint32)
  # Nodes that are in use come first, and have children.
  used = int(np.count_nonzero(children))
  if used:
    result[:used] = of.reduceat(array[: children.sum()], starts[:used])
  return result


def exactly(index: SidIndex, permitted: Array) -> SidIndex:
  """The index of the permitted items alone; its searches miss none of them.

  Args:
    index: the index.
    permitted: bool [C + 1]; of them the active ones count.
  """
  permitted &= index.active
  count = permitted[index.leaf_item].astype(jnp.int32)
  there, live = [count > 0], []
  for level in reversed(range(index.levels)):
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(count)])
    first = index.first_child[level]
    children = _count_bits(index.present[level])
    count = before[first + children] - before[first]
    live.insert(0, count)
    if level:
      there.insert(0, count > 0)
  return dataclasses.replace(
    index, active=permitted, live=tuple(live), permit=Counts(tuple(there))
  )


def _count_bits(words: Array) -> Array:
  """Bits that are set in each row, int32 [rows]."""
  return jax.lax.population_count(words).astype(jnp.int32).sum(1)
