"""Items that a request permits, as a search over their SIDs sees them.

An item is permitted if it is active, has one of the included tags (where there
are any) and none of the excluded ones, and was added late enough. A search asks
that of prefixes. Of each node of the trie there are the union and the
intersection of the tags of the active items below it, and the latest time:

- no included tag in the union: no item below is permitted;
- an excluded tag in the intersection: none is;
- the latest time too early: none is.

A search by these (`Bounds`) reads a few words for each token it looks at,
however many items there are. Of a leaf the answer is exact, so no item comes
out that is not permitted. Of a prefix above, one rule alone is exact; several
rules together may let a prefix through below which nothing is permitted, since
each has other items in mind. So where the next token is the last, a search of
few prefixes takes WIDER times as many, looks at the items below each, and goes
on with the best that have a permitted one.

`exactly` counts what is permitted below each node, in one pass over all items.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.ops import masking
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid.index import SidIndex
from hsrl_jax.types import Array

_ALL = np.uint32(2**32 - 1)
WIDER = 4
ENOUGH = 256  # Prefixes; a search as wide as that looks at no others.
_WINDOW = 32  # Items below a prefix that are looked at together.
_TOGETHER = 24  # Leaves a beam that are looked at together.


class Allow(NamedTuple):
  """Rules of a request, in W words of 32 tags."""

  # uint32 [W]; an item needs one of these tags, where there are any.
  include: Array
  exclude: Array  # uint32 [W]; an item may have none of these.
  since: Array  # uint32 [], the least `added` of an item, below 2^32 - 1.

  def of(self, union: Array, shared: Array, after: Array) -> Array:
    """Whether items may be permitted, bool [...]; W last in the words.

    Args:
      union: uint32 [..., W], tags that some of the items have.
      shared: uint32 [..., W], tags that all of them have.
      after: uint32 [...], the latest time of an item, plus 1; 0 where there is
        no active item.
    """
    include, exclude = (
      jnp.broadcast_to(x, union.shape) for x in (self.include, self.exclude)
    )
    included = ((union & include) != 0).any(-1) | (self.include == 0).all()
    excluded = ((shared & exclude) != 0).any(-1)
    return included & ~excluded & (after > self.since)


class Bounds(NamedTuple):
  """Upper bounds of a request's permits, by node; exact at leaves."""

  summaries: tuple[Array, ...]  # Per level 1..L, see `summarise`.
  allow: Allow  # Of the request.
  # bool [], whether a request of the batch asks for anything; the same for all
  # of them, so that else nothing is looked up.
  asked: Array

  def may(self, level: int, nodes: Array) -> Array:
    """Whether items may be permitted below nodes of `level`, bool [...]."""

    def look(nodes):
      rows = self.summaries[level - 1].at[nodes].get(mode="clip")
      return self._of_rows(rows, level)

    every = functools.partial(jnp.ones_like, dtype=bool)
    return jax.lax.cond(self.asked, look, every, nodes)

  def leaf(self, index: SidIndex, leaves: Array) -> tuple[Array, Array]:
    """The last token of leaves, int32 [...], and whether each is permitted."""
    rows = self.summaries[-1].at[leaves].get(mode="clip")
    token = rows[..., len(self.allow.include)].astype(jnp.int32)
    return token, self._of_rows(rows, index.levels)

  def _of_rows(self, rows: Array, level: int) -> Array:
    width = len(self.allow.include)
    union = shared = rows[..., :width]
    if level < len(self.summaries):  # A leaf's tags are one item's.
      shared = rows[..., width:-1]
    return self.allow.of(union, shared, rows[..., -1])


class Counts(NamedTuple):
  """Exact permits of a request, by node."""

  # Per level 1..L, bool [nodes], whether an item is permitted below.
  there: tuple[Array, ...]
  asked: Array  # See Bounds.

  def may(self, level: int, nodes: Array) -> Array:
    """Whether an item is permitted below nodes of `level`, bool [...]."""
    return self.there[level - 1].at[nodes].get(mode="clip")

  def leaf(self, index: SidIndex, leaves: Array) -> tuple[Array, Array]:
    """See Bounds.leaf."""
    item = index.leaf_item.at[leaves].get(mode="clip")
    token = index.tokens[-1][item].astype(jnp.int32)
    return token, self.may(index.levels, leaves)


def tokens(index: SidIndex, node: Array, level: int) -> Array:
  """`valid_tokens`, without those below which `permit` has nothing."""
  valid = sid_index.valid_tokens(index, node, level)
  if index.permit is None:
    return valid
  _, number = sid_index.children(index, node, level)
  return valid & index.permit.may(level + 1, number)


