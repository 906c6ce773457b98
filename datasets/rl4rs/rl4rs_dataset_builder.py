"""RL4RS as slates of nine, out of the official files.

`--raw_data_dir` holds `item_info.csv` (separated by spaces) and one or more
`rl4rs_b_*.csv` (separated by `@`, nine columns). Of an item there is the
published vector of 40 numbers; price, location and special_item are in its
title and genres.

A row that cannot be used is left out and listed in `malformed.csv` beside the
sessions, with its line in the file (the header is line 1) and why.

The logs know sessions but no users, so `user_id` numbers the sessions. The
slates of a session are told apart by their sequence_id; what was clicked in
earlier ones extends the published history, which may be empty. Splits run by
the time at which a session began; a file `rl4rs_b_test.csv` is the test split.

A profile has 10 hashes of categories and 32 quantities. Of each hash its 8
most frequent values in the train split are one-hot, the others all zero; the
quantities, which have long tails, are sign(x) log(1 + |x|), centred and scaled
on that split.
"""

import csv
import functools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hsrl_jax.data import prepare
from hsrl_jax.errors import InputError, reading
from hsrl_jax.shipped.datasets import schema

SLATE_SIZE = 9
ITEM_WIDTH = 40
CATEGORIES, QUANTITIES = 10, 32
FREQUENT = 8  # values of a category that have a column
ITEM_FILE, TEST_FILE = "item_info.csv", "rl4rs_b_test.csv"
ITEM_COLUMNS = "item_id item_vec price location special_item"
COLUMNS = (
  "timestamp@session_id@sequence_id@exposed_items@user_feedback@"
  "user_seqfeature@user_protrait@item_feature@behavior_policy_id"
)


class Builder(schema.SlateBuilder):
  """Reads the official files in `--raw_data_dir`."""

  HOMEPAGE = "https://github.com/fuxiAIlab/RL4RS"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "item_info.csv and rl4rs_b_*.csv of RL4RS (github.com/fuxiAIlab/RL4RS)"
  )
  EXTRA = dict.fromkeys(
    ("session_id", "sequence_id", "behavior_policy_id"), np.int64
  )

  def read_items(self, folder):
    """Columns of `items`, by the published id."""
    items = read_items(folder / ITEM_FILE)
    return {
      "feature": [vector for vector, *_ in items.values()],
      "external_id": [str(item) for item in items],
      "title": [
        f"item {item}, price {price:g}"
        for item, (_, (price,), _, _) in items.items()
      ],
      "genres": [
        f"location {location}" + f"|special {special}" * bool(special)
        for _, _, location, special in items.values()
      ],
    }

  def read_sessions(self, folder):
    """Columns of `sessions`; lists rows that are left out beside the data."""
    item_ids = list(read_items(folder / ITEM_FILE))
    rows, malformed = read_logs(folder, set(item_ids))
    if malformed:
      path = pathlib.Path(self.data_dir) / prepare.MALFORMED
      with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "row", "why"), *malformed])
    return make_sessions(rows, item_ids)


class Row(NamedTuple):
  """A row of the logs, with item ids as published."""

  file: str  # Name of the file.
  timestamp: int  # S.
  session_id: int  # Distinct within a file.
  sequence_id: int  # Position of the slate in the session.
  exposed: tuple[int, ...]  # 9 items.
  response: tuple[int, ...]  # 9 of 0 or 1.
  history: tuple[int, ...]  # Items clicked before the session, newest last.
  portrait: tuple[float, ...]  # 42 numbers.
  behavior_policy_id: int  # Of the policy that chose the slate.


def read_items(path: pathlib.Path) -> dict[int, tuple]:
  """Id to vector, price (each a tuple), location and special_item; sorted.

  Raises:
    InputError: it is missing or empty, or the row that is no good.
  """
  items = {}
  for number, line in _lines(path, ITEM_COLUMNS):
    try:
      cells = _cells(line, " ", ITEM_COLUMNS)
      item = _integer("item_id", cells[0])
      about = (
        _numbers("item_vec", cells[1], ITEM_WIDTH),
        _numbers("price", cells[2], 1),
        _integer("location", cells[3]),
        _integer("special_item", cells[4]),
      )
      if item < 1 or item in items:
        raise ValueError(f"item_id is {item}; expected 1.., each once")
    except ValueError as error:
      raise InputError(f"{path}: row {number}: {error}") from error
    items[item] = about
  return dict(sorted(items.items()))


