"""The newest slates of logs, where the older ones are to be left out."""

import numpy as np

from hsrl_jax.data import transitions
from hsrl_jax.data.source import SPLITS, STEP_COLUMNS
from hsrl_jax.types import Sessions

_HELD_OUT = 8  # Training slates for each of the other splits.


def keep(columns: dict[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
  """Keeps whole sessions, the newest, whose slates are no more than a number.

  Args:
    columns: of `sessions` with `split`, rows in the order of time. Their
      histories know what was liked in rows that are left out.
    most: slates of the training split; of the others an eighth.

  Returns:
    The columns with fewer rows, in the same order.
  """
  kept = [
    _newest(columns, name, most if name == "train" else most // _HELD_OUT)
    for name in SPLITS
  ]
  rows = np.sort(np.concatenate(kept))
  return {name: column[rows] for name, column in columns.items()}


def _newest(
  columns: dict[str, np.ndarray], split: str, most: int
) -> np.ndarray:
  """Rows of the newest sessions of a split, in any order."""
  rows = np.flatnonzero(columns["split"] == split)
  if len(rows) <= most:
    return rows
  single = {
    name: columns[name][rows, 0] if columns[name].shape[1] else None
    for name in STEP_COLUMNS
  }
  names = ("user_id", "profile", "history", "exposed", "response", "timestamp")
  given = {name: columns[name][rows] for name in names}
  order = transitions.order(Sessions(**given, **single))
  begins = np.flatnonzero(order.place == 0)
  ends = np.maximum.reduceat(given["timestamp"][order.rows], begins)
  sizes = np.diff(begins, append=len(rows))
  newest = np.argsort(-ends, kind="stable")
  chosen = np.zeros(len(begins), bool)
  chosen[newest[np.cumsum(sizes[newest]) <= most]] = True
  return rows[order.rows[chosen[order.session]]]
