"""Item embeddings of one's own, from .npy, .npz or .parquet files, checked.

Rows of an .npy file may be more than memory holds: see `open_npy`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from hsrl_jax import files
from hsrl_jax.errors import InputError, reading

BLOCK = 65_536  # Rows looked at at once.
_IN_MEMORY = 2**30  # Bytes of an .npy file up to which it is read at once.
_NAMED = 3  # Ids that an error names.


class Rows(Protocol):
  """A matrix that may lie on disk; `rows[a:b]` is float32 [b - a, D]."""

  shape: tuple[int, int]

  def __len__(self) -> int: ...

  def __getitem__(self, key: slice) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class NpyRows:
  """Rows of a .npy file; each slice x[a:b] is read anew, as float32.

  Nothing is held between slices and the file is not mapped, whose pages would
  count as resident memory.
  """

  path: pathlib.Path  # Of the file.
  shape: tuple[int, int]  # (N, D).
  dtype: np.dtype  # In the file.
  offset: int  # Bytes before the first row.

  def __len__(self) -> int:
    """N."""
    return self.shape[0]

  def __getitem__(self, rows: slice) -> np.ndarray:
    """Reads the rows of a slice of step 1, float32 [b - a, D].

    Values beyond the range of float32 become infinite.

    Raises:
      TypeError: not such a slice.
      ValueError: the file has become shorter since it was opened.
    """
    if not isinstance(rows, slice) or rows.step not in (None, 1):
      raise TypeError(f"rows are read as x[a:b], not as x[{rows!r}]")
    start, stop, _ = rows.indices(len(self))
    width = self.shape[1]
    count = max(stop - start, 0) * width
    offset = self.offset + start * width * self.dtype.itemsize
    values = np.fromfile(self.path, self.dtype, count, offset=offset)
    if len(values) < count:
      raise ValueError(
        f"{self.path} ends before row {stop}; it was longer when it was "
        "opened: write it again"
      )
    with np.errstate(over="ignore"):
      return values.reshape(-1, width).astype(np.float32, copy=False)


def open_npy(path: str | os.PathLike) -> NpyRows:
  """Opens float rows for `hsrl_jax.sid.fit` and its kin, reading the header.

  Args:
    path: of a .npy file with a float matrix [N, D] in C order.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no .npy file, holds something else, is empty or is
      shorter than its header says.
  """
  path = pathlib.Path(path)
  try:
    array = np.lib.format.open_memmap(path, "r")
  except ValueError as error:
    what = "is not a .npy file; write it with numpy.save"
    if "mmap length" in str(error):
      what = (
        f"has {path.stat().st_size} bytes, fewer than its header says: it is "
        "truncated; write it again"
      )
    raise ValueError(f"{path} {what}") from error
  if array.ndim != 2 or array.dtype.kind != "f":
    raise ValueError(
      f"{path} holds {array.dtype} of shape {array.shape}; expected a float "
      "matrix [N, D]"
    )
  if not array.size:
    raise ValueError(
      f"{path} is empty, of shape {array.shape}; expected [N, D]"
    )
  if not array.flags.c_contiguous:
    raise ValueError(
      f"{path} is in Fortran order, column by column; save it with "
      "numpy.ascontiguousarray"
    )
  return NpyRows(path, array.shape, array.dtype, array.offset)


class Embeddings(NamedTuple):
  """A catalogue as a file gives it."""

  rows: Rows  # [N, D], float32 where sliced.
  # int64 or str [N], distinct; None where the file has none.
  item_ids: np.ndarray | None
  titles: np.ndarray | None  # str [N] for people; None where the file has none.


def read(path: pathlib.Path) -> Embeddings:
  """Reads the embeddings of a catalogue.

  An .npy file holds the matrix alone and may exceed the memory: beyond 1 GiB
  it is read by rows. An .npz file has `embeddings` [N, D], a .parquet file the
  list column `embedding`; both may have `item_id` and `title`.

  Raises:
    InputError: the file is missing, damaged, empty, lacks a column, is not of
      floating point or has an id twice. Values are not looked at; see
      check_finite.
  """
  rows, item_ids, titles = _read(
    path, {".npy": _npy, ".npz": _npz, ".parquet": _parquet}
  )
  if isinstance(rows, np.ndarray):
    _check_matrix(rows, path)
    with np.errstate(over="ignore"):  # Infinite then: see check_finite.
      rows = rows.astype(np.float32, copy=False)
  item_ids = None if item_ids is None else _ids(item_ids, path)
  if titles is not None:
    titles = _text(titles).astype(str)
  count = rows.shape[0]
  if not count or not rows.shape[1]:
    raise InputError(
      f"{path} has embeddings of shape {tuple(rows.shape)}; expected at least "
      "one item and one dimension"
    )
  for name, column in (("item_id", item_ids), ("title", titles)):
    if column is not None and len(column) != count:
      raise InputError(
        f"{path}: {name} has {len(column)} entries; expected {count}, one for "
        "each embedding"
      )
  if item_ids is not None:
    _check_distinct(item_ids, path)
  return Embeddings(rows, item_ids, titles)


def read_ids(path: pathlib.Path) -> np.ndarray:
  """Reads item ids: text with one id a line, or an .npy vector.

  Returns:
    int64 or str [M], distinct; ids from text are str.

  Raises:
    InputError: the file is missing, damaged, empty or has an id twice.
  """
  ids = _read(path, {".txt": _text_ids, ".npy": _npy_ids})
  if not len(ids):
    raise InputError(f"{path} is empty; expected at least one item id")
  _check_distinct(ids, path)
  return ids


def like(ids: np.ndarray, known: np.ndarray, where) -> np.ndarray:
  """`ids` with the type of `known`: a catalogue's ids are all int or all str.

  Raises:
    InputError: an id that should be an integer is not, or two are the same
      integer.
  """
  if ids.dtype.kind == known.dtype.kind:
    return ids
  if known.dtype.kind == "U":
    return ids.astype(str)
  try:
    ids = ids.astype(np.int64)
  except (ValueError, OverflowError) as error:
    raise InputError(
      f"{where}: an item id is no integer ({error}); expected integers, as "
      "the catalogue has"
    ) from error
  _check_distinct(ids, where)  # "07" is 7.
  return ids


def check_finite(
  rows: Rows,
  item_ids: np.ndarray,
  where,
  on_rows: Callable[[int], object] = lambda count: None,
) -> None:
  """Checks that all values are finite in float32.

  Args:
    rows: [N, D].
    item_ids: [N], to name the rows.
    where: names the source.
    on_rows: called with how many rows were looked at.

  Raises:
    InputError: the rows that have NaN, infinite values or some that are beyond
      the range of float32.
  """
  count, named = 0, []
  for start, block in blocks(rows):
    bad = np.flatnonzero(~np.isfinite(block).all(1))
    count += len(bad)
    named += [
      f"{item_ids[start + row]} (row {start + row})"
      for row in bad[: _NAMED - len(named)]
    ]
    on_rows(len(block))
  if count:
    more = ", ..." if count > len(named) else ""
    raise InputError(
      f"{where}: {count} row{'s have' if count > 1 else ' has'} NaN or "
      f"infinite values: item {', '.join(named)}{more}; expected numbers that "
      "are finite in float32: mend or drop them"
    )


def vary(rows: Rows) -> bool:
  """Whether two rows differ."""
  first = np.asarray(rows[:1])
  return any((block != first).any() for _, block in blocks(rows))


def blocks(rows: Rows) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (first row, float32 [at most BLOCK, D]) until all rows came."""
  for start in range(0, rows.shape[0], BLOCK):
    yield start, np.asarray(rows[start : start + BLOCK])


