"""Lists in parquet files, read at once instead of cell by cell.

What is not as it should be is left to `tables`, which names the cell.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from hsrl_jax.shipped.datasets import schema


class Cells(Mapping[str, list[Any]]):
  """Columns of a table; each is made a list when it is asked for."""

  def __init__(self, table: pa.Table):
    """Binds the table."""
    self.table = table
    self._lists: dict[str, list[Any]] = {}

  def __getitem__(self, name: str) -> list[Any]:
    """The cells of a column."""
    if name not in self.table.column_names:
      raise KeyError(name)
    if name not in self._lists:
      self._lists[name] = self.table[name].to_pylist()
    return self._lists[name]

  def __iter__(self):
    """Names of columns."""
    return iter(self.table.column_names)

  def __len__(self) -> int:
    """Number of columns."""
    return len(self.table.column_names)


def _flat(columns: Mapping[str, Any], name: str):
  """Entries of all lists, and the length of each; None for other columns."""
  if not isinstance(columns, Cells):
    return None
  column = columns.table[name].combine_chunks()
  if isinstance(column, pa.ChunkedArray):  # Of more than one, still.
    return None
  if not pa.types.is_list(column.type) or column.null_count:
    return None
  entries = column.flatten()
  if entries.null_count:
    return None
  return entries, np.diff(column.offsets.to_numpy())


def numbers(
  columns: Mapping[str, Any],
  name: str,
  good: Callable[[np.ndarray], np.ndarray],
  width: int | None,
) -> np.ndarray | None:
  """Lists of numbers that are as long as the first, or `width`, [R, width].

  Args:
    columns: of a table.
    name: of the column.
    good: entries, float64, to whether each may be there.
    width: of each list; None: that of the first.

  Returns:
    None where the column is no such thing.
  """
  flat = _flat(columns, name)
  if flat is None or not len(flat[1]):
    return None
  entries, lengths = flat
  width = int(lengths[0]) if width is None else width
  is_number = pa.types.is_integer(entries.type) or pa.types.is_floating(
    entries.type
  )
  if not is_number or (lengths != width).any():
    return None
  values = entries.to_numpy(zero_copy_only=False).astype(np.float64)
  return values.reshape(len(lengths), width) if good(values).all() else None


def items(
  columns: Mapping[str, Any], name: str, item_ids: list[str]
) -> tuple[np.ndarray, np.ndarray] | None:
  """Lists of items as numbers of all lists, and the length of each.

  Args:
    columns: of a table.
    name: of the column.
    item_ids: of item 1, 2, ...

  Returns:
    None where the column is no such thing, or an item is unknown.
  """
  flat = _flat(columns, name)
  if flat is None:
    return None
  entries, lengths = flat
  if not (pa.types.is_integer(entries.type) or _is_text(entries.type)):
    return None
  found = pyarrow.compute.index_in(
    entries.cast(pa.string()), pa.array(item_ids, pa.string())
  )
  if found.null_count:
    return None
  return found.to_numpy(zero_copy_only=False).astype(np.int32) + 1, lengths


def _is_text(kind: pa.DataType) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def slates(
  columns: Mapping[str, Any], name: str, item_ids: list[str]
) -> np.ndarray | None:
  """Lists of different items, as many in each, int32 [R, K]; see `items`."""
  found = items(columns, name, item_ids)
  if found is None or not len(found[1]) or not found[1][0]:
    return None
  numbers, lengths = found
  if (lengths != lengths[0]).any():
    return None
  rows = numbers.reshape(-1, lengths[0])
  ordered = np.sort(rows, 1)
  return None if (ordered[:, 1:] == ordered[:, :-1]).any() else rows


def histories(
  columns: Mapping[str, Any], name: str, item_ids: list[str]
) -> np.ndarray | None:
  """The last items of each list, 0 on the left, int32 [R, H]; see `items`."""
  found = items(columns, name, item_ids)
  if found is None:
    return None
  numbers, lengths = found
  size = schema.HISTORY_LENGTH
  ends = np.cumsum(lengths)
  # Entry h of a row is that many before the row's end.
  back = size - np.arange(size)
  place = ends[:, None] - back
  there = back[None] <= lengths[:, None]
  padded = np.concatenate([numbers, np.zeros(1, np.int32)])
  return np.where(there, padded[np.where(there, place, -1)], 0)
