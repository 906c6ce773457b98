"""Reads a prepared dataset: items and the sessions of each split, checked."""

import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from hsrl_jax.data import feedback as feedback_lib
from hsrl_jax.data import manifest
from hsrl_jax.errors import InputError
from hsrl_jax.types import Sessions

SPLITS = ("train", "val", "test")
ITEM_VECTORS = "item_vectors.npy"  # float32 [N + 1, D]; see item_vectors.py.
# Columns that say where in a session a slate was, with one entry or none.
STEP_COLUMNS = ("session", "step", "reward", "terminated")
_ROWS = 2**18  # Read at once.
_KEPT_AS = {
  "user_id": np.int32,
  "profile": np.float32,
  "history": np.int32,
  "exposed": np.int32,
  "response": np.float32,
  "timestamp": np.float64,
}


class Items(NamedTuple):
  """The catalogue; row 0 of each list and array is padding, item i is row i."""

  features: np.ndarray  # float32 [N + 1, D].
  # [N + 1] names in the source, such as a MovieLens movieId.
  external_ids: list[str]
  titles: list[str]  # [N + 1] for people.
  genres: list[str]  # [N + 1] for people.
  # [N + 1] JSON objects, column to text, of what else a user's items have; None
  # where there is nothing else.
  attributes: list[str] | None = None
  # [N + 1] lists of names beside the genres; None: there are none.
  tags: list[list[str]] | None = None
  # int64 [N + 1], when an item was added, such as seconds since 1970; None
  # where that is not known.
  added: np.ndarray | None = None
  # float32 [N + 1], the distribution of drawn negatives (see feedback.py); None
  # where none was drawn.
  sampling: np.ndarray | None = None
  # What the responses to the items are, and which were drawn.
  feedback: feedback_lib.Feedback = feedback_lib.Feedback()

  @property
  def ids(self) -> list[str]:
    """[N + 1] ids in the source, or the items' numbers where it has none."""
    return [str(x or i) for i, x in enumerate(self.external_ids)]


class Dataset(NamedTuple):
  """A prepared dataset."""

  items: Items  # The catalogue.
  splits: dict[str, Sessions]  # Sessions by split, with the keys of SPLITS.

  def seen(self, split: str) -> np.ndarray:
    """Items that users saw, int [S, K]; 0 for negatives, which were drawn."""
    logs = self.splits[split]
    if self.items.feedback.negatives is None:
      return logs.exposed
    return np.where(logs.response > 0, logs.exposed, 0)


def load(data_dir: pathlib.Path) -> Dataset:
  """Loads and checks the dataset that `prepare` wrote below `data_dir`.

  Features are those of `item_vectors.npy` where there is such a file.

  Raises:
    InputError: it is missing, empty, truncated or malformed.
  """
  manifest.verify(pathlib.Path(data_dir))
  items = read_items(data_dir)
  count = len(items.titles) - 1
  splits = {x: read_split(data_dir, x, count) for x in SPLITS}
  vectors = pathlib.Path(data_dir) / ITEM_VECTORS
  if vectors.exists():
    items = items._replace(features=np.load(vectors))
  ids = np.arange(1, len(items.features))
  check_items(ids, items.features[1:], data_dir)
  return Dataset(items, splits)


def user_names(data_dir: pathlib.Path) -> list[str] | None:
  """Names in the source of user 1, 2, ...; None where a number is the name."""
  for path in pathlib.Path(data_dir).glob("*/sessions/*/metadata.json"):
    return json.loads(path.read_text()).get("users")
  return None


def read_items(data_dir: pathlib.Path) -> Items:
  """Reads the items that a builder wrote; they may have no features.

  Raises:
    InputError: they are not numbered in order.
  """
  items = _read(data_dir, "items", "items")
  check_ids(items["item_id"], data_dir)
  catalogue = Items(
    features=_padded(items["feature"]).astype(np.float32),
    external_ids=_text(items["external_id"]),
    titles=_text(items["title"]),
    genres=_text(items["genres"]),
    attributes=_text(items["attributes"]) if "attributes" in items else None,
    tags=[[], *map(json.loads, items["tags"])] if "tags" in items else None,
    feedback=feedback_lib.read(data_dir),
  )
  for name in ("sampling", "added"):
    if name in items and items[name].shape[1]:
      catalogue = catalogue._replace(**{name: _padded(items[name])[:, 0]})
  return catalogue


def read_split(data_dir: pathlib.Path, split: str, num_items: int) -> Sessions:
  """Reads the sessions of a split that a builder wrote.

  Raises:
    InputError: there are none, or a row is malformed.
  """
  rows = _read(data_dir, "sessions", split)
  check_sessions(rows, num_items, f"{data_dir} ({split})")
  return sessions_of(rows)


def sessions_of(columns: Mapping[str, np.ndarray]) -> Sessions:
  """Rows of `sessions`, a column of which has no entries where it is missing.

  Args:
    columns: [S, ...] by name, others than those of Sessions among them.
  """
  known = {}
  for name in Sessions._fields:
    column = columns.get(name)
    if name in _KEPT_AS and column is not None:
      known[name] = np.asarray(column, _KEPT_AS[name])
    elif column is not None and column.shape[1]:
      known[name] = column[:, 0] if name in STEP_COLUMNS else column
  return Sessions(**known)


