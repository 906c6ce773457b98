"""Logs of one's own: `sessions` and `items`, each a .csv or a .parquet file.

`--raw_data_dir` holds both. Columns, those with * may be missing:
  items      item_id, feature, title*, genres*
  sessions   user_id, profile*, history*, exposed, response, timestamp, split*

Ids are integers or strings; items are numbered 1..N and users 1..U in the
order of their rows. `feature` and `profile` are lists of as many numbers in
each row, `exposed` is a list of as many different items, `response` of as many
0 or 1, `history` of items, the newest last. In a csv file a list is written
with ; between. `timestamp` is a number, such as seconds.

Without `history`, it is what the user responded to positively in earlier
slates. Without `split` (train, val or test), the last tenth of the slates is
the test split and the tenth before it the validation split.
"""

import csv
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet
import tensorflow_datasets as tfds

from hsrl_jax.data.source import SPLITS
from hsrl_jax.errors import InputError, reading
from hsrl_jax.shipped.datasets import schema


class Builder(schema.SlateBuilder):
  """Reads the user's files in `--raw_data_dir`."""

  VERSION = tfds.core.Version("1.0.0")
  TIMESTAMP = np.float64
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "sessions.csv or .parquet and items.csv or .parquet"
  )

  def read_items(self, folder):
    """Columns of `items`, in the order of the file."""
    return read_items(folder)

  def read_sessions(self, folder):
    """Columns of `sessions`, by time."""
    return read_sessions(folder, read_items(folder)["external_id"])


class Table(NamedTuple):
  """A file.

  Attributes:
    path: of the file.
    columns: name to the cells of all rows, which are str in a csv file.
    rows: number of each row in the file, for people.
  """

  path: pathlib.Path
  columns: dict[str, list[Any]]
  rows: list[int]


def read_table(folder: pathlib.Path, name: str, needed: tuple) -> Table:
  """Reads name.csv or name.parquet.

  Raises:
    InputError: there is none, or both, or the file is damaged, empty or lacks a
      column.
  """
  paths = [folder / f"{name}{x}" for x in (".csv", ".parquet")]
  present = [path.name for path in paths if path.exists()]
  if len(present) != 1:
    raise InputError(
      f"{folder} has {' and '.join(present) or f'no {name} file'}"
      f"; expected one of {paths[0].name} and {paths[1].name}"
    )
  path = folder / present[0]
  with reading(path, f"a complete {path.suffix} file"):
    table = _csv(path) if path.suffix == ".csv" else _parquet(path)
  missing = [x for x in needed if x not in table.columns]
  if missing:
    raise InputError(
      f"{path} has the columns {', '.join(table.columns) or 'none'}; expected "
      f"{', '.join(missing)} too"
    )
  if not table.rows:
    raise InputError(f"{path} has no rows; expected at least one")
  return table


def _csv(path: pathlib.Path) -> Table:
  with path.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.reader(file)
    header = [x.strip() for x in next(reader, [])]
    lines, rows = [], []
    for line in reader:
      cells = [x.strip() for x in line]
      if cells in ([], [""]):
        continue  # A blank line, such as editors leave at the end.
      if len(cells) != len(header):
        raise ValueError(
          f"row {reader.line_num} has {len(cells)} cells, the header "
          f"{len(header)}"
        )
      lines.append(cells)
      rows.append(reader.line_num)  # The header is row 1.
  columns = {x: [cells[i] for cells in lines] for i, x in enumerate(header)}
  return Table(path, columns, rows)


def _parquet(path: pathlib.Path) -> Table:
  table = pyarrow.parquet.read_table(path)
  columns = {name: table[name].to_pylist() for name in table.column_names}
  return Table(path, columns, list(range(1, len(table) + 1)))


def read_items(folder: pathlib.Path) -> dict[str, Any]:
  """Reads and checks the items; columns of `items` (see schema.py).

  Raises:
    InputError: the file, row and column that is no good.
  """
  table = read_table(folder, "items", ("item_id", "feature"))
  ids = _column(table, "item_id", _id)
  first: dict[str, int] = {}
  for row, item in zip(table.rows, ids, strict=True):
    if item in first:
      raise InputError(
        f"{table.path}: row {row}, column item_id: {item!r} is in row "
        f"{first[item]} too; expected each item once"
      )
    first[item] = row
  return {
    "feature": _matrix(table, "feature", _feature),
    "external_id": ids,
    "title": _texts(table, "title", ids),
    "genres": _texts(table, "genres", [""] * len(ids)),
  }


