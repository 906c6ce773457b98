"""The catalogue that is served: SIDs, features and names, one file for all.

It is an input of the exported function, so that it may change without a new
export as long as its sizes stay. Changes are made on the host and give a new
catalogue; the old one stays as it is.
"""

import hashlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from hsrl_jax import sid
from hsrl_jax.errors import InputError
from hsrl_jax.types import Array

_FORMAT = 1


class Texts(NamedTuple):
  """A text for each of many rows, without an object for each.

  Attributes:
    utf8: uint8 [bytes], the texts one after another.
    ends: int64 [R], where each ends.
  """

  utf8: np.ndarray
  ends: np.ndarray

  def of(self, row: int) -> str:
    """The text of a row."""
    start = self.ends[row - 1] if row else 0
    return self.utf8[start : self.ends[row]].tobytes().decode()

  def put(self, rows: np.ndarray, new: Sequence[str]) -> "Texts":
    """With the texts `new` in rows that have none; int [M], distinct."""
    order = np.argsort(rows)
    rows, added = rows[order], texts([new[i] for i in order])
    lengths = np.diff(added.ends, prepend=0)
    utf8 = np.insert(self.utf8, np.repeat(self.ends[rows], lengths), added.utf8)
    longer = np.zeros_like(self.ends)
    longer[rows] = lengths
    return Texts(utf8, self.ends + np.cumsum(longer))


def texts(rows: Sequence[str]) -> Texts:
  """The texts of `rows`."""
  encoded = [row.encode() for row in rows]
  ends = np.cumsum([len(x) for x in encoded], dtype=np.int64)
  return Texts(np.frombuffer(b"".join(encoded), np.uint8), ends)


class Catalogue(NamedTuple):
  """The items that are recommended from; ids are 1..C, C the capacity.

  Attributes:
    index: their SIDs.
    codebooks: float32 [L, V, D], what the tokens mean.
    features: float32 [C + 1, D]; zeros for padding and ids without an item.
    item_ids: [C + 1], names in the source; "" where there is none.
    titles: [C + 1], for people; "" where there is none.
    popularity: float32 [C + 1], positive responses; None where nobody asks.
  """

  index: sid.SidIndex
  codebooks: np.ndarray
  features: np.ndarray
  item_ids: Texts
  titles: Texts
  popularity: np.ndarray | None = None

  def add_items(
    self,
    items: Sequence[int],
    features: np.ndarray,
    item_ids: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
  ) -> "Catalogue":
    """A new catalogue with more active items; see sid.add_items.

    An id that was removed comes back as it was: with its SID, features and
    names.

    Args:
      items: [M], distinct ids in 1..C that are not active.
      features: float32 [M, D].
      item_ids: [M], names in the source; the ids by default.
      titles: [M], for people; none by default.

    Raises:
      InputError: an id beyond the capacity, or what sid.add_items refuses.
    """
    items = np.asarray(items)
    capacity = self.index.capacity
    if items.size and items.max() > capacity:
      raise InputError(
        f"item {items.max()} is beyond the capacity of this export; expected "
        f"ids up to {capacity}: export again with a larger --export_capacity"
      )
    features = np.asarray(features, np.float32)
    try:
      index = sid.add_items(self.index, items, self.codebooks, features)
    except ValueError as error:
      raise InputError(str(error)) from error
    fresh = ~np.asarray(self.index.known)[items]
    all_features = self.features.copy()
    all_features[items[fresh]] = features[fresh]
    rows = np.flatnonzero(fresh)
    names = [str(items[i] if item_ids is None else item_ids[i]) for i in rows]
    changed = self._replace(
      index=index,
      features=all_features,
      item_ids=self.item_ids.put(items[rows], names),
    )
    if titles is None:
      return changed
    new_titles = self.titles.put(items[rows], [titles[i] for i in rows])
    return changed._replace(titles=new_titles)

  def remove_items(self, items: Sequence[int]) -> "Catalogue":
    """A new catalogue in which these active items are not recommended.

    They may still be in a user's history, and keep their SIDs.

    Raises:
      InputError: an id that is not active, or is there twice.
    """
    try:
      return self._replace(index=sid.remove_items(self.index, items))
    except ValueError as error:
      raise InputError(str(error)) from error

  def arrays(self) -> dict[str, Array]:
    """What the exported function takes, by name."""
    named, _ = jax.tree_util.tree_flatten_with_path(self.index)
    index = {jax.tree_util.keystr(path): leaf for path, leaf in named}
    rest = {"codebooks": self.codebooks, "features": self.features}
    if self.popularity is not None:
      rest["popularity"] = self.popularity
    return {**index, **rest}

  def sizes(self) -> dict[str, int]:
    """What an export is bound to."""
    return {
      "levels": self.index.levels,
      "vocab_size": self.index.vocab_size,
      "capacity": self.index.capacity,
      "features": self.features.shape[1],
    }

  def codebooks_digest(self) -> str:
    """A short name of the codebooks, which an export is bound to as well."""
    codebooks = np.ascontiguousarray(self.codebooks)
    return hashlib.sha256(codebooks.tobytes()).hexdigest()[:16]

  def to_bytes(self) -> bytes:
    """The file of this catalogue, a .npz."""
    arrays = sid.to_arrays(self.index)
    items = arrays["items"]
    rows = {"features": self.features[items]}
    if self.popularity is not None:
      rows["popularity"] = self.popularity[items]
    for name in ("item_ids", "titles"):
      # All other texts are empty.
      utf8, ends = getattr(self, name)
      rows |= {f"{name}_utf8": utf8, f"{name}_ends": ends[items]}
    buffer = io.BytesIO()
    np.savez(buffer, format=_FORMAT, codebooks=self.codebooks, **arrays, **rows)
    return buffer.getvalue()


