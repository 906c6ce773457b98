"""Logs of one's own, each a .csv or a .parquet file in `--raw_data_dir`.

There are `interactions` (a row for each item that a user met) or `sessions` (a
row for each slate, also a folder of .parquet files, see sessions.py), maybe
`items`, which only that folder needs, and maybe `users`. Columns, and options
in `logs.json`, are in docs/bring_your_own.md and docs/logs.md.

Ids are integers or strings; items are numbered 1..N and users 1..U in the
order of their rows. Without `history`, it is what the user responded to
positively before. Without `split`, the last tenth of the slates is the test
split and the tenth before it the validation split. Without `response`, all rows
are positives, and negatives are drawn; see interactions.py.
"""

import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds

from hsrl_jax.data import item_vectors
from hsrl_jax.data.source import SPLITS
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets import schema
from hsrl_jax.shipped.datasets.logs import (
  interactions,
  options,
  sessions,
  slates,
  tables,
  tags,
  users,
)

_ITEMS = ("item_id", "feature", "title", "genres", "added")
_FOLDER = "a folder sessions"
_OF_SLATES = ("user_id", "exposed", "timestamp")


class Builder(schema.SlateBuilder):
  """Reads the user's files in `--raw_data_dir`."""

  SPLITS_BY = ("time", "user")
  TIMESTAMP = np.float64
  EXTRA = {
    name: schema.list_of(dtype)
    for name, dtype in (
      ("propensity", np.float32),
      ("position", np.int32),
      ("session", np.int32),
      ("step", np.int32),
      ("reward", np.float32),
      ("terminated", np.float32),
    )
  }
  EXTRA_ITEMS = {
    "attributes": tfds.features.Text(),
    "tags": tfds.features.Text(),
    "added": schema.list_of(np.int64),
    "sampling": schema.list_of(np.float32),
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "interactions or sessions, and items, each .csv or .parquet"
  )

  def read_items(self, folder):
    """Columns of `items`, in the order of the file."""
    columns, notes, log, chosen = self._read(folder)
    ids = columns["external_id"]
    columns["sampling"] = np.zeros((len(ids), 0))
    if log is not None and log.positives_only:
      q = interactions.sampling(log, len(ids), chosen)
      columns["sampling"] = q[1:, None]
    self.info.metadata["notes"] = notes
    self.kept["read"] = columns, notes, log, chosen
    return columns

  def read_sessions(self, folder):
    """Columns of `sessions`, by time."""
    # What was read for the items.
    columns, _, log, chosen = self.kept.pop("read", None) or self._read(folder)
    ids = columns["external_id"]
    if log is not None:
      made = interactions.slates(log, len(ids), chosen)
    else:
      options.check_for_sessions(folder, chosen)
      by_user = chosen.split_by == options.BY_USER
      made = sessions.read_all(folder, ids, by_user, self.blocks, self.progress)
    return self.told(made, folder, chosen)

  def _read(self, folder):
    """The items, notes on them, the log of interactions, and options."""
    chosen = options.read(folder, self.split_by)
    columns, notes = read_items(folder, chosen)
    log = _interactions(folder, columns["external_id"], chosen)
    pa.default_memory_pool().release_unused()  # What the file took.
    return columns, notes, log, chosen

  def told(self, made, folder, chosen):
    """The columns of slates, by time; what else is known goes to the metadata.

    Raises:
      InputError: the option `newest`, or a file of users, where not all slates
        are in memory; users who have profiles in the logs too.
    """
    columns, notes = made.columns, made.notes
    on_disk = self.blocks is not None and self.blocks.exists()
    if tables.has(folder, users.NAME):
      if on_disk or columns["profile"].shape[1]:
        raise InputError(
          f"{folder} has a file users, and its logs "
          + ("more slates than memory holds" if on_disk else "a column profile")
          + "; expected one of them"
        )
      found, more = users.profiles(folder, made.users)
      columns = columns | {"profile": found[columns["user_id"] - 1]}
      notes = [*notes, *more]
    if chosen.newest is not None:
      if on_disk:
        raise InputError(
          f"{folder / options.NAME}: newest is given, and there are more than "
          f"{sessions.IN_MEMORY:,} slates, all of which are for learning; "
          "expected fewer slates, or no such option"
        )
      rows = len(columns["user_id"])
      columns = slates.newest(columns, chosen.newest)
      left = len(columns["user_id"])
      notes = [*notes, f"newest: {left:,} of {rows:,} slates are read"]
    self.info.metadata.update(
      feedback=made.about._asdict(), notes=notes, users=made.users
    )
    return columns | {"split": np.array(SPLITS)[columns["split"]]}


