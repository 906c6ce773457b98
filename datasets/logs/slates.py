"""Rows of logs, each of one user: the columns that all logs have, and slates.

Users are numbered in the order of their first rows, items as in the catalogue.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hsrl_jax.data import source, transitions
from hsrl_jax.data.feedback import Feedback
from hsrl_jax.data.source import SPLITS
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets import schema
from hsrl_jax.shipped.datasets.logs import tables

_FAR = 1e11  # Seconds until the year 5138.
_HELD_OUT = 8  # Training slates for each of the other splits; see `newest`.


class Slates(NamedTuple):
  """The slates of logs."""

  # Of `sessions` (see schema.py), in the order of rows or of time; `split` is a
  # number in SPLITS, and is not there where splits are by the time of all
  # slates.
  columns: dict[str, np.ndarray]
  users: list[str]  # The name of user 1, 2, ...
  notes: list[str]  # Lines for people.
  about: Feedback = Feedback()  # What the responses are.


def read(
  table: tables.Table, shown: np.ndarray, by_user: bool, known: tuple[str, ...]
) -> Slates:
  """Parses and checks what all logs have beside items and responses.

  Args:
    table: R rows with `user_id` and `timestamp`.
    shown: int [R, K], the items of slates; int [R] of interactions.
    by_user: whether splits are by user.
    known: names of the columns that are read, these or others.

  Returns:
    Columns `user_id`, `exposed`, `timestamp`, `split` (numbers in SPLITS) where
    it is known, and with no entries where they are missing `profile`,
    `propensity` (NaN in rows that have none), `position`.

  Raises:
    InputError: the row and column that is no good, or a split that cannot be.
  """
  codes, users = tables.codes(table, "user_id")
  columns = {
    "user_id": (codes + 1).astype(np.int32),
    "exposed": shown.reshape(len(shown), -1),
    "timestamp": np.asarray(tables.column(table, "timestamp", tables.time)),
  }
  for name, parse, dtype in (
    ("profile", tables.held, np.float32),
    ("propensity", tables.probability, np.float32),
    ("position", tables.place, np.int32),
  ):
    columns[name] = np.zeros((len(shown), 0), dtype)
    there = np.zeros(len(shown), bool)
    if name in table.names and name in known:
      there = table.has_cell(name) | (name != "propensity")
    if not there.any():
      continue
    rows = table if there.all() else table.where(there)
    if shown.ndim == 2 or name == "profile":
      width = None if name == "profile" else shown.shape[1]
      found = tables.matrix(rows, name, parse, width, dtype)
    else:
      found = tables.column(rows, name, parse)[:, None].astype(dtype)
    if not there.all():
      some, found = found, np.full((len(there), found.shape[1]), np.nan, dtype)
      found[there] = some
    columns[name] = found
  if "split" in table.names:
    if by_user:
      raise InputError(
        f"{table.path} has a column split, and the split is by user; expected "
        "one of them"
      )
    columns["split"] = tables.column(table, "split", tables.split)
  elif by_user:
    of_user = schema.split_of_user(users)[:, None] == SPLITS
    columns["split"] = of_user.argmax(1)[codes]
  return Slates(columns, users, tables.unused(table, known))


def liked_before(
  user: np.ndarray,
  exposed: np.ndarray,
  response: np.ndarray,
  timestamp: np.ndarray,
) -> schema.Histories:
  """Likes of each row's user in earlier rows, newest last, R rows.

  Args:
    user: int [R].
    exposed: int [R, K].
    response: [R, K].
    timestamp: [R]; of rows of one time the later one is newer.
  """
  order = np.lexsort((timestamp, user))
  liked, user = response[order] > 0, user[order]
  count = liked.sum(1)
  before = np.cumsum(count) - count  # Likes of earlier rows, of all users.
  back = np.empty_like(order)
  back[order] = np.arange(len(order))
  lengths = before - before[np.searchsorted(user, user)]
  items = exposed[order][liked].astype(np.int32)
  return schema.Histories(items, before, lengths)[back]


class Cut(NamedTuple):
  """Where the slates of a split begin, in the order of time, then of rows."""

  time: float  # Of the first one.
  ties: int  # Slates of that time before it.


def cuts_of(times: np.ndarray) -> tuple[Cut, ...]:
  """Where val, a tenth, and test, the last tenth, begin; reorders `times`."""
  held_out = max(1, round(schema.HELD_OUT * len(times)))
  ranks = [max(len(times) - x * held_out, 0) for x in (2, 1)]
  times.partition(ranks)
  return tuple(
    Cut(float(times[x]), int(np.count_nonzero(times[:x] == times[x])))
    for x in ranks
  )


def split_at(
  timestamp: np.ndarray, cuts: Sequence[Cut], seen: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
  """The split of each row, its number [R], and `seen` with these rows.

  Args:
    timestamp: float64 [R].
    cuts: where val and test begin.
    seen: rows of earlier tables that have the time of each cut.
  """
  split, now = np.zeros(len(timestamp), np.int8), []
  for cut, number, before in zip(cuts, (1, 2), seen, strict=True):
    same = timestamp == cut.time
    place = before + np.cumsum(same) - 1
    split[(timestamp > cut.time) | same & (place >= cut.ties)] = number
    now.append(before + int(same.sum()))
  return split, tuple(now)


def split_by_time(timestamp: np.ndarray) -> np.ndarray:
  """Split of each slate, numbers in SPLITS [S]: a tenth val, the last test."""
  return split_at(timestamp, cuts_of(timestamp.copy()), (0, 0))[0]


def by_time(slates: Slates) -> Slates:
  """The same in the order of time, with `split`, and a note on propensities."""
  columns, time = dict(slates.columns), slates.columns["timestamp"]
  if "split" not in columns:
    columns["split"] = split_by_time(time)
  order, notes = np.argsort(time, kind="stable"), slates.notes
  known = np.isfinite(columns["propensity"]).all(1)
  if not known.all():
    notes = [
      *notes,
      f"propensities: {known.sum():,} of {len(known):,} slates have them; what "
      "a policy would have earned is estimated from these alone",
    ]
  logged = columns.get("session", time[:0]).size
  if not logged and np.median(np.abs(time)) > _FAR:
    notes = [
      *notes,
      f"timestamps: {np.median(time):.3g} is no time of now in seconds, and "
      f"sessions are cut at gaps of {transitions.SESSION_GAP:g} s; expected "
      "seconds since 1970, such as milliseconds / 1,000",
    ]
  columns = {k: x[order] for k, x in columns.items()}
  return slates._replace(columns=columns, notes=notes)


def newest(columns: dict[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
  """Keeps whole sessions, the newest, whose slates are no more than a number.

  Args:
    columns: of `sessions` with `split`, rows in the order of time. Their
      histories know what was liked in rows that are left out.
    most: slates of the training split; of the others an eighth.

  Returns:
    The columns with fewer rows, in the same order.
  """
  kept = []
  for number, name in enumerate(SPLITS):
    rows = np.flatnonzero(columns["split"] == number)
    limit = most if name == "train" else most // _HELD_OUT
    if len(rows) > limit:
      own = {name: column[rows] for name, column in columns.items()}
      order = transitions.order(source.sessions_of(own))
      begins = np.flatnonzero(order.place == 0)
      ends = np.maximum.reduceat(columns["timestamp"][rows[order.rows]], begins)
      new = np.argsort(-ends, kind="stable")
      sizes = np.diff(begins, append=len(rows))
      chosen = np.zeros(len(begins), bool)
      chosen[new[np.cumsum(sizes[new]) <= limit]] = True
      rows = rows[order.rows[chosen[order.session]]]
    kept.append(rows)
  rows = np.sort(np.concatenate(kept))
  return {name: column[rows] for name, column in columns.items()}