def read_sessions(
  folder: pathlib.Path, item_ids: list[str]
) -> dict[str, np.ndarray]:
  """Reads and checks the slates; columns of `sessions` (schema.py), by time.

  Args:
    folder: where the file is.
    item_ids: of item 1, 2, ...

  Raises:
    InputError: the file, row and column that is no good.
  """
  table = read_table(
    folder, "sessions", ("user_id", "exposed", "response", "timestamp")
  )
  number = {item: i for i, item in enumerate(item_ids, 1)}

  def items(cell) -> list[int]:
    ids = [_id(x) for x in _list(cell)]
    unknown = [x for x in ids if x not in number]
    if unknown:
      raise ValueError(f"item {unknown[0]!r}; expected item_ids of the items")
    return [number[x] for x in ids]

  def slate(cell) -> list[int]:
    shown = items(cell)
    if len(set(shown)) < len(shown) or not shown:
      raise ValueError(f"{_short(cell)}; expected different items")
    return shown

  users = _column(table, "user_id", _id)
  user_number = {user: i for i, user in enumerate(dict.fromkeys(users), 1)}
  exposed = _matrix(table, "exposed", slate, dtype=np.int32)
  response = _matrix(table, "response", _responses, exposed.shape[1])
  timestamp = np.array(_column(table, "timestamp", _number))
  profile = np.zeros((len(users), 0), np.float32)
  if "profile" in table.columns:
    profile = _matrix(table, "profile", _numbers)
  order = np.argsort(timestamp, kind="stable")
  if "history" in table.columns:
    past = _column(table, "history", items)
  else:
    past = _liked_before(users, exposed, response, order)
  if "split" in table.columns:
    split = np.array(_column(table, "split", _split))
  else:
    split = _split_by_time(order)
  columns = {
    "user_id": np.array([user_number[x] for x in users], np.int32),
    "profile": profile,
    "history": np.array(
      [schema.left_padded(x, schema.HISTORY_LENGTH) for x in past]
    ),
    "exposed": exposed,
    "response": response,
    "timestamp": timestamp,
    "split": split,
  }
  return {name: column[order] for name, column in columns.items()}


def _liked_before(
  users: list[str], exposed: np.ndarray, response: np.ndarray, order: np.ndarray
) -> list[list[int]]:
  """Items that the user of each row liked in earlier slates, newest last.

  Args:
    users: R names.
    exposed: int [R, K].
    response: [R, K].
    order: int [R], the rows by time.
  """
  liked: dict[str, list[int]] = {user: [] for user in users}
  past: list[list[int]] = [[]] * len(users)
  for row in order:
    past[row] = liked[users[row]][-schema.HISTORY_LENGTH :]
    liked[users[row]] += exposed[row][response[row] > 0].tolist()
  return past


def _split_by_time(order: np.ndarray) -> np.ndarray:
  """Split of each row; `order` int [R] are the rows by time."""
  held_out = max(1, round(schema.HELD_OUT * len(order)))
  split = np.full(len(order), "train")
  split[order[-2 * held_out :]] = "val"
  split[order[-held_out:]] = "test"
  return split


def _column(table: Table, name: str, parse: Callable[[Any], Any]) -> list:
  """Parses a column; names file, row and column of a cell that is no good."""
  values = []
  for row, cell in zip(table.rows, table.columns[name], strict=True):
    try:
      values.append(parse(cell))
    except ValueError as error:
      raise InputError(
        f"{table.path}: row {row}, column {name}: found {error}"
      ) from error
  return values


def _matrix(
  table: Table,
  name: str,
  parse: Callable[[Any], list],
  width: int | None = None,
  dtype: type = np.float32,
) -> np.ndarray:
  """Parses lists that are all as long as the first, or `width`, [R, width]."""
  values = _column(table, name, parse)
  expected = len(values[0]) if width is None else width
  for row, value in zip(table.rows, values, strict=True):
    if len(value) != expected:
      raise InputError(
        f"{table.path}: row {row}, column {name}: found {len(value)} entries; "
        f"expected {expected}, as many as in "
        + ("the first row" if width is None else "exposed")
      )
  return np.array(values, dtype)


def _texts(table: Table, name: str, default: list[str]) -> list[str]:
  cells = table.columns.get(name, default)
  return ["" if x is None else str(x) for x in cells]


def _short(cell) -> str:
  return repr(cell)[:60]


def _id(cell) -> str:
  if cell is None or isinstance(cell, float) or str(cell) == "":
    raise ValueError(f"{_short(cell)}; expected an integer or a string")
  return str(cell)


def _list(cell) -> list:
  if isinstance(cell, str):
    return [x.strip() for x in cell.split(";")] if cell else []
  if not isinstance(cell, list):
    raise ValueError(f"{_short(cell)}; expected a list (csv: with ; between)")
  return cell


def _number(cell) -> float:
  try:
    number = float(cell)
  except (TypeError, ValueError, OverflowError):
    number = np.nan
  if not np.isfinite(number):
    raise ValueError(f"{_short(cell)}; expected a finite number")
  return number


def _numbers(cell) -> list[float]:
  values = _list(cell)
  numbers = [_number(x) for x in values]
  for value, number in zip(values, numbers, strict=True):
    if abs(number) > schema.FLOAT32_MAX:
      raise ValueError(
        f"{_short(value)}; expected at most "
        f"{schema.FLOAT32_MAX:.3g}, the largest float32"
      )
  return numbers


def _feature(cell) -> list[float]:
  numbers = _numbers(cell)
  if not numbers:
    raise ValueError(f"{_short(cell)}; expected at least one number")
  return numbers


def _responses(cell) -> list[float]:
  values = _numbers(cell)
  if not set(values) <= {0, 1}:
    raise ValueError(f"{_short(cell)}; expected 0 or 1")
  return values


def _split(cell) -> str:
  if cell not in SPLITS:
    raise ValueError(f"{_short(cell)}; expected {', '.join(SPLITS)}")
  return cell