def _kind(folder: pathlib.Path) -> str:
  """Which logs a folder has; InputError unless it is one kind of them."""
  given = [x for x in ("interactions", "sessions") if tables.has(folder, x)]
  if sessions.is_folder(folder):
    given.append(_FOLDER)
  if len(given) != 1:
    found = " and ".join(given) or "no logs"
    raise InputError(
      f"{folder} has {found}; expected interactions.csv, a response a row, or "
      f"sessions.csv, a slate a row (or .parquet), or {_FOLDER}"
    )
  return given[0]


def _interactions(
  folder: pathlib.Path, item_ids: list[str], chosen: options.Options
) -> interactions.Log | None:
  """The log of interactions; None where sessions with responses are given."""
  kind = _kind(folder)
  if kind == _FOLDER:
    return None
  if kind == "interactions":
    table = tables.read_table(folder, "interactions", interactions.NEEDED)
  else:
    if "response" in tables.names(tables.find(folder, "sessions")):
      return None
    table = tables.read_table(folder, "sessions", _OF_SLATES)
    table = tables.exploded(table, "exposed", "item_id")  # All of it is liked.
  return interactions.read(table, item_ids, chosen)


def _met(folder: pathlib.Path, kind: str) -> tables.Table:
  """The column item_id of the logs, a row for each time an item was met."""
  path = tables.find(folder, kind)
  needed = interactions.NEEDED if kind == "interactions" else _OF_SLATES
  tables.check_columns(path, tables.names(path), needed)
  if kind == "interactions":
    return tables.read_file(path, ("item_id",), only=True)
  # `exploded` repeats the other columns, of which there must be one.
  table = tables.read_file(path, ("user_id", "exposed"), only=True)
  return tables.exploded(table, "exposed", "item_id")


def read_items(
  folder: pathlib.Path, chosen: options.Options
) -> tuple[dict[str, Any], list[str]]:
  """Reads and checks the items; columns of `items` (see schema.py), and notes.

  Raises:
    InputError: the file, row and column that is no good.
  """
  kind = None if tables.has(folder, "items") else _kind(folder)
  if kind in ("interactions", "sessions"):
    table = _met(folder, kind)
    ids = tables.codes(table, "item_id")[1]
    rows = range(1, len(ids) + 1)
    table = tables.Table(table.path, pa.table({"item_id": ids}), rows)
  else:
    table = tables.read_table(folder, "items", ("item_id",))
    codes, ids = tables.codes(table, "item_id")
    for row in np.flatnonzero(codes != np.arange(len(codes)))[:1]:
      raise InputError(
        f"{table.path}: row {table.rows[row]}, column item_id: "
        f"{ids[codes[row]]!r} is in row {table.rows[codes[row]]} too; expected "
        "each item once"
      )
  feature, notes = np.zeros((len(ids), 0), np.float32), []
  if "feature" in table.names:
    feature = tables.matrix(
      table, "feature", tables.held, filled="at least one number"
    )
    feature, notes = item_vectors.tamed(feature, chosen.normalise)
  others = [x for x in table.names if x not in _ITEMS]
  texts = [tables.texts(table, x, []) for x in others]
  tagged, told = tags.read(table, others)
  genres = tables.texts(table, "genres", [""] * len(ids), "|")
  joined = sum(";" in x for x in genres)
  if joined and not any("|" in x for x in genres):
    told = [*told, f"genres: {joined:,} have ';' in a name; expected | between"]
  columns = {
    "feature": feature,
    "external_id": ids,
    "title": tables.texts(table, "title", ids),
    "genres": genres,
    "attributes": [
      json.dumps(dict(zip(others, cells, strict=True)), ensure_ascii=False)
      for cells in (zip(*texts, strict=True) if texts else [()] * len(ids))
    ],
    "tags": [json.dumps(x, ensure_ascii=False) for x in tagged],
    "added": tags.added(table),
  }
  return columns, [f"{table.path.name}: {x}" for x in (*notes, *told)]