def read_logs(
  folder: pathlib.Path, known: set[int]
) -> tuple[list[Row], list[tuple[str, int, str]]]:
  """Reads all rl4rs_b_*.csv; `known` are the ids of the items.

  Returns:
    The rows, and (file, line, why) of those that were left out.

  Raises:
    InputError: there is no such file, or one has no usable row.
  """
  paths = sorted(folder.glob("rl4rs_b_*.csv"))
  if not paths or {x.name for x in paths} == {TEST_FILE}:
    raise InputError(
      f"{folder} has no logs to learn from; expected rl4rs_b_train.csv of RL4RS"
    )
  rows, malformed = [], []
  for path in paths:
    before, seen = len(malformed), {}
    for number, line in _lines(path, COLUMNS):
      try:
        row = parse(line, path.name, known)
        key = row.session_id, row.sequence_id
        if key in seen:
          raise ValueError(
            f"session_id {key[0]} and sequence_id {key[1]} are those of row "
            f"{seen[key]}; expected each slate once"
          )
        seen[key] = number
        rows.append(row)
      except ValueError as error:
        malformed.append((path.name, number, str(error)))
    if not seen:
      _, number, why = malformed[before]
      raise InputError(
        f"{path}: all {len(malformed) - before} rows are malformed, the first "
        f"is row {number}: {why}"
      )
  return rows, malformed


def parse(line: str, file: str, known: set[int]) -> Row:
  """Reads a row of the logs.

  Raises:
    ValueError: the column, what it has and what was expected.
  """
  cells = _cells(line, "@", COLUMNS)
  exposed = _items("exposed_items", cells[3], known)
  if len(exposed) != SLATE_SIZE or len(set(exposed)) != SLATE_SIZE:
    raise ValueError(
      f"exposed_items is {cells[3]!r}; expected {SLATE_SIZE} different items"
    )
  response = cells[4].split(",")
  if len(response) != SLATE_SIZE or not set(response) <= {"0", "1"}:
    raise ValueError(
      f"user_feedback is {cells[4]!r}; expected {SLATE_SIZE} times 0 or 1"
    )
  past = _items("user_seqfeature", cells[5], known | {0})  # 0 is padding.
  vectors = cells[7].split(";")
  if len(vectors) != SLATE_SIZE:
    raise ValueError(
      f"item_feature has {len(vectors)} vectors; expected {SLATE_SIZE}"
    )
  for vector in vectors:
    _numbers("item_feature", vector, ITEM_WIDTH)
  portrait = _numbers("user_protrait", cells[6], CATEGORIES + QUANTITIES)
  return Row(
    file,
    _integer("timestamp", cells[0]),
    _integer("session_id", cells[1]),
    _integer("sequence_id", cells[2]),
    exposed,
    tuple(map(int, response)),
    tuple(x for x in past if x),
    portrait,
    _integer("behavior_policy_id", cells[8]),
  )


def _lines(path: pathlib.Path, header: str) -> Iterator[tuple[int, str]]:
  """Yields (line number, line) after the header, but no blank lines."""
  empty = True
  with (
    reading(path, "a file of RL4RS"),
    path.open(encoding="utf-8", errors="replace") as file,
  ):
    first = file.readline().rstrip("\n")
    if first != header:
      raise InputError(
        f"{path}: row 1 is {first[:60]!r}; expected the header {header!r}"
      )
    for number, line in enumerate(file, 2):
      if line.strip():
        empty = False
        yield number, line.rstrip("\n")
  if empty:
    raise InputError(f"{path} has a header alone; expected rows below it")


def _cells(line: str, separator: str, header: str) -> list[str]:
  cells = line.split(separator)
  if len(cells) != len(header.split(separator)):
    raise ValueError(
      f"{len(cells)} columns with {separator!r} between; expected "
      f"{len(header.split(separator))}"
    )
  return cells


def _integer(column: str, cell: str) -> int:
  try:
    return int(np.int64(int(cell)))
  except (ValueError, OverflowError):
    raise ValueError(
      f"{column} is {cell[:40]!r}; expected an integer of 64 bits"
    ) from None


def _items(column: str, cell: str, known: set[int]) -> tuple[int, ...]:
  items = tuple(_integer(column, x) for x in cell.split(","))
  if not known.issuperset(items):
    unknown = next(x for x in items if x not in known)
    raise ValueError(
      f"{column} has item {unknown}; expected the items of {ITEM_FILE}"
    )
  return items


