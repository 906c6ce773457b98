"""Logs of one's own, each a .csv or a .parquet file in `--raw_data_dir`.

There are `interactions` (a row for each item that a user met) or `sessions` (a
row for each slate), and `items`. Columns, those with * may be missing:
  interactions  user_id, item_id, timestamp, response* or rating*, propensity*,
                position*, profile*, split*
  sessions      user_id, profile*, history*, exposed, response*, propensity*,
                position*, timestamp, split*, session_id*, step*, reward*,
                terminated*
  items         item_id, feature*, title*, genres*, added*, tags*, and any
                others: numbers, categories and texts that item vectors are made
                of; categories are tags too, see tags.py

Ids are integers or strings; items are numbered 1..N and users 1..U in the
order of their rows. `feature` and `profile` are lists of as many numbers in
each row, `exposed` is a list of as many different items, `response`,
`propensity` and `position` of as many entries, `history` of items, the newest
last. `session_id` names a session, `step` counts its slates, `terminated` is 1
where the user left after the slate. In a csv file a list is written with ;
between. `timestamp` is a number, such as seconds, or a date. Interactions need
no `items`.

Without `history`, it is what the user responded to positively before. Without
`split` (train, val or test), the last tenth of the slates is the test split and
the tenth before it the validation split. Without `response`, all rows are
positives, and negatives are drawn; see interactions.py. Options of all this are
in `logs.json`; see options.py.
"""

import json
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from hsrl_jax.data import feedback, item_vectors
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets import schema
from hsrl_jax.shipped.datasets.logs import (
  arrow,
  interactions,
  options,
  steps,
  tables,
  tags,
)

_ITEMS = ("item_id", "feature", "title", "genres", "added")
_SESSIONS = (
  *("user_id", "profile", "history", "exposed", "response", "propensity"),
  *("position", "timestamp", "split"),
  *steps.COLUMNS,
)


class Builder(schema.SlateBuilder):
  """Reads the user's files in `--raw_data_dir`."""

  SPLITS_BY = ("time", "user")
  VERSION = tfds.core.Version("1.0.0")
  # As bytes: TFDS keeps other floats in 32 bits, which lose up to a minute.
  TIMESTAMP = tfds.features.Tensor(
    shape=(), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
  )
  EXTRA = {
    "propensity": tfds.features.Tensor(shape=(None,), dtype=np.float32),
    "position": tfds.features.Tensor(shape=(None,), dtype=np.int32),
    "session": tfds.features.Tensor(shape=(None,), dtype=np.int32),
    "step": tfds.features.Tensor(shape=(None,), dtype=np.int32),
    "reward": tfds.features.Tensor(shape=(None,), dtype=np.float32),
    "terminated": tfds.features.Tensor(shape=(None,), dtype=np.float32),
  }
  EXTRA_ITEMS = {
    "attributes": tfds.features.Text(),
    "tags": tfds.features.Text(),
    "added": tfds.features.Tensor(shape=(None,), dtype=np.int64),
    "sampling": tfds.features.Tensor(shape=(None,), dtype=np.float32),
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "interactions or sessions, and items, each .csv or .parquet"
  )

  def read_items(self, folder):
    """Columns of `items`, in the order of the file."""
    chosen = options.read(folder, self.split_by)
    columns, notes = read_items(folder, chosen)
    ids = columns["external_id"]
    log = _interactions(folder, ids, chosen)
    columns["sampling"] = np.zeros((len(ids), 0))
    if log is not None and log.positives_only:
      q = interactions.sampling(log, len(ids), chosen)
      columns["sampling"] = q[1:, None]
    self.info.metadata["notes"] = notes
    return columns

  def read_sessions(self, folder):
    """Columns of `sessions`, by time."""
    chosen = options.read(folder, self.split_by)
    ids = read_items(folder, chosen)[0]["external_id"]
    log = _interactions(folder, ids, chosen)
    if log is None:
      options.check_for_sessions(folder, chosen)
      columns, notes, users = read_sessions(folder, ids, chosen)
      about = feedback.Feedback()
    else:
      cut = interactions.slates(log, len(ids), chosen)
      columns, notes, about = cut.columns, cut.notes, cut.about
      users = log.users
    self.info.metadata["feedback"] = about._asdict()
    self.info.metadata["notes"] = notes
    self.info.metadata["users"] = users
    return columns


def _interactions(
  folder: pathlib.Path, item_ids: list[str], chosen: options.Options
) -> interactions.Log | None:
  """The log of interactions; None where sessions with responses are given."""
  given = [x for x in ("interactions", "sessions") if tables.has(folder, x)]
  if len(given) == 2:
    raise InputError(
      f"{folder} has both interactions and sessions; expected one of them"
    )
  if given == ["interactions"]:
    table = tables.read_table(folder, "interactions", interactions.NEEDED)
  else:
    table = tables.read_table(
      folder, "sessions", ("user_id", "exposed", "timestamp")
    )
    if "response" in table.columns:
      return None
    table = interactions.flat(table)
  return interactions.read(table, item_ids, chosen)


