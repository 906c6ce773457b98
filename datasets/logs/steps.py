"""Where in a session a slate was: columns `session_id`, `step`, `reward`,
`terminated` of sessions, each of which may be missing; so may single rewards.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from hsrl_jax.data import transitions
from hsrl_jax.shipped.datasets.logs import tables
from hsrl_jax.types import Sessions

COLUMNS = ("session_id", "step", "reward", "terminated")


# Row from 0, column, and what was found and expected there.
Fault = tuple[int, str, str]


def read(
  table: tables.Table,
  user: np.ndarray,
  timestamp: np.ndarray,
  response: np.ndarray,
) -> dict[str, np.ndarray]:
  """The columns `session`, `step`, `reward` and `terminated`, checked.

  Args:
    table: of sessions, R rows.
    user: int [R].
    timestamp: float64 [R].
    response: float32 [R, K].

  Returns:
    Each [R, 1], or [R, 0] where it is missing.

  Raises:
    InputError: a cell is no good, or rows of a session contradict one another;
      the message names a row.
  """
  rows = _rows(table, user, timestamp, response)
  for fault in _faults(table.rows, rows, transitions.order(rows)):
    table.refuse(*fault)
  empty = np.zeros((len(user), 0))
  found = {
    name: (getattr(rows, name), dtype)
    for name, dtype in (
      ("session", np.int32),
      ("step", np.int32),
      ("reward", np.float32),
      ("terminated", np.float32),
    )
  }
  return {
    name: (empty if x is None else x).reshape(len(user), -1).astype(dtype)
    for name, (x, dtype) in found.items()
  }


def faults(table: tables.Table) -> tuple[np.ndarray, list[Fault]]:
  """The number of each row's session, int [R], and where rows contradict.

  Raises:
    InputError: a cell is no good.
  """
  user, _ = tables.codes(table, "user_id")
  response = tables.matrix(table, "response", tables.binary)
  timestamp = np.asarray(tables.column(table, "timestamp", tables.time))
  rows = _rows(table, user, timestamp, response)
  ordered = transitions.order(rows)
  session = np.empty(len(user), int)
  session[ordered.rows] = ordered.session
  return session, list(_faults(table.rows, rows, ordered))


def _rows(
  table: tables.Table,
  user: np.ndarray,
  timestamp: np.ndarray,
  response: np.ndarray,
) -> Sessions:
  """The rows with what the columns say of them, [R] each."""
  found: dict[str, np.ndarray] = {}
  for name, parse in (
    ("step", tables.place),
    ("reward", tables.held_or_none),
    ("terminated", tables.binary),
  ):
    if name in table.names:
      found[name] = tables.column(table, name, parse)
  if "reward" in found and np.isnan(found["reward"]).all():
    del found["reward"]
  if "session_id" in table.names:
    codes, names = tables.codes(table, "session_id")
    found["session"] = np.unique(names, return_inverse=True)[1][codes]
  return Sessions(
    *(user, None, None, response, response), timestamp=timestamp, **found
  )


def _faults(
  numbers: Sequence[int], rows: Sessions, ordered: transitions.Order
) -> Iterator[Fault]:
  """Where rows contradict one another, or their responses."""
  if rows.step is not None:
    yield from _of_steps(numbers, rows, ordered)
  if rows.terminated is not None:
    yield from _of_ends(numbers, rows, ordered)
  if rows.reward is not None:
    yield from _of_rewards(rows.reward, rows.response)


def _of_steps(
  numbers: Sequence[int], rows: Sessions, ordered: transitions.Order
) -> Iterator[Fault]:
  """Steps that repeat or go back in time."""
  before, after = ordered.rows[:-1], ordered.rows[1:]
  same = ordered.session[1:] == ordered.session[:-1]
  step, time = rows.step, rows.timestamp
  for pair in np.flatnonzero(same & (step[after] == step[before])):
    first, second = sorted((before[pair], after[pair]))
    yield (
      second,
      "step",
      f"{step[second]}, as in row {numbers[first]} of the same session; "
      "expected each step once",
    )
  back = (time[after] < time[before]) | (step[after] < step[before])
  for pair in np.flatnonzero(same & back):
    first, second = before[pair], after[pair]
    yield (
      second,
      "step",
      f"{step[second]} at time {time[second]:g}, but row {numbers[first]} "
      f"of the same session has {step[first]} at {time[first]:g}; expected "
      "steps that go on with time",
    )


def _of_ends(
  numbers: Sequence[int], rows: Sessions, ordered: transitions.Order
) -> Iterator[Fault]:
  """Sessions that go on after their end, or end twice."""
  ends = rows.terminated[ordered.rows] > 0
  for place in np.flatnonzero(ends & ~ordered.last):
    own = ordered.session == ordered.session[place]
    again = ordered.rows[ends & own]
    what = f"1, as in row {numbers[again[0]]} of the same session; expected "
    if len(again) > 1:
      yield again[1], "terminated", what + "one end"
    following = numbers[ordered.rows[place + 1]]
    what = f"1, but row {following} follows in the same session; expected the "
    yield ordered.rows[place], "terminated", what + "last row to end"


def _of_rewards(reward: np.ndarray, response: np.ndarray) -> Iterator[Fault]:
  """Rewards that contradict responses."""
  none, every = ~(response > 0).any(1), (response > 0).all(1)
  for bad, what, expected in (
    (none & (reward > 0), "without a positive response", "at most 0"),
    (every & (reward < 0), "where all responses are positive", "at least 0"),
  ):
    for row in np.flatnonzero(bad):
      yield row, "reward", f"{reward[row]:g} {what}; expected {expected}"
