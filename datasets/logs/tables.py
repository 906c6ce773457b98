"""Tables of a user's, in .csv or .parquet files: read, parsed and checked.

Columns are parsed by Arrow, _CHUNK rows at a time. A chunk in which that finds
anything amiss is parsed again cell by cell, which names the cell: all that
reads columns raises InputError with file, row and column of a cell that is no
good.
"""

import contextlib
import csv
import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from hsrl_jax.data import transitions
from hsrl_jax.data.source import SPLITS
from hsrl_jax.errors import InputError, reading

_SUFFIXES = (".csv", ".parquet")
_CUT = 100.0  # A size that no number of a profile is cut below.
_CHUNK = 2**20  # Rows that are parsed at once.
_BLOCK = 2**22  # Bytes of a csv file that are read at once.


class Table(NamedTuple):
  """A file."""

  path: pathlib.Path  # Of the file.
  data: pa.Table  # All rows; the cells of a csv file are texts.
  rows: Sequence[int]  # Number of each row in the file, for people.

  @property
  def names(self) -> list[str]:
    """Of the columns."""
    return self.data.column_names

  def cells(self, name: str) -> list[Any]:
    """A column as Python has it."""
    return self.data[name].to_pylist()

  def where(self, chosen: np.ndarray) -> "Table":
    """The rows that are chosen, by bool [R]."""
    rows = np.asarray(self.rows)[chosen]
    return Table(self.path, self.data.filter(pa.array(chosen)), rows)

  def has_cell(self, name: str) -> np.ndarray:
    """Whether each row has something in a column, bool [R]."""
    empty = pc.is_null(self.data[name])
    if _is_text(self.data[name].type):
      empty = pc.or_kleene(empty, pc.equal(self.data[name], ""))
    return ~empty.to_numpy(zero_copy_only=False)

  def refuse(self, row: int, name: str, what: str) -> None:
    """Raises InputError, which names the cell in a row from 0."""
    raise InputError(
      f"{self.path}: row {self.rows[row]}, column {name}: found {what}"
    )


