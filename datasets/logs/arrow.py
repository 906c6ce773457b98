"""Lists in parquet files, read at once instead of cell by cell.

What is not as it should be is left to `tables`, which names the cell.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from hsrl_jax.shipped.datasets import schema

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}  # Units of dates.


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

  def __contains__(self, name: object) -> bool:
    """Whether there is such a column; no list is made of it."""
    return name in self.table.column_names

  def __iter__(self):
    """Names of columns."""
    return iter(self.table.column_names)

  def __len__(self) -> int:
    """Number of columns."""
    return len(self.table.column_names)


def _whole(columns: Mapping[str, Any], name: str):
  """A column without nulls as one array; None where there is no such thing."""
  if not isinstance(columns, Cells):
    return None
  column = columns.table[name].combine_chunks()
  if isinstance(column, pa.ChunkedArray):  # Of more than one, still.
    return None
  return None if column.null_count else column


def _flat(columns: Mapping[str, Any], name: str):
  """Entries of all lists, and the length of each; None for other columns."""
  column = _whole(columns, name)
  if column is None or not pa.types.is_list(column.type):
    return None
  entries = column.flatten()
  if entries.null_count:
    return None
  return entries, np.diff(column.offsets.to_numpy())


def scalars(
  columns: Mapping[str, Any],
  name: str,
  good: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray | None:
  """A column of numbers, or of dates as seconds since 1970, float64 [R].

  Args:
    columns: of a table.
    name: of the column.
    good: cells, float64, to whether each may be there.

  Returns:
    None where the column is no such thing.
  """
  column = _whole(columns, name)
  if column is None:
    return None
  scale = 1.0
  if pa.types.is_timestamp(column.type) and column.type.unit in _PER_SECOND:
    scale = _PER_SECOND[column.type.unit]
    column = column.cast(pa.int64())
  if not (_is_number(column.type) or pa.types.is_boolean(column.type)):
    return None
  values = column.to_numpy(zero_copy_only=False).astype(np.float64) / scale
  return values if good(values).all() else None


def codes(
  columns: Mapping[str, Any], name: str
) -> tuple[np.ndarray, list[str]] | None:
  """The number of each cell among the different ones, int [R], and these.

  They are in the order of their first rows.

  Args:
    columns: of a table.
    name: of a column of ids.

  Returns:
    None where the column is no such thing.
  """
  column = _whole(columns, name)
  if column is None or not (
    pa.types.is_integer(column.type) or _is_text(column.type)
  ):
    return None
  encoded = column.dictionary_encode()
  names = encoded.dictionary.cast(pa.string()).to_pylist()
  return None if "" in names else (encoded.indices.to_numpy(), names)


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
  if not _is_number(entries.type) or (lengths != width).any():
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


def _is_number(kind: pa.DataType) -> bool:
  return pa.types.is_integer(kind) or pa.types.is_floating(kind)


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
  return last(numbers, np.cumsum(lengths), lengths, schema.HISTORY_LENGTH)


def last(
  numbers: np.ndarray, ends: np.ndarray, lengths: np.ndarray, size: int
) -> np.ndarray:
  """The last entries of lists that lie one after another, int32 [R, size].

  Args:
    numbers: entries of all lists.
    ends: int [R], where in them each list ends.
    lengths: int [R], how many are its own.
    size: of a row, with 0 on the left.
  """
  rows = np.zeros((len(ends), size), np.int32)
  for back in range(1, min(size, int(lengths.max(initial=0))) + 1):
    there = np.flatnonzero(lengths >= back)
    rows[there, size - back] = numbers[ends[there] - back]
  return rows
