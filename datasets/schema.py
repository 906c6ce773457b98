"""The schema that all datasets share: rows of `items` and of `sessions`.

Rows are kept in blocks: an example of TFDS is up to BLOCK rows, and each of its
features has a leading axis for them.

A new dataset is one file, `NAME/NAME_dataset_builder.py`, with a class
`Builder(SlateBuilder)` that says where the rows come from.
"""

import abc
import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from hsrl_jax.data.source import SPLITS

HISTORY_LENGTH = 50  # Items of a history of most datasets.
BLOCK = 4_096  # Rows of an example.
HELD_OUT = 0.1  # Share of what is split in `val`, and again in `test`.

FLOAT32_MAX = float(np.finfo(np.float32).max)  # Of features and profiles.

# Name to a sequence with one entry for each row, or to Histories.
Columns = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Histories:
  """Rows of the last items of lists, of which few are arrays at a time.

  A column that `numpy.asarray` makes left-padded rows of, int32 [R, H].
  """

  items: np.ndarray  # Int32, of all lists, one after another.
  ends: np.ndarray  # int [R], where in them each list ends.
  lengths: np.ndarray  # int [R], how many are its own.

  @classmethod
  def joined(cls, parts: Sequence["Histories"]) -> "Histories":
    """The rows of all parts."""
    sizes = [len(x.items) for x in parts]
    before = np.cumsum(sizes) - sizes
    return cls(
      np.concatenate([x.items for x in parts]),
      np.concatenate([x.ends + y for x, y in zip(parts, before, strict=True)]),
      np.concatenate([x.lengths for x in parts]),
    )

  def __len__(self) -> int:
    return len(self.ends)

  def __getitem__(self, rows) -> "Histories":
    return Histories(self.items, self.ends[rows], self.lengths[rows])

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    rows = np.zeros((len(self), HISTORY_LENGTH), dtype or np.int32)
    most = min(HISTORY_LENGTH, int(self.lengths.max(initial=0)))
    for back in range(1, most + 1):
      there = np.flatnonzero(self.lengths >= back)
      rows[there, -back] = self.items[self.ends[there] - back]
    return rows


class _Info(tfds.core.DatasetInfo):
  def initialize_from_bucket(self) -> None:
    """Does nothing; TFDS would make a folder in /tmp and leave it empty."""


class SlateBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder with two configs, `items` and `sessions`.

  A subclass is called `Builder` and defines `read_items` and
  `read_sessions`; the docstring of its module describes the dataset. A subclass
  with MANUAL_DOWNLOAD_INSTRUCTIONS, the names of its files, reads a folder of
  the user's. All rows of a config are held in memory (of slates that are more
  than it holds, a sample: see logs/sessions.py). What a reader may leave
  in `self.info.metadata`: "notes", lines for people, and "feedback", see
  hsrl_jax/data/feedback.py.

  Attributes:
    TIMESTAMP: dtype or feature of `timestamp`.
    EXTRA: dtypes or features of further columns of `sessions`.
    EXTRA_ITEMS: of further columns of `items`.
    HOMEPAGE: of the source.
    SPLITS_BY: what its splits can be made by; see config.DataConfig.
    split_by: what they are made by; set before the builder reads.
    blocks: folder for slates that are more than memory holds; likewise.
    progress: called with how many tables more will be read, and after each;
      likewise.
    kept: what a reader keeps for the other config; likewise.
  """

  VERSION: ClassVar[tfds.core.Version] = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
  BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
    tfds.core.BuilderConfig(name="sessions", description="Slates."),
    tfds.core.BuilderConfig(name="items", description="Items."),
  ]
  TIMESTAMP: ClassVar[Any] = np.int64
  EXTRA: ClassVar[dict[str, Any]] = {}
  EXTRA_ITEMS: ClassVar[dict[str, Any]] = {}
  HOMEPAGE: ClassVar[str | None] = None
  SPLITS_BY: ClassVar[tuple[str, ...]] = ("time",)

  split_by = "time"
  blocks: pathlib.Path | None = None
  progress = staticmethod(lambda more=0: None)
  kept: dict[str, Any]

  @abc.abstractmethod
  def read_items(self, folder: pathlib.Path | None) -> Columns:
    """Reads the catalogue of N items.

    Args:
      folder: `--raw_data_dir`; None without MANUAL_DOWNLOAD_INSTRUCTIONS.

    Returns:
      `feature` [N, D], and the texts `external_id` (the item's name in the
      source), `title` and `genres` [N]. Row i becomes item i + 1.

    Raises:
      InputError: the source is no good.
    """

  @abc.abstractmethod
  def read_sessions(self, folder: pathlib.Path | None) -> Columns:
    """Reads the slates, R rows, as `read_items` does.

    Returns:
      `user_id` [R], `profile` [R, P], `history` [R, H] (items that the user
      liked before, the newest last, 0 on the left), `exposed` [R, K] (items),
      `response` [R, K] (0 or 1), `timestamp` [R], `split` [R] (one of SPLITS),
      and the columns of EXTRA.

    Raises:
      InputError: the source is no good.
    """

  def _info(self) -> tfds.core.DatasetInfo:
    numbers, ids = list_of(np.float32), list_of(np.int32)
    text = tfds.features.Text()
    if self.builder_config.name == "items":
      features = {
        "item_id": np.int32,
        "feature": numbers,
        "external_id": text,
        "title": text,
        "genres": text,
        **self.EXTRA_ITEMS,
      }
    else:
      features = {
        "user_id": np.int32,
        "profile": numbers,
        "history": ids,
        "exposed": ids,
        "response": numbers,
        "timestamp": self.TIMESTAMP,
        **self.EXTRA,
      }
    return _Info(
      builder=self,
      description=sys.modules[type(self).__module__].__doc__,
      features=tfds.features.FeaturesDict(
        {
          name: _block(feature)
          for name, feature in tfds.features.FeaturesDict(features).items()
        }
      ),
      homepage=self.HOMEPAGE,
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    folder = None
    if self.MANUAL_DOWNLOAD_INSTRUCTIONS is not None:
      folder = pathlib.Path(dl_manager.manual_dir)
    if self.builder_config.name == "items":
      columns = dict(self.read_items(folder))
      columns["item_id"] = np.arange(1, len(columns["feature"]) + 1)
      rows = {"items": range(len(columns["item_id"]))}
    else:
      columns = dict(self.read_sessions(folder))
      split = np.asarray(columns["split"])
      rows = {name: np.flatnonzero(split == name) for name in SPLITS}
    columns = {
      name: columns[name]
      if isinstance(columns[name], Histories)
      else np.asarray(columns[name], feature.np_dtype)
      for name, feature in self.info.features.items()
    }
    return {
      name: self._generate_examples(columns, own) for name, own in rows.items()
    }

  def _generate_examples(self, columns, rows):
    for start in range(0, len(rows), BLOCK):
      own = np.asarray(rows[start : start + BLOCK])
      yield start, {x: np.asarray(column[own]) for x, column in columns.items()}


def split_of_user(user: Sequence[Any]) -> np.ndarray:
  """The split of each user, names [R]: a tenth val, a tenth test.

  It follows from a hash of the user's id (BLAKE2b), so that more users, or
  another order of them, move nobody.
  """
  names = list(dict.fromkeys(user))
  split = {}
  for name in names:
    digest = hashlib.blake2b(str(name).encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    held_out = "test" if share < HELD_OUT else "val"
    split[name] = held_out if share < 2 * HELD_OUT else "train"
  return np.array([split[x] for x in user])


def left_padded(items: Sequence[int], length: int) -> np.ndarray:
  """The last `length` items, with 0 for padding on the left, int32 [length]."""
  items = items[-length:]
  row = np.zeros(length, np.int32)
  row[length - len(items) :] = items
  return row


def list_of(dtype: type) -> tfds.features.Tensor:
  """The feature of lists, all as long as each other."""
  return tfds.features.Tensor(shape=(None,), dtype=dtype)


def _block(feature: tfds.features.FeatureConnector) -> tfds.features.Tensor:
  """The feature of many rows.

  Numbers are kept as bytes, since TFDS keeps others one by one, and floats of
  64 bits in 32. Compressed, since it cannot read back no bytes at all.
  """
  text = isinstance(feature, tfds.features.Text)
  return tfds.features.Tensor(
    shape=(None, *feature.shape),
    dtype=np.object_ if text else feature.np_dtype,
    encoding="none" if text else "zlib",
  )