def has(folder: pathlib.Path, name: str) -> bool:
  """Whether name.csv or name.parquet exists."""
  return any((folder / f"{name}{x}").exists() for x in _SUFFIXES)


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The path of name.csv or name.parquet.

  Raises:
    InputError: there is none, or both.
  """
  paths = [folder / f"{name}{x}" for x in _SUFFIXES]
  present = [path.name for path in paths if path.exists()]
  if len(present) != 1:
    raise InputError(
      f"{folder} has {' and '.join(present) or f'no {name} file'}"
      f"; expected one of {paths[0].name} and {paths[1].name}"
    )
  return folder / present[0]


def read_table(folder: pathlib.Path, name: str, needed: tuple) -> Table:
  """Reads name.csv or name.parquet; InputError: see `find` and `read_file`."""
  return read_file(find(folder, name), needed)


def read_file(path: pathlib.Path, needed: tuple, only: bool = False) -> Table:
  """Reads a .csv or .parquet file with the columns `needed`, or these `only`.

  Raises:
    InputError: it is damaged, empty or lacks a column.
  """
  with reading(path, f"a complete {path.suffix} file"):
    columns = list(needed) if only else None
    if path.suffix == ".csv":
      table = _csv(path, columns)
    else:
      data = pyarrow.parquet.read_table(path, columns=columns)
      table = Table(path, data, range(1, len(data) + 1))
  check_columns(path, table.names, needed)
  if not len(table.rows):
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


def names(path: pathlib.Path) -> list[str]:
  """Names of the columns of a file.

  Raises:
    InputError: it is damaged.
  """
  with reading(path, f"a complete {path.suffix} file"):
    if path.suffix == ".csv":
      return _header(path)[0]
    return pyarrow.parquet.ParquetDataset(path).schema.names


def _header(path: pathlib.Path) -> tuple[list[str], int]:
  """Names of the columns of a .csv file, and how many lines they take."""
  with path.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.reader(file)
    header = [x.strip() for x in next(reader, [])]
  again = [x for i, x in enumerate(header) if x and x in header[:i]]
  if again:
    raise ValueError(f"the header has {again[0]} twice")
  if len(header) == 1 and {";", "\t"} & {*header[0]}:
    raise ValueError(f"no comma in the header {header[0][:40]!r}")
  return header, reader.line_num


def _csv(path: pathlib.Path, columns: list[str] | None) -> Table:
  header, first = _header(path)
  columns = header if columns is None else columns
  blocks = [pa.table({x: pa.array([], pa.string()) for x in columns})]
  try:
    with pyarrow.csv.open_csv(
      path,
      pyarrow.csv.ReadOptions(
        column_names=header, skip_rows=first, block_size=_BLOCK
      ),
      pyarrow.csv.ParseOptions(
        newlines_in_values=True,  # A line of blanks is no row.
        invalid_row_handler=lambda x: "error" if x.text.strip() else "skip",
      ),
      pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), include_columns=columns
      ),
    ) as reader:
      for block in reader:
        cells = map(pc.utf8_trim_whitespace, block.columns)
        blocks.append(pa.table(dict(zip(columns, cells, strict=True))))
  except pa.ArrowInvalid:
    if list(_lines(path, len(header))):  # It has more than a header.
      raise
  data = pa.concat_tables(blocks)
  if len(header) == 1:
    data = data.filter(pc.not_equal(data[0], ""))
  rows = range(first + 1, first + 1 + len(data))
  if _count_lines(path) != rows.stop - 1:
    rows = np.fromiter(_lines(path, len(header)), int)
  return Table(path, data, rows)


def _count_lines(path: pathlib.Path) -> int:
  count, last = 0, b"\n"
  with path.open("rb") as file:
    while block := file.read(_BLOCK):
      count, last = count + block.count(b"\n"), block[-1:]
  return count + (last != b"\n")


def _lines(path: pathlib.Path, width: int) -> Iterator[int]:
  """The line on which each row ends; the header's first one is line 1.

  Raises:
    ValueError: a row has not as many cells as the header.
  """
  with path.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.reader(file)
    next(reader, None)
    for cells in reader:
      if [x.strip() for x in cells] in ([], [""]):
        continue  # A blank line, such as editors leave at the end.
      if len(cells) != width:
        raise ValueError(
          f"row {reader.line_num} has {len(cells)} cells, the header {width}"
        )
      yield reader.line_num


def unused(table: Table, known: tuple[str, ...]) -> list[str]:
  """One line that names the columns that nobody reads, or none."""
  names = [x for x in table.names if x not in known]
  if not names:
    return []
  note = f"{table.path.name}: columns not used: {', '.join(names)}"
  if "profile" not in table.names:
    note += (
      "; what is known of users goes into a file users, or a column profile"
    )
  return [note]


def column(
  table: Table, name: str, parse: Callable[[Any], Any]
) -> Sequence[Any]:
  """Parses a column, R values; an array where they are numbers.

  Raises:
    InputError: it names file, row and column of a cell that is no good.
  """
  parts = []
  for start, cells in _chunks(table, name):
    values = _at_once(cells, parse)
    if values is None:
      values = _by_cell(table, name, start, parse)
    parts.append(values)
  if hasattr(parse, "at_once"):
    return np.concatenate(parts)
  return [x for part in parts for x in part]


def codes(table: Table, name: str) -> tuple[np.ndarray, list[str]]:
  """A column of ids as numbers from 0, int [R], and the id of each number.

  Ids are numbered in the order of their first rows.
  """
  cells = table.data[name]
  if pa.types.is_dictionary(cells.type):
    cells = cells.cast(cells.type.value_type)
  if (
    not _are_ids(cells) or pc.any(pc.equal(cells.cast(pa.string()), "")).as_py()
  ):
    cells = pa.chunked_array([column(table, name, id_)], pa.string())
  encoded = cells.dictionary_encode().unify_dictionaries().combine_chunks()
  ids = encoded.dictionary.cast(pa.string()).to_pylist()
  return encoded.indices.to_numpy(), ids


def lists(
  table: Table, name: str, parse: Callable[[Any], Any]
) -> tuple[np.ndarray, np.ndarray]:
  """Parsed entries of all lists of a column, and the lists' lengths, [R]."""
  parts = []
  for start, cells in _chunks(table, name):
    entries, lengths = _flat(cells) or (None, None)
    values = None if entries is None else _at_once(entries, parse)
    if values is None:
      rows = _by_cell(
        table, name, start, lambda cell: [parse(x) for x in list_(cell)]
      )
      values, lengths = (
        np.array([x for y in rows for x in y]),
        [*map(len, rows)],
      )
    parts.append((values, lengths))
  values, lengths = zip(*parts, strict=True)
  return np.concatenate(values), np.concatenate(lengths)


