"""Where in a session a slate was: columns `session_id`, `step`, `reward`,
`terminated` of sessions, each of which may be missing; so may single rewards.
"""

import numpy as np

from hsrl_jax.data import transitions
from hsrl_jax.shipped.datasets.logs import tables
from hsrl_jax.types import Sessions

COLUMNS = ("session_id", "step", "reward", "terminated")


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
  found: dict[str, np.ndarray] = {}
  for name, parse in (
    ("step", tables.place),
    ("reward", tables.number_or_none),
    ("terminated", tables.binary),
  ):
    if name in table.names:
      found[name] = tables.column(table, name, parse)
  if "reward" in found and np.isnan(found["reward"]).all():
    del found["reward"]
  if "session_id" in table.names:
    codes, names = tables.codes(table, "session_id")
    found["session"] = np.unique(names, return_inverse=True)[1][codes]
  rows = Sessions(
    *(user, None, None, response, response), timestamp=timestamp, **found
  )
  ordered = transitions.order(rows)
  if rows.step is not None:
    _check_steps(table, rows, ordered)
  if rows.terminated is not None:
    _check_ends(table, rows, ordered)
  if rows.reward is not None:
    _check_rewards(table, rows.reward, response)
  empty = np.zeros((len(user), 0))
  return {
    name: found.get(name, empty).reshape(len(user), -1).astype(dtype)
    for name, dtype in (
      ("session", np.int32),
      ("step", np.int32),
      ("reward", np.float32),
      ("terminated", np.float32),
    )
  }


def _check_steps(
  table: tables.Table, rows: Sessions, ordered: transitions.Order
) -> None:
  """Raises InputError where steps repeat or go back in time."""
  before, after = ordered.rows[:-1], ordered.rows[1:]
  same = ordered.session[1:] == ordered.session[:-1]
  step, time = rows.step, rows.timestamp
  for pair in np.flatnonzero(same & (step[after] == step[before]))[:1]:
    first, second = sorted((before[pair], after[pair]))
    table.refuse(
      second,
      "step",
      f"{step[second]}, as in row {table.rows[first]} of the same session; "
      "expected each step once",
    )
  back = (time[after] < time[before]) | (step[after] < step[before])
  for pair in np.flatnonzero(same & back)[:1]:
    first, second = before[pair], after[pair]
    table.refuse(
      second,
      "step",
      f"{step[second]} at time {time[second]:g}, but row {table.rows[first]} "
      f"of the same session has {step[first]} at {time[first]:g}; expected "
      "steps that go on with time",
    )


def _check_ends(
  table: tables.Table, rows: Sessions, ordered: transitions.Order
) -> None:
  """Raises InputError where a session goes on after its end, or ends twice."""
  ends = rows.terminated[ordered.rows] > 0
  for place in np.flatnonzero(ends & ~ordered.last)[:1]:
    own = ordered.session == ordered.session[place]
    again = ordered.rows[ends & own]
    what = f"1, as in row {table.rows[again[0]]} of the same session; expected "
    if len(again) > 1:
      table.refuse(again[1], "terminated", what + "one end")
    following = table.rows[ordered.rows[place + 1]]
    what = f"1, but row {following} follows in the same session; expected the "
    table.refuse(ordered.rows[place], "terminated", what + "last row to end")


def _check_rewards(
  table: tables.Table, reward: np.ndarray, response: np.ndarray
) -> None:
  """Raises InputError where rewards contradict responses."""
  none, every = ~(response > 0).any(1), (response > 0).all(1)
  for bad, what, expected in (
    (none & (reward > 0), "without a positive response", "at most 0"),
    (every & (reward < 0), "where all responses are positive", "at least 0"),
  ):
    for row in np.flatnonzero(bad)[:1]:
      found = f"{reward[row]:g} {what}; expected {expected}"
      table.refuse(row, "reward", found)