def read_items(
  folder: pathlib.Path, chosen: options.Options
) -> tuple[dict[str, Any], list[str]]:
  """Reads and checks the items; columns of `items` (see schema.py), and notes.

  Raises:
    InputError: the file, row and column that is no good.
  """
  if not tables.has(folder, "items") and tables.has(folder, "interactions"):
    table = tables.read_table(folder, "interactions", interactions.NEEDED)
    ids = list(dict.fromkeys(tables.column(table, "item_id", tables.id_)))
    rows = range(1, len(ids) + 1)
    table = tables.Table(table.path, {"item_id": ids}, rows)
  else:
    table = tables.read_table(folder, "items", ("item_id",))
    ids = tables.column(table, "item_id", tables.id_)
  first: dict[str, int] = {}
  for row, item in zip(table.rows, ids, strict=True):
    if item in first:
      raise InputError(
        f"{table.path}: row {row}, column item_id: {item!r} is in row "
        f"{first[item]} too; expected each item once"
      )
    first[item] = row
  feature, notes = np.zeros((len(ids), 0), np.float32), []
  if "feature" in table.columns:
    feature = tables.matrix(table, "feature", tables.feature)
    feature, notes = item_vectors.tamed(feature, chosen.normalise)
  others = [x for x in table.columns if x not in _ITEMS]
  texts = [tables.texts(table, x, []) for x in others]
  tagged, told = tags.read(table, others)
  columns = {
    "feature": feature,
    "external_id": ids,
    "title": tables.texts(table, "title", ids),
    "genres": tables.texts(table, "genres", [""] * len(ids), "|"),
    "attributes": [
      json.dumps(dict(zip(others, cells, strict=True)), ensure_ascii=False)
      for cells in (zip(*texts, strict=True) if texts else [()] * len(ids))
    ],
    "tags": [json.dumps(x, ensure_ascii=False) for x in tagged],
    "added": tags.added(table),
  }
  return columns, [f"{table.path.name}: {x}" for x in (*notes, *told)]


def read_sessions(
  folder: pathlib.Path, item_ids: list[str], chosen: options.Options
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
  """Reads and checks the slates.

  Args:
    folder: where the file is.
    item_ids: of item 1, 2, ...
    chosen: of which `split_by` counts, where it is `user`.

  Returns:
    Columns of `sessions` (see schema.py) by time, notes, and the name of user
    1, 2, ...

  Raises:
    InputError: the file, row and column that is no good.
  """
  table = tables.read_table(
    folder, "sessions", ("user_id", "exposed", "response", "timestamp")
  )
  number = {item: i for i, item in enumerate(item_ids, 1)}

  def items(cell) -> list[int]:
    ids = [tables.id_(x) for x in tables.list_(cell)]
    unknown = [x for x in ids if x not in number]
    if unknown:
      raise ValueError(f"item {unknown[0]!r}; expected item_ids of the items")
    return [number[x] for x in ids]

  def slate(cell) -> list[int]:
    shown = items(cell)
    if len(set(shown)) < len(shown) or not shown:
      raise ValueError(f"{tables.short(cell)}; expected different items")
    return shown

  users = tables.column(table, "user_id", tables.id_)
  user_number = {user: i for i, user in enumerate(dict.fromkeys(users), 1)}
  exposed = arrow.slates(table.columns, "exposed", item_ids)
  if exposed is None:
    exposed = tables.matrix(table, "exposed", slate, dtype=np.int32)
  width = exposed.shape[1]
  response = tables.matrix(table, "response", tables.responses, width)
  timestamp = np.array(tables.column(table, "timestamp", tables.time))
  empty = np.zeros((len(users), 0), np.float32)
  optional = {"profile": empty, "propensity": empty, "position": empty}
  for name, parse, size, dtype in (
    ("profile", tables.numbers, None, np.float32),
    ("propensity", tables.probabilities, width, np.float32),
    ("position", tables.places, width, np.int32),
  ):
    if name in table.columns:
      optional[name] = tables.matrix(table, name, parse, size, dtype)
  user_id = np.array([user_number[x] for x in users], np.int32)
  optional |= steps.read(table, user_id, timestamp, response)
  if optional["propensity"].size:
    tables.check_actions(table, exposed)
  order = np.argsort(timestamp, kind="stable")
  history = None
  if "history" in table.columns:
    history = arrow.histories(table.columns, "history", item_ids)
    past = [] if history is not None else tables.column(table, "history", items)
  else:
    past = _liked_before(users, exposed, response, order)
  if history is None:
    history = np.array(
      [schema.left_padded(x, schema.HISTORY_LENGTH) for x in past]
    )
  by_user = chosen.split_by == options.BY_USER
  if "split" in table.columns:
    if by_user:
      raise InputError(
        f"{table.path} has a column split, and the split is by user; expected "
        "one of them"
      )
    split = np.array(tables.column(table, "split", tables.split))
  elif by_user:
    split = schema.split_of_user(users)
  else:
    split = interactions.split_by_time(timestamp)
  columns = {
    "user_id": user_id,
    "history": history,
    "exposed": exposed,
    "response": response,
    "timestamp": timestamp,
    "split": split,
    **optional,
  }
  columns = {name: column[order] for name, column in columns.items()}
  return columns, tables.unused(table, _SESSIONS), list(user_number)


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
