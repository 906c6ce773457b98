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

from hsrl_jax.errors import InputError

HISTORY_LENGTH = 50
HELD_OUT = 0.1  # share of the slates in `val`, and again in `test`
SPLITS = ("train", "val", "test")


class Builder(tfds.core.GeneratorBasedBuilder):
  """Writes `items` and `sessions` (DESIGN: data schema) as array_record."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "sessions.csv or .parquet and items.csv or .parquet"
  )
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name="sessions", description="Slates."),
    tfds.core.BuilderConfig(name="items", description="Items."),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    def row(dtype):  # As long as the files have it.
      return tfds.features.Tensor(shape=(None,), dtype=dtype)

    if self.builder_config.name == "items":
      features = {
        "item_id": np.int32,
        "feature": row(np.float32),
        "external_id": tfds.features.Text(),
        "title": tfds.features.Text(),
        "genres": tfds.features.Text(),
      }
    else:
      features = {
        "user_id": np.int32,
        "profile": row(np.float32),
        "history": row(np.int32),
        "history_length": np.int32,
        "exposed": row(np.int32),
        "response": row(np.float32),
        "timestamp": np.float64,
      }
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    folder = pathlib.Path(dl_manager.manual_dir)
    items = read_items(folder)
    if self.builder_config.name == "items":
      return {"items": self._generate_examples(items)}
    sessions = read_sessions(folder, items["external_id"])
    split = sessions.pop("split")
    return {
      name: self._generate_examples(
        {k: x[split == name] for k, x in sessions.items()}
      )
      for name in SPLITS
    }

  def _generate_examples(self, columns):
    for row in range(len(next(iter(columns.values())))):
      yield row, {name: column[row] for name, column in columns.items()}


class Table(NamedTuple):
  """A file: cells by column (csv: str), and where each row is in it."""

  path: pathlib.Path
  columns: dict[str, list[Any]]
  rows: list[int]


def read_table(folder: pathlib.Path, name: str, needed: tuple) -> Table:
  """Reads name.csv or name.parquet.

  Raises:
    InputError: there is none, or both, or it is damaged, empty or lacks a
      column.
  """
  paths = [folder / f"{name}{x}" for x in (".csv", ".parquet")]
  found = [path for path in paths if path.exists()]
  if len(found) != 1:
    raise InputError(
      f"{folder} has {' and '.join(x.name for x in found) or f'no {name} file'}"
      f"; expected one of {paths[0].name} and {paths[1].name}"
    )
  (path,) = found
  try:
    table = _csv(path) if path.suffix == ".csv" else _parquet(path)
  except (OSError, ValueError, csv.Error) as error:
    what = str(error).splitlines()[0]
    raise InputError(
      f"{path} cannot be read ({what}); expected a complete {path.suffix} file"
    ) from error
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
    cells, rows = [], []
    for line in reader:
      if len(line) != len(header):
        raise ValueError(
          f"row {reader.line_num} has {len(line)} cells, the header "
          f"{len(header)}"
        )
      cells.append([x.strip() for x in line])
      rows.append(reader.line_num)  # The header is row 1.
  columns = {x: [c[i] for c in cells] for i, x in enumerate(header)}
  return Table(path, columns, rows)


def _parquet(path: pathlib.Path) -> Table:
  table = pyarrow.parquet.read_table(path)
  columns = {name: table[name].to_pylist() for name in table.column_names}
  return Table(path, columns, list(range(1, len(table) + 1)))


def read_items(folder: pathlib.Path) -> dict[str, list]:
  """Reads and checks the items; columns of `items`.

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
    "item_id": list(range(1, len(ids) + 1)),
    "feature": _matrix(table, "feature", _numbers),
    "external_id": ids,
    "title": _texts(table, "title", ids),
    "genres": _texts(table, "genres", [""] * len(ids)),
  }


def read_sessions(
  folder: pathlib.Path, item_ids: list[str]
) -> dict[str, np.ndarray]:
  """Reads and checks the slates; columns of `sessions` and `split`, by time.

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
  exposed = _matrix(table, "exposed", slate).astype(np.int32)
  response = _matrix(table, "response", _responses, exposed.shape[1])
  timestamp = np.array(_column(table, "timestamp", _number))
  profile = np.zeros((len(users), 0), np.float32)
  if "profile" in table.columns:
    profile = _matrix(table, "profile", _numbers)
  given = None
  if "history" in table.columns:
    given = _column(table, "history", items)

  order = np.argsort(timestamp, kind="stable")
  history = np.zeros((len(users), HISTORY_LENGTH), np.int32)
  liked: dict[str, list[int]] = {user: [] for user in user_number}
  for row in order:
    past = liked[users[row]] if given is None else given[row]
    past = past[-HISTORY_LENGTH:]
    history[row, HISTORY_LENGTH - len(past) :] = past
    liked[users[row]] += exposed[row][response[row] > 0].tolist()

  if "split" in table.columns:
    split = np.array(_column(table, "split", _split))
  else:
    held_out = max(1, round(HELD_OUT * len(users)))
    split = np.full(len(users), "train")
    split[order[-2 * held_out :]] = "val"
    split[order[-held_out:]] = "test"
  columns = {
    "user_id": np.array([user_number[x] for x in users], np.int32),
    "profile": profile,
    "history": history,
    "history_length": (history > 0).sum(1, dtype=np.int32),
    "exposed": exposed,
    "response": response,
    "timestamp": timestamp,
    "split": split,
  }
  return {name: column[order] for name, column in columns.items()}


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


def _matrix(table: Table, name: str, parse, width: int | None = None):
  """Parses lists that are all as long as the first, or `width`; float32."""
  values = _column(table, name, parse)
  expected = len(values[0]) if width is None else width
  for row, value in zip(table.rows, values, strict=True):
    if len(value) != expected:
      raise InputError(
        f"{table.path}: row {row}, column {name}: found {len(value)} entries; "
        f"expected {expected}, as many as in "
        + ("the first row" if width is None else "exposed")
      )
  return np.array(values, np.float32)


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
  except (TypeError, ValueError):
    number = np.nan
  if not np.isfinite(number):
    raise ValueError(f"{_short(cell)}; expected a finite number")
  return number


def _numbers(cell) -> list[float]:
  return [_number(x) for x in _list(cell)]


def _responses(cell) -> list[float]:
  values = _numbers(cell)
  if not set(values) <= {0, 1}:
    raise ValueError(f"{_short(cell)}; expected 0 or 1")
  return values


def _split(cell) -> str:
  if cell not in SPLITS:
    raise ValueError(f"{_short(cell)}; expected {', '.join(SPLITS)}")
  return cell