def matrix(
  table: Table,
  name: str,
  parse: Callable[[Any], Any],
  width: int | None = None,
  dtype: type = np.float32,
  filled: str | None = None,
) -> np.ndarray:
  """Parses lists that are all as long as the first, or `width`, [R, width].

  Args:
    table: with the column.
    name: of the column.
    parse: of an entry.
    width: as many as in the column exposed; None: as in the first row.
    dtype: of what is returned.
    filled: what is expected in place of an empty list; None: it may be empty.
  """
  values, lengths = lists(table, name, parse)
  if filled is not None:
    for row in np.flatnonzero(lengths == 0)[:1]:
      found = short(table.data[name][row].as_py())
      table.refuse(row, name, f"{found}; expected {filled}")
  expected = int(lengths[0]) if width is None else width
  for row in np.flatnonzero(lengths != expected)[:1]:
    table.refuse(
      row,
      name,
      f"{lengths[row]} entries; expected {expected}, as many as in "
      + ("the first row" if width is None else "exposed"),
    )
  return values.reshape(len(lengths), expected).astype(dtype)


def exploded(table: Table, name: str, as_name: str) -> Table:
  """A row for each entry of the lists of a column, which gets another name."""
  flat = [_flat(cells) for _, cells in _chunks(table, name)]
  if None in flat:
    rows = column(table, name, list_)
    flat = [(pa.array([x for row in rows for x in row]), [*map(len, rows)])]
  entries, lengths = zip(*flat, strict=True)
  at = np.repeat(np.arange(len(table.rows)), np.concatenate(lengths))
  data = table.data.drop_columns(name).take(at)
  data = data.append_column(as_name, pa.chunked_array(entries))
  return Table(table.path, data, np.asarray(table.rows)[at])


def _chunks(table: Table, name: str) -> Iterator[tuple[int, pa.Array]]:
  """Parts of a column, each with the number of its first row."""
  for start in range(0, len(table.data), _CHUNK):
    yield start, table.data[name].slice(start, _CHUNK).combine_chunks()


def _by_cell(
  table: Table, name: str, start: int, parse: Callable[[Any], Any]
) -> list[Any]:
  """Parses the part from row `start` on, or names the cell that is no good."""
  values, cells = [], table.data[name].slice(start, _CHUNK).to_pylist()
  for row, cell in enumerate(cells, start):
    try:
      values.append(parse(cell))
    except ValueError as error:
      table.refuse(row, name, str(error))
  return values


def _flat(cells: pa.Array) -> tuple[pa.Array, np.ndarray] | None:
  """Entries of all lists, and the length of each; None for other cells."""
  if cells.null_count:
    return None
  if _is_text(cells.type):  # An empty one has no entry, as a null has none.
    some = pc.if_else(pc.equal(cells, ""), None, cells)
    cells = pc.split_pattern(some, ";")
  elif not pa.types.is_list(cells.type):
    return None
  entries, lengths = cells.flatten(), pc.list_value_length(cells)
  if _is_text(entries.type):
    entries = pc.utf8_trim_whitespace(entries)
  return entries, lengths.fill_null(0).to_numpy()


def _at_once(cells: pa.Array, parse: Callable[[Any], Any]) -> np.ndarray | None:
  """All cells, parsed by `parse`; None where one needs a closer look."""
  if cells.null_count or not hasattr(parse, "at_once"):
    return None
  return parse.at_once(cells)


def _are_ids(cells: pa.Array | pa.ChunkedArray) -> bool:
  kind = cells.type
  return not cells.null_count and (pa.types.is_integer(kind) or _is_text(kind))


def _is_text(kind: pa.DataType) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


class Items:
  """The parser of an item's id: its number, 1, 2, ... in the catalogue."""

  def __init__(self, ids: Sequence[str]):
    """Binds the ids of item 1, 2, ..."""
    self._ids = pa.array(ids, pa.string())
    self._number = {item: i for i, item in enumerate(ids, 1)}

  def __call__(self, cell: Any) -> int:
    """The number of an item; ValueError where there is no such item."""
    name = id_(cell)
    if name not in self._number:
      raise ValueError(
        f"item {short(name)}; expected an item_id of the table of items"
      )
    return self._number[name]

  def at_once(self, cells: pa.Array) -> np.ndarray | None:
    """The numbers of many, int32; None where one is no item."""
    if not _are_ids(cells):
      return None
    encoded = cells.dictionary_encode()
    found = pc.index_in(encoded.dictionary.cast(pa.string()), self._ids)
    if found.null_count:
      return None
    number = found.to_numpy(zero_copy_only=False).astype(np.int32) + 1
    return number[encoded.indices.to_numpy()]


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

  cells = table.cells(name) if name in table.names else default
  return [text(x) for x in cells]