def _padded(rows: np.ndarray) -> np.ndarray:
  """Rows [N, D] with one of zeros before them."""
  return np.concatenate([np.zeros_like(rows[:1]), rows])


def check_ids(item_id: np.ndarray, where) -> None:
  """Checks that `item_id` [N] are 1..N in order.

  Raises:
    InputError: they are not.
  """
  wrong = np.flatnonzero(item_id != np.arange(1, len(item_id) + 1))
  if len(wrong):
    row = int(wrong[0])
    raise InputError(
      f"{where}: item row {row} has item_id {item_id[row]}; expected "
      f"{row + 1}: number the items 1..N in order and prepare them again"
    )


def check_items(item_id: np.ndarray, feature: np.ndarray, where) -> None:
  """Checks the item table, `item_id` [N] and `feature` [N, D].

  Raises:
    InputError: ids other than 1..N in order, items without features, or a
      feature that is not finite.
  """
  check_ids(item_id, where)
  if not feature.shape[1]:
    raise InputError(
      f"{where}: items have no features; expected at least one number for each "
      "item: add some and prepare them again"
    )
  bad = np.flatnonzero(~np.isfinite(feature).all(1))
  if len(bad):
    row = int(bad[0])
    column = int(np.flatnonzero(~np.isfinite(feature[row]))[0])
    raise InputError(
      f"{where}: feature {column} of item {item_id[row]} is "
      f"{feature[row, column]} ({len(bad)} such items); expected finite "
      "numbers: mend the features and prepare them again"
    )


def check_sessions(
  rows: Mapping[str, np.ndarray], num_items: int, where
) -> None:
  """Checks the session table.

  Args:
    rows: `user_id` [R], `profile` [R, P], `history` [R, H], `exposed` and
      `response` [R, K].
    num_items: N.
    where: names the source in errors.

  Raises:
    InputError: an id outside 1..N, a slate that shows an item twice, a response
      other than 0 or 1, a profile that is not finite, or a history that is not
      left-padded. A history may be empty.
  """

  def refuse(bad: np.ndarray, what: str, expected: str) -> None:
    if bad.any():
      row = int(bad.argmax())
      raise InputError(
        f"{where}: session row {row} (user {rows['user_id'][row]}) has "
        f"{what} ({int(bad.sum())} such rows); expected {expected}"
      )

  history, exposed = rows["history"], rows["exposed"]
  refuse(
    ((history < 0) | (history > num_items)).any(1),
    "a history with an unknown item",
    f"ids 1..{num_items}, and 0 for padding",
  )
  refuse(
    ((history[:, :-1] > 0) & (history[:, 1:] <= 0)).any(1),
    "a history with a gap",
    "zeros on the left only",
  )
  refuse(
    ((exposed < 1) | (exposed > num_items)).any(1),
    "a slate with an unknown item",
    f"ids 1..{num_items}",
  )
  ordered = np.sort(exposed, axis=1)
  refuse(
    (ordered[:, 1:] == ordered[:, :-1]).any(1),
    "a slate that shows an item twice",
    "distinct items",
  )
  refuse(~np.isin(rows["response"], (0, 1)).all(1), "an odd response", "0 or 1")
  refuse(
    ~np.isfinite(rows["profile"]).all(1),
    "a profile that is not finite",
    "finite numbers",
  )


def _read(
  data_dir: pathlib.Path, config: str, split: str
) -> dict[str, np.ndarray]:
  (info,) = pathlib.Path(data_dir).glob(f"*/{config}/*/dataset_info.json")
  source = tfds.builder_from_directory(info.parent).as_data_source(split=split)
  if not len(source):
    raise InputError(
      f"{info.parent}: split {split} is empty; expected at least one row: "
      "prepare data that has some"
    )
  # Blocks of rows, or single ones of a builder that is no SlateBuilder.
  shapes = {name: np.shape(x) for name, x in source[0].items()}
  block = shapes["item_id" if config == "items" else "user_id"]
  size = block[0] if block else 1  # No block has more rows than the first one.
  step = max(1, _ROWS // size)
  columns: dict[str, np.ndarray] = {}
  end = 0
  for start in range(0, len(source), step):
    stop = min(start + step, len(source))
    examples = source.__getitems__(range(start, stop))
    for name in shapes:
      parts = [x[name] for x in examples]
      rows = (np.concatenate if block else np.stack)(parts)
      if name not in columns:
        columns[name] = np.empty(
          (len(source) * size, *rows.shape[1:]),
          object if rows.dtype.kind == "S" else rows.dtype,
        )
      columns[name][end : end + len(rows)] = rows
    end += len(rows)
  return {name: column[:end] for name, column in columns.items()}


def _text(column: np.ndarray) -> list[str]:
  return [""] + [value.decode() for value in column]