def of_bytes(data: bytes) -> Catalogue:
  """The catalogue that `to_bytes` wrote.

  Raises:
    ValueError: another format.
    Exception: whatever the readers make of a damaged file.
  """
  with np.load(io.BytesIO(data)) as arrays:
    saved = dict(arrays)
  if saved["format"] != _FORMAT:
    raise ValueError(f"format {saved['format']}, expected {_FORMAT}")
  index = sid.from_arrays(saved)

  def rows(name):
    """[M, ...] -> [C + 1, ...]."""
    if name not in saved:
      return None
    array = saved[name]
    spread = np.zeros((index.capacity + 1, *array.shape[1:]), array.dtype)
    spread[saved["items"]] = array
    return spread

  def names(name):
    lengths = np.zeros(index.capacity + 1, np.int64)
    lengths[saved["items"]] = np.diff(saved[f"{name}_ends"], prepend=0)
    return Texts(saved[f"{name}_utf8"], np.cumsum(lengths))

  return Catalogue(
    index=index,
    codebooks=saved["codebooks"],
    features=rows("features"),
    item_ids=names("item_ids"),
    titles=names("titles"),
    popularity=rows("popularity"),
  )


def make_catalogue(
  index: sid.SidIndex,
  codebooks: np.ndarray,
  features: np.ndarray,
  item_ids: Sequence[str],
  titles: Sequence[str],
  *,
  capacity: int | None = None,
  popularity: np.ndarray | None = None,
) -> Catalogue:
  """A catalogue of the training side as it is served.

  Args:
    index: of N items at most.
    codebooks: float32 [L, V, D].
    features: float32 [N + 1, D], row 0 for padding.
    item_ids: [N + 1], names in the source.
    titles: [N + 1], for people.
    capacity: C; None: that of the index.
    popularity: float32 [N + 1], or None.

  Raises:
    ValueError: more items than the capacity.
  """
  arrays = sid.to_arrays(index)
  if capacity is not None:
    arrays["capacity"] = np.asarray(capacity)
    index = sid.from_arrays(arrays)
  missing = index.capacity + 1 - len(features)
  if popularity is not None:
    popularity = np.pad(np.asarray(popularity), (0, missing))
  return Catalogue(
    index=index,
    codebooks=np.asarray(codebooks),
    features=np.pad(np.asarray(features), ((0, missing), (0, 0))),
    item_ids=texts([*item_ids, *[""] * missing]),
    titles=texts([*titles, *[""] * missing]),
    popularity=popularity,
  )
