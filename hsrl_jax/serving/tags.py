"""Tags of items, such as categories or regions, and when each was added.

A tag is a bit of an item's words, and so are the tags that a request includes
and excludes. So they are inputs of the exported function, like all of the
catalogue: any request, and any new tag up to the room for them, is answered
without a new compilation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.serving.arguments import short
from hsrl_jax.sid import permits

WORD = 32  # Tags, one bit each, in a word.
_LATEST = 2**32 - 2


class Tags(NamedTuple):
  """Tags of the items 1..C; bit b of word w is tag 32 w + b."""

  names: tuple[str, ...]  # At most 32 W names of tags.
  words: np.ndarray  # uint32 [C + 1, W]; 0 for padding and ids without an item.
  # uint32 [C + 1], when an item was added: a number that grows from catalogue
  # to catalogue, or seconds; 0 for what was there at the start.
  added: np.ndarray

  def of(self, item: int) -> list[str]:
    """Names of the tags of an item."""
    octets = self.words[item].astype("<u4").view(np.uint8)
    bits = np.unpackbits(octets, bitorder="little")
    return [self.names[tag] for tag in np.flatnonzero(bits)]

  def mask(self, what: str, names: Sequence[str]) -> np.ndarray:
    """The words in which these tags are set, uint32 [W].

    Raises:
      InputError: `what` is no list of tags of the catalogue.
    """
    words = np.zeros(self.words.shape[1], np.uint32)
    for name in _names(what, names):
      if name not in self.names:
        some = ", ".join(map(repr, self.names[:3])) or "none: it has no tags"
        raise InputError(
          f"{what} holds {name[:40]!r}, which is no tag of the catalogue; "
          f"expected its tags, such as {some}"
        )
      tag = self.names.index(name)
      words[tag // WORD] |= np.uint32(1 << tag % WORD)
    return words

  def allow(
    self, include: Sequence[str], exclude: Sequence[str], since: int | None
  ) -> permits.Allow:
    """Converts the rules of a request.

    Raises:
      InputError: a name is no tag, or `since` no time.
    """
    return permits.Allow(
      self.mask("include", include),
      self.mask("exclude", exclude),
      np.uint32(0 if since is None else check_time("since", since)),
    )

  def put(
    self, items: np.ndarray, tags: Sequence[Sequence[str]], added: int | None
  ) -> "Tags":
    """Returns these tags with those of some items in place of what they had.

    Args:
      items: int [M], distinct.
      tags: [M] lists of names; new ones get the next bits.
      added: when the items were added; None: as it was.

    Raises:
      InputError: `tags` are no M lists of texts, or no room is left.
    """
    rows = check(tags, len(items))
    unknown = {name: None for row in rows for name in row}
    names = (*self.names, *(x for x in unknown if x not in self.names))
    room = WORD * self.words.shape[1]
    if len(names) > room:
      raise InputError(
        f"tags are {len(names)} with {names[-1][:40]!r}; expected {room} at "
        "most, the room of this export: export again with these tags"
      )
    changed = self._replace(names=names, words=self.words.copy())
    for item, row in zip(items, rows, strict=True):
      changed.words[item] = changed.mask("tags", row)
    if added is not None:
      changed = changed._replace(added=self.added.copy())
      changed.added[items] = added
    return changed


def check(tags: Any, count: int) -> list[list[str]]:
  """Returns `count` lists of names; raises InputError for anything else."""
  if isinstance(tags, str | dict | set) or not hasattr(tags, "__len__"):
    raise InputError(f"tags are no list; expected {count} lists of texts")
  if len(tags) != count:
    raise InputError(
      f"tags are of {len(tags)} items; expected a list for each of {count}"
    )
  return [_names("tags", row) for row in tags]


def _names(what: str, names: Any) -> list[str]:
  is_list = isinstance(names, Sequence) and not isinstance(names, str)
  if not is_list or not all(isinstance(x, str) and x for x in names):
    raise InputError(
      f"{what} holds {short(names)}; expected lists of names of tags"
    )
  return list(names)


def check_time(name: str, value: Any) -> int:
  """Returns a time as `added` has it; raises InputError for anything else."""
  is_number = isinstance(value, int | np.integer) and type(value) is not bool
  if not is_number or not 0 <= value <= _LATEST:
    raise InputError(
      f"{name} is {short(value)}; expected an integer from 0 to {_LATEST}"
    )
  return int(value)


def make(rows: Any, added: Any, items: int, capacity: int) -> Tags:
  """The tags of a new catalogue, with room for a quarter more names.

  Args:
    rows: [N + 1] lists of names, the first of padding; None: no tags.
    added: [N + 1] integers, see Tags.added; None: zeros.
    items: N.
    capacity: C.

  Raises:
    InputError: `rows` are no N + 1 lists of texts, or `added` no times.
  """
  rows = [[]] * (items + 1) if rows is None else check(rows, items + 1)
  names = {name for row in rows[1:] for name in row}
  width = max(-(-len(names) * 5 // 4 // WORD), 1)
  none = Tags(
    tuple(sorted(names)),
    np.zeros((capacity + 1, width), np.uint32),
    np.zeros(capacity + 1, np.uint32),
  )
  bits = {name: none.mask("tags", [name]) for name in none.names}
  for item, row in enumerate(rows[1:], 1):
    for name in row:
      none.words[item] |= bits[name]
  if added is not None:
    none.added[: items + 1] = _times(added, items + 1)
  return none


def _times(added: Any, count: int) -> np.ndarray:
  times = np.asarray(added)
  if times.dtype.kind not in "iu" or times.shape != (count,):
    raise InputError(
      f"added are {times.dtype} {list(times.shape)}; expected {count} integers"
    )
  for wrong in times[(times < 0) | (times > _LATEST)].tolist():
    check_time("added", wrong)
  return times
