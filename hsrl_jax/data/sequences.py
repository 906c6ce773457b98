"""Sequences of items by user, for training on the next item."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.types import Sessions


class Sequences(NamedTuple):
  """The items of each user in order of time.

  Attributes:
    user_id: [U], the ids as given.
    items: int32 [U, T], newest last, left-padded with 0.
    lengths: int32 [U].
  """

  user_id: np.ndarray
  items: np.ndarray
  lengths: np.ndarray


class Packed(NamedTuple):
  """Training sequences, several to a row, so that little of a row is padding.

  Attributes:
    item: int32 [R, T], the inputs; 0 for padding.
    target: int32 [R, T], the item after each input; 0 for padding.
    position: int32 [R, T], place of each input in its own right-aligned
      sequence of T: the newest has T - 1.
    segment: int32 [R, T], number of the sequence in its row; 0 for padding.
  """

  item: np.ndarray
  target: np.ndarray
  position: np.ndarray
  segment: np.ndarray


def from_lists(
  lists: Mapping[Any, Iterable[int]] | Iterable[Iterable[int]],
  num_items: int,
  where: str = "sequences",
) -> Sequences:
  """Sequences out of user -> items; users are numbered where there is no id.

  >>> from_lists({"a": [3, 1], "b": [2]}, num_items=3).items.tolist()
  [[3, 1], [0, 2]]

  Args:
    lists: items of each user in order of time, ids 1..N.
    num_items: N.
    where: names the source in errors.

  Raises:
    InputError: no user, or an item outside 1..N.
  """
  if isinstance(lists, Mapping):
    users, rows = list(lists), [list(x) for x in lists.values()]
  else:
    rows = [list(x) for x in lists]
    users = list(range(len(rows)))
  if not rows:
    raise InputError(
      f"{where}: there is no user; expected the items of one or more"
    )
  lengths = np.asarray([len(x) for x in rows], np.int32)
  flat = [item for row in rows for item in row]
  bad = np.asarray([not _is_id(item, num_items) for item in flat], bool)
  if bad.any():
    at = int(bad.argmax())
    user = users[int(np.searchsorted(np.cumsum(lengths), at, side="right"))]
    raise InputError(
      f"{where}: user {user} has item {flat[at]!r} ({int(bad.sum())} such "
      f"entries); expected ids 1..{num_items}"
    )
  items = np.zeros((len(rows), max(int(lengths.max()), 1)), np.int32)
  items[_ends(lengths, items.shape[1])] = flat
  return Sequences(np.asarray(users), items, lengths)


def from_sessions(sessions: Sessions, num_items: int) -> Sequences:
  """What each user of logged slates liked, in order of time.

  A user's sequence begins with the history of the user's first row, and goes on
  with the positive responses of all rows, in the order of rows and slates.

  Args:
    sessions: S rows, those of a user in order of time.
    num_items: N.
  """
  user, history = np.asarray(sessions.user_id), np.asarray(sessions.history)
  liked = np.asarray(sessions.response) > 0
  ids, first = np.unique(user, return_index=True)
  rows: dict[int, list[int]] = {
    int(u): history[f][history[f] > 0].tolist()
    for u, f in zip(ids, first, strict=True)
  }
  for row, place in zip(*np.nonzero(liked), strict=True):
    rows[int(user[row])].append(int(sessions.exposed[row, place]))
  return from_lists(rows, num_items, "prepared sessions")


def pack(sequences: Sequences, length: int, windows: bool = True) -> Packed:
  """Packs inputs and targets of training into rows of `length`.

  Users whose sequences share a row do not see each other: attention stays
  within a segment. Longest first, into the fullest row with room
  (best-fit decreasing).

  Args:
    sequences: of U users; those with fewer than two items have no target.
    length: T, the longest sequence of inputs.
    windows: cuts older items of longer sequences into further sequences; else
      they are dropped.
  """
  parts = []  # (row, first input, past the last input), columns of items.
  width = sequences.items.shape[1]
  for row, count in enumerate(sequences.lengths.tolist()):
    stop = width - 1
    while stop > width - count:
      start = max(stop - length, width - count)
      parts.append((row, start, stop))
      stop = start if windows else 0
  parts.sort(key=lambda x: x[1] - x[2])  # Stable.
  open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # By room.
  places, used = [], 0
  for _, start, stop in parts:
    size = stop - start
    room = next((r for r in range(size, length) if open_rows[r]), length)
    if room == length:
      open_rows[length].append(used)
      used += 1
    row = open_rows[room].pop()
    places.append((row, length - room))
    open_rows[room - size].append(row)
  packed = Packed(*(np.zeros((used, length), np.int32) for _ in Packed._fields))
  for (user, start, stop), (row, at) in zip(parts, places, strict=True):
    size = stop - start
    to = (row, slice(at, at + size))
    packed.item[to] = sequences.items[user, start:stop]
    packed.target[to] = sequences.items[user, start + 1 : stop + 1]
    packed.position[to] = np.arange(length - size, length)
    packed.segment[to] = packed.segment[row].max() + 1
  return packed


def _is_id(item: Any, num_items: int) -> bool:
  return isinstance(item, int | np.integer) and 1 <= item <= num_items


def _ends(lengths: np.ndarray, width: int) -> np.ndarray:
  """Which places right-aligned sequences take, bool [U, width]."""
  return np.arange(width) >= width - lengths[:, None]
