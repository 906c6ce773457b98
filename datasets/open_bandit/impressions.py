"""Reads the files of the Open Bandit Dataset; see the builder."""

import pathlib
from typing import NamedTuple

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.logs import tables

LOGGERS = ("random", "bts")
USER = tuple(f"user_feature_{i}" for i in range(4))
ITEM = tuple(f"item_feature_{i}" for i in range(4))
_NEEDED = ("timestamp", "item_id", "position", "click", "propensity_score")


class Impressions(NamedTuple):
  """What one policy showed, R impressions.

  Attributes:
    table: the file, with the columns that `interactions.read` knows.
    item: int [R], 0 to N - 1.
    place: int [R].
    click: float [R], 0 or 1.
    propensity: float [R].
    user: [R], names.
  """

  table: tables.Table
  item: np.ndarray
  place: np.ndarray
  click: np.ndarray
  propensity: np.ndarray
  user: np.ndarray


def read_items(folder: pathlib.Path) -> tables.Table:
  """The items of the campaign, which both loggers' files have in common.

  Raises:
    InputError: a file is missing or damaged, or the loggers' items differ.
  """
  first, second = (
    tables.read_table(x, "item_context", ("item_id", *ITEM))
    for x in _campaign(folder)
  )
  if first.columns["item_id"] != second.columns["item_id"]:
    raise InputError(
      f"{first.path} and {second.path} have other items; expected the same"
    )
  return first


def read_logs(folder: pathlib.Path) -> dict[str, Impressions]:
  """What each of LOGGERS showed.

  Raises:
    InputError: the file, row and column that is no good, or a policy that
      showed one item alone.
  """
  ids = tables.column(read_items(folder), "item_id", tables.id_)
  number = {name: i for i, name in enumerate(ids)}
  logs = {}
  for logger, path in zip(LOGGERS, _campaign(folder), strict=True):
    table = tables.read_table(path, path.name, (*_NEEDED, *USER))

    def item(cell):
      if cell not in number:
        raise ValueError(f"item {cell!r}; expected item_ids of item_context")
      return number[cell]

    logs[logger] = _impressions(table, item)
    tables.check_actions(table.path, logs[logger].item)
  return logs


def _impressions(table: tables.Table, item) -> Impressions:
  parsed = {
    name: np.array(tables.column(table, name, parse))
    for name, parse in (
      ("item_id", item),
      ("position", tables.place),
      ("click", tables.binary),
      ("propensity_score", tables.probability),
    )
  }
  users = list(zip(*(table.columns[x] for x in USER), strict=True))
  names = ["/".join(x) for x in users]
  columns = {
    "user_id": names,
    "item_id": table.columns["item_id"],
    "timestamp": table.columns["timestamp"],
    "response": parsed["click"].tolist(),
    "propensity": parsed["propensity_score"].tolist(),
    "position": parsed["position"].tolist(),
  } | {name: table.columns[name] for name in USER}
  return Impressions(
    table._replace(columns=columns), *parsed.values(), np.array(names)
  )


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