@functools.lru_cache(2**16)  # The same few vectors come again and again.
def _numbers(column: str, cell: str, count: int) -> tuple[float, ...]:
  try:
    numbers = tuple(map(float, cell.split(",")))
  except ValueError as error:
    raise ValueError(f"{column}: {error}; expected numbers") from None
  finite = all(abs(x) <= schema.FLOAT32_MAX for x in numbers)
  if len(numbers) != count or not finite:
    raise ValueError(
      f"{column} has {len(numbers)} numbers"
      f"{'' if finite else ', some not finite in float32'}; "
      f"expected {count} finite ones"
    )
  return numbers


def make_sessions(
  rows: list[Row], item_ids: list[int]
) -> dict[str, np.ndarray]:
  """Columns of all slates, sessions by time, and the `split` of each.

  Of `item_ids`, as published, the first is item 1.

  Raises:
    InputError: too few sessions for the splits.
  """
  began: dict[tuple[str, int], int] = {}
  for row in rows:
    key = row.file, row.session_id
    began[key] = min(began.get(key, row.timestamp), row.timestamp)
  sessions = sorted(began, key=lambda key: (began[key], key))
  split = split_of_session(sessions)
  number = {key: i for i, key in enumerate(sessions, 1)}
  rows = sorted(
    rows, key=lambda x: (number[x.file, x.session_id], x.sequence_id)
  )
  keys = [(x.file, x.session_id) for x in rows]
  index = {item: i for i, item in enumerate(item_ids, 1)}
  histories = []
  clicks: dict[tuple[str, int], list[int]] = {}
  for key, row in zip(keys, rows, strict=True):
    clicked = clicks.setdefault(key, [])  # In earlier slates of the session.
    past = [index[x] for x in (*row.history, *clicked)]
    histories.append(schema.left_padded(past, schema.HISTORY_LENGTH))
    clicked += [x for x, y in zip(row.exposed, row.response, strict=True) if y]
  columns = map(list, zip(*rows, strict=True))
  column = dict(zip(Row._fields, columns, strict=True))
  row_split = np.array([split[key] for key in keys])
  return {
    "split": row_split,
    "user_id": np.array([number[key] for key in keys]),
    "profile": profiles(np.array(column["portrait"]), row_split == "train"),
    "history": np.array(histories),
    "exposed": np.array([[index[i] for i in x] for x in column["exposed"]]),
    "response": np.array(column["response"]),
    "timestamp": np.array(column["timestamp"]),
  } | {name: np.array(column[name]) for name in Builder.EXTRA}


def split_of_session(sessions: list[tuple[str, int]]) -> dict:
  """(file, session_id) to its split, for sessions in the order of time.

  Raises:
    InputError: too few sessions for the splits.
  """
  rest = [key for key in sessions if key[0] != TEST_FILE]
  given = len(rest) < len(sessions)
  held_out = max(1, round(schema.HELD_OUT * len(rest)))
  parts = 2 if given else 3
  if len(rest) < parts:
    raise InputError(
      f"the logs have {len(rest)} sessions to split; expected at least {parts}"
    )
  val = rest if given else rest[:-held_out]
  return (
    dict.fromkeys(sessions, "test")
    | dict.fromkeys(val, "val")
    | dict.fromkeys(val[:-held_out], "train")
  )


def profiles(portrait: np.ndarray, train: np.ndarray) -> np.ndarray:
  """Profiles of portraits [R, 42], float32 [R, 112]; see the module's text.

  Values and scales are those of the rows that are `train`, bool [R].
  """
  blocks = []
  for column in portrait[:, :CATEGORIES].T:
    values, counts = np.unique(column[train], return_counts=True)
    frequent = np.full(FREQUENT, np.nan)  # Equals nothing.
    top = values[np.argsort(-counts, kind="stable")][:FREQUENT]
    frequent[: len(top)] = top
    blocks.append(column[:, None] == frequent)
  quantity = portrait[:, CATEGORIES:]
  quantity = np.sign(quantity) * np.log1p(np.abs(quantity))
  scale = quantity[train].std(0)
  quantity -= quantity[train].mean(0)
  blocks.append(quantity / np.where(scale > 0, scale, 1))
  return np.concatenate(blocks, 1).astype(np.float32)