def best_prefixes(
  index: SidIndex, node: Array, score: Array, width: int
) -> tuple[Array, Array]:
  """The best prefixes of L - 1 tokens, of WIDER times as many up to ENOUGH.

  Those are the best with a permitted item below, or with more than _WINDOW
  items, of which one may be. A search that takes ENOUGH anyway takes the best.

  Args:
    index: with a `permit`.
    node: int32 [B], beams of L - 2 tokens.
    score: float32 [B, V], of their next tokens.
    width: how many are taken.

  Returns:
    Scores, `masking.NEGATIVE` where there are fewer, and positions in the flat
    scores, [width].
  """

  many = min(WIDER * width, ENOUGH, score.size)
  if many <= width:
    return tuple(jax.lax.top_k(score.reshape(-1), width))

  def look(score):
    score, flat = jax.lax.top_k(score, many)
    below = jax.vmap(sid_index.child, in_axes=(None, 0, 0, None))(
      index,
      node[flat // index.vocab_size],
      (flat % index.vocab_size).astype(jnp.int32),
      index.levels - 2,
    )
    first, count = sid_index.leaves(index, below)
    place = jnp.arange(_WINDOW)[None]
    _, there = index.permit.leaf(index, first[:, None] + place)
    there &= place < count[:, None]
    there = there.any(-1) | (count > _WINDOW)
    kept = jax.lax.top_k(jnp.where(there, score, masking.NEGATIVE), width)
    return kept[0], flat[kept[1]]

  return jax.lax.cond(
    index.permit.asked,
    look,
    lambda score: tuple(jax.lax.top_k(score, width)),
    score.reshape(-1),
  )


def best_leaves(
  index: SidIndex, node: Array, score: Array, width: int
) -> tuple[Array, Array]:
  """The best permitted leaves below beams of L - 1 tokens.

  Most tokens lead to no item, so leaves are looked at in their order, _TOGETHER
  times as many as there are beams at a time, until no beam has more.

  Args:
    index: with a `permit`.
    node: int32 [B], the beams; -1 is no node.
    score: float32 [B, V], of their next tokens; `masking.NEGATIVE` takes one
      out.
    width: how many are taken.

  Returns:
    Scores, best first, `masking.NEGATIVE` where there are fewer, and leaves,
    [width].
  """
  first, count = sid_index.leaves(index, node)
  ends = jnp.cumsum(count)
  shift = first - (ends - count)
  together = _TOGETHER * len(node)

  def look(carry):
    start, best, leaf = carry
    # Positions in one row of the leaves below all beams, and whose they are.
    place = start + jnp.arange(together)
    passed = jnp.zeros(together + 1, jnp.int32)
    passed = passed.at[jnp.clip(ends - start, 0, together)].add(1)
    beam = jnp.minimum(jnp.cumsum(passed[:-1]), len(node) - 1)
    number = place + shift[beam]
    token, there = index.permit.leaf(index, number)
    there &= place < ends[-1]
    found = jnp.where(there, score[beam, token], masking.NEGATIVE)
    both = jnp.concatenate([best, found])
    best, kept = jax.lax.top_k(both, width)
    leaf = jnp.concatenate([leaf, number])[kept]
    return start + together, best, leaf

  start = (
    jnp.int32(0),
    jnp.full(width, masking.NEGATIVE),
    jnp.full(width, -1, jnp.int32),
  )
  _, best, leaf = jax.lax.while_loop(
    lambda carry: carry[0] < ends[-1], look, start
  )
  return best, jnp.where(best > masking.NEGATIVE / 2, leaf, -1)


def summarise(
  index: SidIndex, words: np.ndarray, added: np.ndarray
) -> tuple[np.ndarray, ...]:
  """Tags and times of the active items below each node, on the host.

  Args:
    index: of items 1..C.
    words: uint32 [C + 1, W], tags of the items.
    added: uint32 [C + 1], when each was added, below 2^32 - 1.

  Returns:
    Per level 1..L - 1, uint32 [nodes, 2 W + 1]: union and intersection of the
    tags, and the latest time plus 1, 0 where no item is active; of the leaves
    uint32 [C, W + 2], the item's tags, last token and time, which are read
    together.
  """
  item = np.asarray(index.leaf_item)
  active = np.asarray(index.active)[item]
  union = np.where(active[:, None], words[item], np.uint32(0))
  shared = np.where(active[:, None], words[item], _ALL)
  after = np.where(active, added[item] + np.uint32(1), np.uint32(0))
  token = np.asarray(index.tokens[-1])[item].astype(np.uint32)
  rows = [np.concatenate([union, token[:, None], after[:, None]], 1)]
  for level in reversed(range(1, index.levels)):
    children = np.bitwise_count(np.asarray(index.present[level])).sum(1)
    starts = np.asarray(index.first_child[level])
    union = _of_children(np.bitwise_or, union, children, starts)
    shared = _of_children(np.bitwise_and, shared, children, starts)
    after = _of_children(np.maximum, after, children, starts)
    rows.insert(0, np.concatenate([union, shared, after[:, None]], 1))
  return tuple(rows)


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
    bits = jax.lax.population_count(index.present[level])
    children = bits.astype(jnp.int32).sum(1)
    count = before[first + children] - before[first]
    live.insert(0, count)
    if level:
      there.insert(0, count > 0)
  return dataclasses.replace(
    index,
    active=permitted,
    live=tuple(live),
    permit=Counts(tuple(there), jnp.bool(True)),
  )