def is_number(text: str) -> bool:
  """Whether a text is one of a number."""
  try:
    float(text)
  except ValueError:
    return False
  return True


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


@dataclasses.dataclass(frozen=True)
class Number:
  """The parser of a number of some kind."""

  # Whether a number, or each one of an array, is of that kind.
  holds: Callable[[Any], Any] = np.isfinite
  expected: str = ""  # Instead of a number of another kind.
  # What is expected instead of what is no number.
  finite: str = "a finite number"
  dtype: type = float  # That it is kept as.
  # What an empty cell of a .parquet file stands for, if anything.
  none: float | None = None
  # Texts to the numbers that they stand for.
  words: Mapping[str, int] = dataclasses.field(default_factory=dict)
  # Of Arrow, that a cell may have which is no number.
  kinds: tuple[pa.DataType, ...] = ()

  def __call__(self, cell: Any) -> float:
    """The number in a cell; ValueError where it is none of the kind."""
    if cell is None and self.none is not None:
      return self.none
    try:
      value = float(self.words.get(str(cell).lower(), cell))
    except (TypeError, ValueError, OverflowError):
      value = np.nan
    if not np.isfinite(value):
      raise ValueError(f"{short(cell)}; expected {self.finite}")
    if not self.holds(value):
      raise ValueError(f"{short(cell)}; expected {self.expected}")
    return self.dtype(value)

  def at_once(self, cells: pa.Array) -> np.ndarray | None:
    """The numbers of many cells; None where one may be none of the kind."""
    for kind in (pa.float64(), *self.kinds):
      with contextlib.suppress(pa.ArrowException):
        found, scale = cells.cast(kind, safe=kind != pa.float64()), 1.0
        if pa.types.is_timestamp(kind):
          found, scale = found.cast(pa.int64()), 1e6
        values = found.cast(pa.float64(), safe=False)
        values = values.to_numpy(zero_copy_only=False) / scale
        return values.astype(self.dtype) if self.holds(values).all() else None
    return None


class _Time(Number):
  """Of a number, or a date (ISO 8601) in seconds since 1970.

  A date without a time zone is taken as UTC.
  """

  def __call__(self, cell: Any) -> float:
    try:
      return super().__call__(cell)
    except ValueError as error:
      given = cell.isoformat() if isinstance(cell, datetime.date) else cell
      try:
        when = datetime.datetime.fromisoformat(given)
      except (TypeError, ValueError):
        raise ValueError(f"{error}, or a date: 2025-01-31 12:00:00") from None
    if when.tzinfo is None:
      when = when.replace(tzinfo=datetime.UTC)
    return when.timestamp()


class _Splits(Items):
  """Of the name of a split: its number in SPLITS."""

  def __call__(self, cell: Any) -> int:
    if cell not in SPLITS:
      raise ValueError(f"{short(cell)}; expected {', '.join(SPLITS)}")
    return SPLITS.index(cell)

  def at_once(self, cells: pa.Array) -> np.ndarray | None:
    found = super().at_once(cells)
    return None if found is None else found - 1


number = Number()
time = _Time(kinds=(pa.timestamp("us"), pa.timestamp("us", "UTC")))
held = Number(
  lambda x: np.abs(x) <= transitions.LARGEST,
  f"at most {transitions.LARGEST:g} in size, which training in float32 holds: "
  "bring the column to another scale",
)
held_or_none = dataclasses.replace(held, none=np.nan)
binary = Number(  # A response; pandas writes true and false to a csv file.
  lambda x: (x == 0) | (x == 1),
  *("0 or 1", "0 or 1"),
  words={"false": 0, "true": 1},
  kinds=(pa.bool_(),),
)
probability = Number(  # A propensity.
  lambda x: (x > 0) & (x <= 1),
  *["a probability in (0, 1], or an empty cell"] * 2,
)
place = Number(  # A position.
  lambda x: (x >= 0) & (x < 2**31) & (x == np.floor(x)),
  "a whole number from 0",
  dtype=int,
)
split = _Splits(SPLITS)