def _read(path: pathlib.Path, readers: dict[str, Callable]) -> Any:
  """Reads a file with the reader of its suffix."""
  if path.suffix not in readers:
    raise InputError(
      f"{path} has the suffix {path.suffix!r}; expected one of "
      f"{', '.join(readers)}"
    )
  with reading(path, f"a complete {path.suffix} file"):
    return readers[path.suffix](path)


def _npy(path: pathlib.Path) -> tuple[Rows, None, None]:
  try:
    rows = open_npy(path)
  except ValueError as error:
    raise InputError(str(error)) from error
  if path.stat().st_size <= _IN_MEMORY:
    rows = rows[:]
  return rows, None, None


def _npz(path: pathlib.Path) -> tuple[np.ndarray | None, ...]:
  headers = files.npz_headers(path)
  _need("embeddings", [*headers], path)
  _check_matrix(headers["embeddings"], path)
  # Opened here, since numpy leaves a damaged file open.
  with path.open("rb") as file, np.load(file) as arrays:
    return tuple(map(arrays.get, ("embeddings", "item_id", "title")))


def _parquet(path: pathlib.Path) -> tuple[np.ndarray | None, ...]:
  import pyarrow as pa  # Here: it takes a while, and few runs need it.
  import pyarrow.parquet

  with path.open("rb") as file:
    source = pa.parquet.ParquetFile(file)
    names = source.schema_arrow.names
    _need("embedding", names, path)
    columns = {
      name: source.read([name])[name].combine_chunks()
      for name in ("embedding", "item_id", "title")
      if name in names
    }
  for name, column in columns.items():
    if column.null_count and name != "title":
      raise InputError(
        f"{path}: {column.null_count} rows have no {name}; expected one in "
        "each row"
      )
  lists = columns["embedding"]
  if not hasattr(lists, "flatten") or pa.types.is_struct(lists.type):
    raise InputError(
      f"{path}: embedding is of type {lists.type}; expected a list of floats"
    )
  sizes = lists.value_lengths().to_numpy(zero_copy_only=False)
  width = int(sizes[0]) if len(sizes) else 0
  for row in np.flatnonzero(sizes != width)[:1]:
    raise InputError(
      f"{path}: embedding of row {row} has {sizes[row]} values; expected "
      f"{width}, as in the first row"
    )
  # A missing value becomes NaN, which check_finite names.
  matrix = lists.flatten().to_numpy(zero_copy_only=False)

  def plain(name):
    column = columns.get(name)
    if column is None:
      return None
    if name == "item_id" and pa.types.is_primitive(column.type):
      return column.to_numpy(zero_copy_only=False)
    return np.array(column.cast(pa.string()).fill_null("").to_pylist(), str)

  matrix = matrix.reshape(len(lists), width)
  return matrix, plain("item_id"), plain("title")


