"""Item embeddings of one's own, from .npy, .npz or .parquet files, checked."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from hsrl_jax import files
from hsrl_jax.data import rows as rows_lib
from hsrl_jax.errors import InputError, reading

BLOCK = 65_536  # Rows looked at at once.
_IN_MEMORY = 2**30  # Bytes of an .npy file up to which it is read at once.
_NAMED = 3  # Ids that an error names.


class Rows(Protocol):
  """A matrix that may lie on disk; `rows[a:b]` is float32 [b - a, D]."""

  shape: tuple[int, int]

  def __len__(self) -> int: ...

  def __getitem__(self, key: slice) -> np.ndarray: ...


class Embeddings(NamedTuple):
  """A catalogue as a file gives it.

  Attributes:
    rows: [N, D], float32 where sliced.
    item_ids: int64 or str [N], distinct; None where the file has none.
    titles: str [N] for people; None where the file has none.
  """

  rows: Rows
  item_ids: np.ndarray | None
  titles: np.ndarray | None


def read(path: pathlib.Path) -> Embeddings:
  """Reads the embeddings of a catalogue.

  An .npy file holds the matrix alone and may exceed the memory: beyond 1 GiB
  it is read by rows. An .npz file has `embeddings` [N, D], a .parquet file the
  list column `embedding`; both may have `item_id` and `title`.

  Args:
    path: of the file; its suffix says what it is.

  Raises:
    InputError: the file is missing, damaged, empty, lacks a column, is not of
      floating point or has an id twice. Values are not looked at; see
      check_finite.
  """
  embeddings = _read(path, {".npy": _npy, ".npz": _npz, ".parquet": _parquet})
  rows, item_ids, titles = embeddings
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
  return embeddings


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


def digest(
  path: pathlib.Path, on_bytes: Callable[[int], object] = lambda count: None
) -> str:
  """SHA-256 of a file's content.

  Args:
    path: of the file.
    on_bytes: called with how many bytes were read.

  Raises:
    InputError: there is no such file.
  """
  with reading(path, "a file"):
    return files.digest(path, on_bytes)


def _read(path: pathlib.Path, readers: dict[str, Callable]) -> Any:
  """Reads a file with the reader of its suffix."""
  if path.suffix not in readers:
    raise InputError(
      f"{path} has the suffix {path.suffix!r}; expected one of "
      f"{', '.join(readers)}"
    )
  with reading(path, f"a complete {path.suffix} file"):
    return readers[path.suffix](path)


def _npy(path: pathlib.Path) -> Embeddings:
  try:
    rows = rows_lib.open_npy(path)
  except ValueError as error:
    raise InputError(str(error)) from error
  if path.stat().st_size <= _IN_MEMORY:
    rows = rows[:]
  return Embeddings(rows, None, None)


def _npz(path: pathlib.Path) -> Embeddings:
  headers = files.npz_headers(path)
  _need("embeddings", [*headers], path)
  _check_matrix(headers["embeddings"], path)
  # Opened here, since numpy leaves a damaged file open.
  with path.open("rb") as file, np.load(file) as arrays:
    columns = {
      name: arrays[name]
      for name in ("embeddings", "item_id", "title")
      if name in arrays.files
    }
  return Embeddings(
    _matrix(columns["embeddings"], path),
    _ids(columns.get("item_id"), path),
    _titles(columns.get("title")),
  )


def _parquet(path: pathlib.Path) -> Embeddings:
  import pyarrow as pa  # Here: it takes a while, and few runs need it.
  import pyarrow.parquet

  with path.open("rb") as file:
    source = pa.parquet.ParquetFile(file)
    names = source.schema_arrow.names
    _need("embedding", names, path)
    table = source.read(
      [x for x in ("embedding", "item_id", "title") if x in names]
    )
  for name in table.column_names:
    missing = table[name].null_count
    if missing and name != "title":
      raise InputError(
        f"{path}: {missing} rows have no {name}; expected one in each row"
      )

  def column(name):
    if name not in table.column_names:
      return None
    values = table[name].combine_chunks()
    if name == "item_id" and pa.types.is_primitive(values.type):
      return values.to_numpy(zero_copy_only=False)
    values = values.cast(pa.string()).fill_null("")
    return np.array(values.to_pylist(), dtype=str)

  lists = table["embedding"].combine_chunks()
  if not hasattr(lists, "flatten") or pa.types.is_struct(lists.type):
    raise InputError(
      f"{path}: embedding is of type {lists.type}; expected a list of floats"
    )
  values = lists.flatten()
  sizes = lists.value_lengths().to_numpy(zero_copy_only=False)
  width = int(sizes[0]) if len(sizes) else 0
  if (sizes != width).any():
    row = int((sizes != width).argmax())
    raise InputError(
      f"{path}: embedding of row {row} has {sizes[row]} values; expected "
      f"{width}, as in the first row"
    )
  # A missing value becomes NaN, which check_finite names.
  matrix = values.to_numpy(zero_copy_only=False).reshape(len(lists), width)
  return Embeddings(
    _matrix(matrix, path), _ids(column("item_id"), path), column("title")
  )


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


def _matrix(x: np.ndarray, path: pathlib.Path) -> np.ndarray:
  _check_matrix(x, path)
  with np.errstate(over="ignore"):  # Infinite then: see check_finite.
    return x.astype(np.float32, copy=False)


def _ids(ids: np.ndarray | None, path: pathlib.Path) -> np.ndarray | None:
  if ids is None:
    return None
  if ids.ndim != 1 or ids.dtype.kind not in "iuUS":
    raise InputError(
      f"{path}: item ids are {ids.dtype} of shape {ids.shape}; expected a "
      "vector of integers or strings"
    )
  if ids.dtype.kind in "iu":
    return ids.astype(np.int64)
  return np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids


def _titles(titles: np.ndarray | None) -> np.ndarray | None:
  if titles is None:
    return None
  if titles.dtype.kind == "S":
    return np.char.decode(titles, "utf-8")
  return titles.astype(str)


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
