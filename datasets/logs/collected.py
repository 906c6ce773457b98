"""Slates that --mode=collect wrote: what clients made of them, left out.

Their owner did not write them and cannot mend them, and a single client could
stop the reading of all. So what other tables are refused for is left out here,
slate by slate or session by session, and told. Tables are known by their column
`request_id`.
"""

import numpy as np
import pyarrow as pa

from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.logs import steps, tables

_COLUMN = "request_id"


def sound(table: tables.Table) -> tuple[tables.Table, list[str]]:
  """The rows of a table that may be read, and notes on the others.

  A table that was not collected is returned as it is.

  Raises:
    InputError: a cell of `step`, `terminated` and the like is no good, or no
      row is left.
  """
  if table.path.suffix != ".parquet" or _COLUMN not in table.names:
    return table, []
  name, notes = table.path.name, []
  held = np.ones(len(table.rows), bool)
  for column, holds in (
    ("profile", tables.held.holds),
    ("reward", lambda x: np.isnan(x) | tables.held.holds(x)),
    ("propensity", tables.probability.holds),
  ):
    if column in table.names:
      held &= _hold(table.data[column], holds)
  if not held.all():
    notes.append(
      f"{name}: {(~held).sum():,} slates left out, whose profile, reward or "
      "propensity no training holds; the first is row "
      f"{table.rows[held.argmin()]}"
    )
    table = table.where(held)
  session, faults = steps.faults(table) if len(table.rows) else (None, [])
  if faults:
    bad = np.isin(session, session[[row for row, _, _ in faults]])
    row, column, what = faults[0]
    notes.append(
      f"{name}: {len(np.unique(session[bad])):,} sessions with {bad.sum():,} "
      "slates left out, which contradict themselves; the first since row "
      f"{table.rows[row]}, column {column}: found {what}"
    )
    table = table.where(~bad)
  if not len(table.rows):
    raise InputError(f"{notes[-1]}; expected at least one that is left")
  return table, notes


def _hold(column: pa.ChunkedArray, holds) -> np.ndarray:
  """Whether all that is there of each cell's numbers holds, bool [R]."""
  column = column.combine_chunks()
  if not pa.types.is_list(column.type):
    return holds(column.to_numpy(zero_copy_only=False).astype(np.float64))
  numbers = column.flatten().to_numpy(zero_copy_only=False)
  row = np.repeat(
    np.arange(len(column)), column.value_lengths().fill_null(0).to_numpy()
  )
  bad = row[~holds(numbers.astype(np.float64))]
  return np.bincount(bad, minlength=len(column)) == 0