def _need(name: str, names: list[str], path: pathlib.Path) -> None:
  if name not in names:
    raise InputError(
      f"{path} has {', '.join(names) or 'nothing'}; expected {name!r}, and "
      "optionally 'item_id' and 'title'"
    )


def _check_matrix(x: np.ndarray | files.Header, path: pathlib.Path) -> None:
  if x.dtype.kind != "f" or len(x.shape) != 2:
    raise InputError(
      f"{path}: embeddings are {x.dtype} of shape {x.shape}; expected floating "
      "point numbers of shape [items, dimensions]"
    )


def _text(column: np.ndarray) -> np.ndarray:
  return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column


def _ids(ids: np.ndarray, path: pathlib.Path) -> np.ndarray:
  if ids.ndim != 1 or ids.dtype.kind not in "iuUS":
    raise InputError(
      f"{path}: item ids are {ids.dtype} of shape {ids.shape}; expected a "
      "vector of integers or strings"
    )
  return ids.astype(np.int64) if ids.dtype.kind in "iu" else _text(ids)


def _text_ids(path: pathlib.Path) -> np.ndarray:
  lines = [line.strip() for line in path.read_text().splitlines()]
  return np.array([line for line in lines if line], dtype=str)


def _npy_ids(path: pathlib.Path) -> np.ndarray:
  with path.open("rb") as file:
    return _ids(np.load(file), path)


def _check_distinct(ids: np.ndarray, path) -> None:
  values, counts = np.unique(ids, return_counts=True)
  twice = values[counts > 1]
  if len(twice):
    raise InputError(
      f"{path}: {len(twice)} item ids come more than once, such as {twice[0]} "
      f"({counts[counts > 1][0]} times); expected each id once"
    )
