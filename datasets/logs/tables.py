"""Tables of a user's, in .csv or .parquet files: read, parsed and checked."""

import csv
import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet

from hsrl_jax.data import transitions
from hsrl_jax.data.source import SPLITS
from hsrl_jax.errors import InputError, reading
from hsrl_jax.shipped.datasets.logs import arrow

_SUFFIXES = (".csv", ".parquet")
_CUT = 100.0  # A size that no number of a profile is cut below.
_TRUTHS = {"false": 0, "true": 1}  # As pandas writes them to a csv file.


class Table(NamedTuple):
  """A file.

  Attributes:
    path: of the file.
    columns: name to the cells of all rows, which are str in a csv file.
    rows: number of each row in the file, for people.
  """

  path: pathlib.Path
  columns: Mapping[str, list[Any]]
  rows: Sequence[int]


def has(folder: pathlib.Path, name: str) -> bool:
  """Whether name.csv or name.parquet exists."""
  return any((folder / f"{name}{x}").exists() for x in _SUFFIXES)


def read_table(folder: pathlib.Path, name: str, needed: tuple) -> Table:
  """Reads name.csv or name.parquet.

  Raises:
    InputError: there is none, or both, or the file is damaged, empty or lacks a
      column.
  """
  paths = [folder / f"{name}{x}" for x in _SUFFIXES]
  present = [path.name for path in paths if path.exists()]
  if len(present) != 1:
    raise InputError(
      f"{folder} has {' and '.join(present) or f'no {name} file'}"
      f"; expected one of {paths[0].name} and {paths[1].name}"
    )
  return read_file(folder / present[0], needed)


def read_file(path: pathlib.Path, needed: tuple, only: bool = False) -> Table:
  """Reads a .csv or .parquet file.

  Args:
    path: of the file.
    needed: names of columns that must be there.
    only: whether of a .parquet file these alone are read.

  Raises:
    InputError: it is damaged, empty or lacks a column.
  """
  with reading(path, f"a complete {path.suffix} file"):
    read = list(needed) if only else None
    table = _csv(path) if path.suffix == ".csv" else _parquet(path, read)
  check_columns(path, list(table.columns), needed)
  if not table.rows:
    raise InputError(f"{path} has no rows; expected at least one")
  return table


def check_columns(path: pathlib.Path, names: list[str], needed: tuple) -> None:
  """Raises InputError where a file lacks a column."""
  missing = [x for x in needed if x not in names]
  if missing:
    raise InputError(
      f"{path} has the columns {', '.join(names) or 'none'}; expected "
      f"{', '.join(missing)} too"
    )


def _csv(path: pathlib.Path) -> Table:
  with path.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.reader(file)
    header = [x.strip() for x in next(reader, [])]
    again = [x for i, x in enumerate(header) if x and x in header[:i]]
    if again:
      raise ValueError(f"the header has {again[0]} twice")
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


def _parquet(path: pathlib.Path, columns: list[str] | None) -> Table:
  table = pyarrow.parquet.read_table(path, columns=columns)
  return Table(path, arrow.Cells(table), range(1, len(table) + 1))


def unused(table: Table, known: tuple[str, ...]) -> list[str]:
  """One line that names the columns that nobody reads, or none."""
  names = [x for x in table.columns if x not in known]
  if not names:
    return []
  return [f"{table.path.name}: columns not used: {', '.join(names)}"]


def column(
  table: Table, name: str, parse: Callable[[Any], Any]
) -> Sequence[Any]:
  """Parses a column; names file, row and column of a cell that is no good."""
  if parse in _GOOD_CELLS:
    at_once = arrow.scalars(table.columns, name, _GOOD_CELLS[parse])
    if at_once is not None:
      return at_once.astype(np.int64) if parse is place else at_once
  values = []
  for row, cell in zip(table.rows, table.columns[name], strict=True):
    try:
      values.append(parse(cell))
    except ValueError as error:
      raise InputError(
        f"{table.path}: row {row}, column {name}: found {error}"
      ) from error
  return values


def codes(table: Table, name: str) -> tuple[np.ndarray, list[str]]:
  """A column of ids as numbers from 0, int [R], and the id of each number.

  Ids are numbered in the order of their first rows.
  """
  at_once = arrow.codes(table.columns, name)
  if at_once is not None:
    return at_once
  ids = column(table, name, id_)
  number = {x: i for i, x in enumerate(dict.fromkeys(ids))}
  return np.array([number[x] for x in ids]), list(number)


def matrix(
  table: Table,
  name: str,
  parse: Callable[[Any], list],
  width: int | None = None,
  dtype: type = np.float32,
) -> np.ndarray:
  """Parses lists that are all as long as the first, or `width`, [R, width]."""
  if parse in _GOOD:
    at_once = arrow.numbers(table.columns, name, _GOOD[parse], width)
    if at_once is not None:
      return at_once.astype(dtype)
  values = column(table, name, parse)
  expected = len(values[0]) if width is None else width
  for row, value in zip(table.rows, values, strict=True):
    if len(value) != expected:
      raise InputError(
        f"{table.path}: row {row}, column {name}: found {len(value)} entries; "
        f"expected {expected}, as many as in "
        + ("the first row" if width is None else "exposed")
      )
  return np.array(values, dtype)


