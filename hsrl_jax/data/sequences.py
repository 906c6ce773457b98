"""Sequences of items by user, for training on the next item."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hsrl_jax.types import Sessions


class Sequences(NamedTuple):
  """The items of each user in order of time."""

  user_id: np.ndarray  # [U], the users' ids.
  items: np.ndarray  # int32 [U, T], newest last, left-padded with 0.
  lengths: np.ndarray  # int32 [U].


class Packed(NamedTuple):
  """Training sequences, several to a row, so that little is padding."""

  item: np.ndarray  # int32 [R, T], the inputs; 0 for padding.
  target: np.ndarray  # int32 [R, T], the item after each input; 0 for padding.
  # int32 [R, T], place of each input in its own right-aligned sequence of T:
  # the newest has T - 1.
  position: np.ndarray
  # int32 [R, T], number of the sequence in its row; 0 for padding.
  segment: np.ndarray


def from_lists(lists: Sequence[Sequence[int]]) -> Sequences:
  """Sequences of users 0, 1, ...: the items of each in order of time.

  >>> from_lists([[3, 1], [2]]).items.tolist()
  [[3, 1], [0, 2]]
  """
  lengths = np.array([len(x) for x in lists], np.int32)
  items = np.zeros((len(lists), max(int(lengths.max()), 1)), np.int32)
  ends = np.arange(items.shape[1]) >= items.shape[1] - lengths[:, None]
  items[ends] = [item for row in lists for item in row]
  return Sequences(np.arange(len(lists)), items, lengths)


def from_sessions(sessions: Sessions) -> Sequences:
  """Likes of each user of logged slates, in order of time.

  A user's sequence begins with the history of the user's first row, and goes on
  with the positive responses of all rows, in the order of rows and slates: that
  of time.
  """
  history = np.asarray(sessions.history)
  ids, first, number = np.unique(
    sessions.user_id, return_index=True, return_inverse=True
  )
  rows = [x[x > 0].tolist() for x in history[first]]
  liked = np.asarray(sessions.response) > 0
  for row, place in zip(*np.nonzero(liked), strict=True):
    rows[number[row]].append(int(sessions.exposed[row, place]))
  return from_lists(rows)._replace(user_id=ids)


def pack(sequences: Sequences, length: int) -> Packed:
  """Packs inputs and targets of training into rows of `length`.

  Users whose sequences share a row do not see each other: attention stays
  within a segment. Longest first, into the fullest row with room
  (best-fit decreasing).

  Args:
    sequences: of U users; those with fewer than two items have no target.
    length: T, the longest sequence of inputs; older items of longer ones are
      further sequences.
  """
  parts = []  # (row, first input, past the last input), columns of items.
  width = sequences.items.shape[1]
  for row, count in enumerate(sequences.lengths.tolist()):
    stop = width - 1
    while stop > width - count:
      start = max(stop - length, width - count)
      parts.append((row, start, stop))
      stop = start
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
