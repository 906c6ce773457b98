"""Reads the files of the Open Bandit Dataset; see the builder."""

import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.logs import tables

LOGGERS = ("random", "bts")
USER = tuple(f"user_feature_{i}" for i in range(4))
ITEM = tuple(f"item_feature_{i}" for i in range(4))
# Columns of the files, and as logs of one's own have them.
_COLUMNS = {
  "timestamp": "timestamp",
  "item_id": "item_id",
  "position": "position",
  "click": "response",
  "propensity_score": "propensity",
}


class Impressions(NamedTuple):
  """R impressions of one policy."""

  # As `interactions.read` knows it, with the columns of USER.
  table: tables.Table
  item: np.ndarray  # int [R], 0 to N - 1.
  place: np.ndarray  # int [R].
  click: np.ndarray  # float [R], 0 or 1.
  propensity: np.ndarray  # float [R].
  user: np.ndarray  # [R], names.


def read_items(folder: pathlib.Path) -> tables.Table:
  """The items of the campaign, which both loggers' files have in common.

  Raises:
    InputError: a file is missing or damaged, or the loggers' items differ.
  """
  first, second = (
    tables.read_table(x, "item_context", ("item_id", *ITEM))
    for x in _campaign(folder)
  )
  if first.cells("item_id") != second.cells("item_id"):
    raise InputError(
      f"{first.path} and {second.path} have other items; expected the same"
    )
  return first


def read_logs(folder: pathlib.Path) -> dict[str, Impressions]:
  """Reads the impressions of each of LOGGERS.

  Raises:
    InputError: the file, row and column that is no good, or a policy that
      showed one item alone.
  """
  items = tables.Items(tables.column(read_items(folder), "item_id", tables.id_))
  logs = {}
  for logger, path in zip(LOGGERS, _campaign(folder), strict=True):
    table = tables.read_table(path, path.name, (*_COLUMNS, *USER))
    item, place, click, propensity = (
      np.asarray(tables.column(table, name, parse))
      for name, parse in (
        ("item_id", items),
        ("position", tables.place),
        ("click", tables.binary),
        ("propensity_score", tables.probability),
      )
    )
    tables.check_actions(table.path, item)
    features = [table.data[x] for x in USER]
    user = pc.binary_join_element_wise(*features, "/")
    data = pa.table(
      [table.data[x] for x in _COLUMNS] + features, [*_COLUMNS.values(), *USER]
    ).append_column("user_id", user)
    logs[logger] = Impressions(
      table._replace(data=data),
      *(item - 1, place, click, propensity, user.to_numpy()),
    )
  return logs


def campaign(folder: pathlib.Path) -> str:
  """The name of the campaign in a folder; see the builder."""
  return _campaign(folder)[0].name


def _campaign(folder: pathlib.Path) -> list[pathlib.Path]:
  """The campaign's folder of each of LOGGERS."""
  folder = folder.resolve()
  root, name = folder.parents[1], folder.name
  if folder.parent.name not in LOGGERS or not (folder / f"{name}.csv").exists():
    root = folder
    found = [
      {x.parent.name for x in folder.glob(f"{logger}/*/*.csv")}
      for logger in LOGGERS
    ]
    names = sorted(set.intersection(*found))
    if len(names) != 1:
      have = f"the campaigns {', '.join(names)}" if names else "no campaign"
      raise InputError(
        f"{folder} has {have}; expected one, random/CAMPAIGN/CAMPAIGN.csv and "
        "bts/CAMPAIGN/CAMPAIGN.csv, or the folder random/CAMPAIGN itself"
      )
    (name,) = names
  return [root / logger / name for logger in LOGGERS]