def cut(profile: np.ndarray, name: str) -> tuple[np.ndarray, list[str]]:
  """Profiles [R, P] without numbers that would drown all others, and a note.

  In each column numbers are cut at ten times what 95 % of its numbers are in
  size, but not below _CUT: a few users who say a million of themselves would
  else decide what the networks learn of everybody.
  """
  if not profile.size:
    return profile, []
  usual = np.quantile(np.abs(profile), 0.95, axis=0)
  most = np.maximum(10 * usual, _CUT).astype(np.float32)
  cut = np.clip(profile, -most, most)
  count = (cut != profile).any(1).sum()
  if not count:
    return profile, []
  return cut, [
    f"{name}: profiles of {count:,} slates have numbers more than ten times "
    "as large as 95 % of their column, and were cut there"
  ]


def check_actions(path: pathlib.Path, exposed: np.ndarray) -> None:
  """Checks that logs with propensities show several items.

  Raises:
    InputError: they show a single one.
  """
  if len(np.unique(exposed)) < 2:
    raise InputError(
      f"{path}: every row shows the same item; expected at least two: "
      "logs of one action tell nothing of another"
    )


def texts(
  table: Table, name: str, default: list[str], between: str = ";"
) -> list[str]:
  """A column of texts; `default` where it is missing.

  Entries of lists have `between` between them.
  """

  def text(cell) -> str:
    if isinstance(cell, list):
      return between.join(map(text, cell))
    return "" if cell is None else str(cell)

  return [text(x) for x in table.columns.get(name, default)]


def short(cell) -> str:
  """A cell for an error."""
  return repr(cell)[:60]


def id_(cell) -> str:
  """The id of an item or a user."""
  if cell is None or isinstance(cell, float | bytes) or str(cell) == "":
    raise ValueError(f"{short(cell)}; expected an integer or a string")
  return str(cell)


def list_(cell) -> list:
  """A list; its entries are str in a csv file."""
  if isinstance(cell, str):
    return [x.strip() for x in cell.split(";")] if cell else []
  if not isinstance(cell, list):
    raise ValueError(f"{short(cell)}; expected a list (csv: with ; between)")
  return cell


def number(cell) -> float:
  """A finite number."""
  try:
    value = float(cell)
  except (TypeError, ValueError, OverflowError):
    value = np.nan
  if not np.isfinite(value):
    raise ValueError(f"{short(cell)}; expected a finite number")
  return value


def reward(cell) -> float:
  """A number of at most LARGEST; NaN where a .parquet file has no value."""
  return np.nan if cell is None else _held(cell)


def _held(cell) -> float:
  """A number that training holds."""
  value = number(cell)
  if abs(value) > transitions.LARGEST:
    raise ValueError(
      f"{short(cell)}; expected at most {transitions.LARGEST:g} in size, which "
      "training in float32 holds: bring the column to another scale"
    )
  return value


def time(cell) -> float:
  """A number, or a date (ISO 8601) in seconds since 1970.

  A date without a time zone is taken as UTC.
  """
  try:
    return number(cell)
  except ValueError as error:
    given = cell.isoformat() if isinstance(cell, datetime.date) else cell
    try:
      when = datetime.datetime.fromisoformat(given)
    except (TypeError, ValueError):
      raise ValueError(f"{error}, or a date: 2025-01-31 12:00:00") from None
  if when.tzinfo is None:
    when = when.replace(tzinfo=datetime.UTC)
  return when.timestamp()


def binary(cell) -> float:
  """A response: 0 or 1, also as false or true."""
  value = _TRUTHS.get(str(cell).lower(), cell)
  try:
    value = number(value)
  except ValueError:
    value = -1.0
  if value not in (0, 1):
    raise ValueError(f"{short(cell)}; expected 0 or 1")
  return value


def probability(cell) -> float:
  """A propensity, in (0, 1]."""
  try:
    value = number(cell)
  except ValueError:
    value = 0.0
  if not 0 < value <= 1:
    raise ValueError(
      f"{short(cell)}; expected a probability in (0, 1], in all rows or none"
    )
  return value


def probabilities(cell) -> list[float]:
  """Propensities of a slate."""
  return [probability(x) for x in list_(cell)]


def place(cell) -> int:
  """A position: a whole number from 0."""
  value = number(cell)
  if value != int(value) or not 0 <= value < 2**31:
    raise ValueError(f"{short(cell)}; expected a whole number from 0")
  return int(value)


def places(cell) -> list[int]:
  """Positions of a slate's items."""
  return [place(x) for x in list_(cell)]


def numbers(cell) -> list[float]:
  """A list of numbers of at most LARGEST."""
  return [_held(x) for x in list_(cell)]


def feature(cell) -> list[float]:
  """A list of at least one number."""
  values = numbers(cell)
  if not values:
    raise ValueError(f"{short(cell)}; expected at least one number")
  return values


def responses(cell) -> list[float]:
  """A list of 0 and 1."""
  return [binary(x) for x in list_(cell)]


def split(cell) -> str:
  """The name of a split."""
  if cell not in SPLITS:
    raise ValueError(f"{short(cell)}; expected {', '.join(SPLITS)}")
  return cell


def _is_number(values: np.ndarray) -> np.ndarray:
  return np.abs(values) <= transitions.LARGEST  # NaN is not.


def _is_binary(values: np.ndarray) -> np.ndarray:
  return (values == 0) | (values == 1)


def _is_place(values: np.ndarray) -> np.ndarray:
  return (values >= 0) & (values < 2**31) & (values == np.floor(values))


# What parses a list to which of its entries, as numbers, are good.
_GOOD = {
  numbers: _is_number,
  responses: _is_binary,
  probabilities: lambda x: (x > 0) & (x <= 1),
  places: _is_place,
}
# What parses a cell to which cells, as numbers, are good.
_GOOD_CELLS = {
  number: np.isfinite,
  reward: _is_number,
  time: np.isfinite,
  binary: _is_binary,
  place: _is_place,
}
