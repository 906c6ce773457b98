"""Tags out of the columns of a user's items, and when each was added.

The names in a column `tags` are tags. So are the values of any other column of
texts, as `column=value`, where items share them: there are at most MOST, and at
most half as many as items.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hsrl_jax.shipped.datasets.logs import tables

COLUMN = "tags"
MOST = 100  # Values of a column that are tags.
_LATEST = 2**32 - 2  # See serving/tags.py.


def read(
  table: tables.Table, others: Sequence[str]
) -> tuple[list[list[str]], list[str]]:
  """Reads the tags of N items.

  `others` are names of columns that have no meaning of their own.

  Returns:
    [N] lists of distinct names, and a note that says which columns they are of
    and why others have none.

  Raises:
    InputError: the row of `tags` that is no list of names.
  """
  tags: list[list[str]] = [[] for _ in table.rows]
  of, none = [], []
  if any(tables.texts(table, "genres", [])):
    of.append("genres")
  for name in others:
    cells = tables.texts(table, name, [])
    if not any(cells):
      continue
    if name == COLUMN:
      values = tables.column(table, name, _names)
    elif all(map(tables.is_number, filter(None, cells))):
      none.append(f"{name} (numbers)")
      continue
    else:
      values = [_values(name, cell) for cell in cells]
      count = len({x for row in values for x in row})
      if count > min(MOST, len(tags) // 2):
        none.append(f"{name} ({count:,} values of {len(tags):,} items)")
        continue
    of.append(name)
    for own, new in zip(tags, values, strict=True):
      own += [x for x in dict.fromkeys(new) if x not in own]
  if not of and not none:
    return tags, []
  note = f"tags that requests may include: {', '.join(of) or 'none'}"
  return tags, [f"{note}; not of {', '.join(none)}" if none else note]


def added(table: tables.Table) -> np.ndarray:
  """When items were added, int64 [N, 1]; [N, 0] where that is not said.

  Raises:
    InputError: the row with another time.
  """
  if "added" not in table.names:
    return np.zeros((len(table.rows), 0), np.int64)
  return np.array(tables.column(table, "added", _time), np.int64)[:, None]


def _names(cell: Any) -> list[str]:
  """The names in a cell of `tags`."""
  names = [] if cell is None else tables.list_(cell)
  if not all(isinstance(x, str) and x for x in names):
    raise ValueError(
      f"{tables.short(cell)}; expected names (csv: with ; between)"
    )
  return names


def _values(column: str, cell: str) -> list[str]:
  """The tags of a cell of another column."""
  return [f"{column}={x.strip()}" for x in cell.split(";") if x.strip()]


def _time(cell: Any) -> int:
  seconds = tables.time(cell)
  if not 0 <= seconds <= _LATEST:
    raise ValueError(
      f"{tables.short(cell)}; expected a time from 0 to {_LATEST}, such as "
      "seconds since 1970"
    )
  return int(seconds)
