"""The catalogue that is served: SIDs, features and names, one file for all.

The exported function takes the catalogue as an input, so a catalogue may change
without a new export as long as its sizes stay. Every change is computed on the
host and returns a new catalogue; the old one stays as it is.
"""

import hashlib
import io
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hsrl_jax import sid
from hsrl_jax.errors import InputError
from hsrl_jax.serving import arguments
from hsrl_jax.serving import tags as tags_lib
from hsrl_jax.serving.tags import Tags
from hsrl_jax.sid import permits
from hsrl_jax.types import Array

_FORMAT = 2
_LARGEST_ID = 2**31 - 2  # Ids are int32 on the device.
# Members of the file; popularity is there only for agents that rank by it.
_MEMBERS = {
  *("format", "codebooks", "vocab_size", "capacity", "items", "tokens"),
  *("active", "features", "item_ids_utf8", "item_ids_ends", "titles_utf8"),
  *("titles_ends", "tag_names_utf8", "tag_names_ends", "tag_words", "added"),
  "popularity",
}


class Texts(NamedTuple):
  """One text per row, stored together: no Python object for each row."""

  utf8: np.ndarray  # uint8 [bytes], the texts one after another.
  ends: np.ndarray  # int64 [R], the byte at which each text ends.

  def of(self, row: int) -> str:
    """Returns the text of a row.

    Raises:
      InputError: the row is no integer from 0 to R - 1.
    """
    try:
      place = operator.index(row)
    except TypeError:
      place = -1
    if not 0 <= place < len(self.ends):
      raise InputError(
        f"the id {arguments.short(row)} has no text; expected an id from 0 to "
        f"{len(self.ends) - 1}"
      )
    start = self.ends[place - 1] if place else 0
    return self.utf8[start : self.ends[place]].tobytes().decode()

  def put(self, rows: np.ndarray, new: Sequence[str]) -> "Texts":
    """Returns these texts with those of `new` in rows that are empty.

    Args:
      rows: int [M], distinct.
      new: [M].
    """
    order = np.argsort(rows)
    rows, inserted = rows[order], texts([new[i] for i in order])
    lengths = np.diff(inserted.ends, prepend=0)
    places = np.repeat(self.ends[rows], lengths)
    longer = np.zeros_like(self.ends)
    longer[rows] = lengths
    return Texts(
      np.insert(self.utf8, places, inserted.utf8), self.ends + np.cumsum(longer)
    )

  def check(self) -> None:
    """Raises ValueError unless every row is whole UTF-8 text."""
    starts = np.concatenate([[0], self.ends])
    if (np.diff(starts) < 0).any() or starts[-1] != len(self.utf8):
      raise ValueError("texts end where no text ends")
    self.utf8.tobytes().decode()  # UnicodeDecodeError is a ValueError.
    inside = starts[starts < len(self.utf8)]
    if (self.utf8[inside] & 0xC0 == 0x80).any():
      raise ValueError("texts end inside a character")


def texts(rows: Sequence[str]) -> Texts:
  """Joins texts, one for each of R rows."""
  encoded = [row.encode() for row in rows]
  ends = np.cumsum([len(x) for x in encoded], dtype=np.int64)
  return Texts(np.frombuffer(b"".join(encoded), np.uint8), ends)


class ServedCatalogue(NamedTuple):
  """The items that may be recommended; ids are 1..C, C the capacity."""

  index: sid.SidIndex  # The SIDs of the items.
  codebooks: np.ndarray  # float32 [L, V, D], the vector of each token.
  # float32 [C + 1, D]; zeros for padding and ids without an item.
  features: np.ndarray
  item_ids: Texts  # [C + 1], names in the source; "" where there is none.
  titles: Texts  # [C + 1], for people; "" where there is none.
  tags: Tags  # Of the items, and when each was added.
  # float32 [C + 1], counts of positive responses; None for agents that do not
  # rank by popularity.
  popularity: np.ndarray | None = None

  def add_items(
    self,
    items: Sequence[int],
    features: np.ndarray,
    item_ids: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    tags: Sequence[Sequence[str]] | None = None,
    added: int | None = None,
  ) -> "ServedCatalogue":
    """Returns a catalogue with more active items; see sid.add_items.

    An item that was removed comes back with its old SID, features, names, tags
    and time.

    Args:
      items: int [M], distinct ids in 1..C that are not active.
      features: float32 [M, D].
      item_ids: [M], names in the source; the ids by default.
      titles: [M], for people; none by default.
      tags: [M] lists of names; none by default.
      added: when, see Tags.added; by default one more than the largest so far.

    Raises:
      InputError: an argument of another type or shape, an id beyond the
        capacity, or one that sid.add_items refuses; more tags than fit.
    """
    items = arguments.ids(items)
    capacity = self.index.capacity
    if items.size and items.max() > capacity:
      raise InputError(
        f"item {items.max()} is beyond the capacity of this export; expected "
        f"ids up to {capacity}: export again with a larger --export_capacity"
      )
    shape = (len(items), self.features.shape[1])
    features = arguments.floats("features", features, shape)
    if item_ids is None:
      item_ids = [str(item) for item in items]
    given = {"item_ids": item_ids}
    if titles is not None:
      given["titles"] = titles
    for name, rows in given.items():
      _texts(name, rows, len(items))
    try:
      index = sid.add_items(self.index, items, self.codebooks, features)
    except ValueError as error:
      raise InputError(str(error)) from error
    rows = np.flatnonzero(~np.asarray(self.index.known)[items])
    new = items[rows]
    new_tags = self._add_tags(new, rows, len(items), tags, added)
    all_features = self.features.copy()
    all_features[new] = features[rows]
    put = {
      name: getattr(self, name).put(new, [given[name][i] for i in rows])
      for name in given
    }
    return self._replace(
      index=index, features=all_features, tags=new_tags, **put
    )

  def _add_tags(
    self,
    new: np.ndarray,
    rows: np.ndarray,
    count: int,
    tags: Sequence[Sequence[str]] | None,
    added: int | None,
  ) -> Tags:
    """The tags with those of the new items, rows of the `count` given ones."""
    given = tags_lib.check([()] * count if tags is None else tags, count)
    if added is None:
      added = int(self.tags.added.max()) + 1
    return self.tags.put(
      new, [given[i] for i in rows], tags_lib.check_time("added", added)
    )

  def tag_items(
    self, items: Sequence[int], tags: Sequence[Sequence[str]]
  ) -> "ServedCatalogue":
    """Returns a catalogue in which items have these tags, and no others.

    Args:
      items: int [M], distinct ids of items, active or not.
      tags: [M] lists of names; new ones are added, up to the room for them.

    Raises:
      InputError: `items` are no ids of items, `tags` no M lists of texts, or
        no room is left for a tag.
    """
    ids = arguments.ids(items)
    known = np.asarray(self.index.known)
    bad = (ids < 1) | (ids > self.index.capacity)
    bad |= ~known[np.where(bad, 0, ids)]
    if bad.any():
      raise InputError(
        f"item {ids[bad.argmax()]} is not known; expected ids of items"
      )
    if len(set(ids.tolist())) < len(ids):
      raise InputError("items are there twice; expected distinct ids")
    return self._replace(tags=self.tags.put(ids, tags, None))

  def remove_items(self, items: Sequence[int]) -> "ServedCatalogue":
    """Returns a catalogue in which these active items are not recommended.

    Removed items may still be in a user's history, and keep their SIDs.

    Args:
      items: int [M], distinct ids of active items.

    Raises:
      InputError: `items` are no ids, or an id is not active or there twice.
    """
    ids = arguments.ids(items)
    try:
      return self._replace(index=sid.remove_items(self.index, ids))
    except ValueError as error:
      raise InputError(str(error)) from error

  def arrays(self) -> dict[str, Array]:
    """Returns the inputs of the exported function, by name."""
    named, _ = jax.tree_util.tree_flatten_with_path(self.index)
    index = {jax.tree_util.keystr(path): leaf for path, leaf in named}
    rest = {"codebooks": self.codebooks, "features": self.features}
    if self.popularity is not None:
      rest["popularity"] = self.popularity
    rest |= {"tags": self.tags.words, "added": self.tags.added}
    summaries = permits.summarise(self.index, *self.tags[1:])
    rest |= {f"tags[{i}]": rows for i, rows in enumerate(summaries, 1)}
    return {**index, **rest}

  def sizes(self) -> dict[str, int]:
    """Returns the sizes, which the export must share."""
    return {
      "levels": self.index.levels,
      "vocab_size": self.index.vocab_size,
      "capacity": self.index.capacity,
      "features": self.features.shape[1],
      "tags": self.tags.words.shape[1],
    }

  def codebooks_digest(self) -> str:
    """Returns a short hash of the codebooks, which the export must share."""
    codebooks = np.ascontiguousarray(self.codebooks)
    return hashlib.sha256(codebooks.tobytes()).hexdigest()[:16]

  def to_bytes(self) -> bytes:
    """Returns the content of the catalogue's file, a .npz."""
    arrays = sid.to_arrays(self.index)
    items = arrays["items"]
    names = texts(self.tags.names)
    rows = {
      "features": self.features[items],
      "tag_names_utf8": names.utf8,
      "tag_names_ends": names.ends,
      "tag_words": self.tags.words[items],
      "added": self.tags.added[items],
    }
    if self.popularity is not None:
      rows["popularity"] = self.popularity[items]
    for name in ("item_ids", "titles"):
      # Only known items have texts.
      utf8, ends = getattr(self, name)
      rows |= {f"{name}_utf8": utf8, f"{name}_ends": ends[items]}
    buffer = io.BytesIO()
    np.savez(buffer, format=_FORMAT, codebooks=self.codebooks, **arrays, **rows)
    return buffer.getvalue()


def of_bytes(data: bytes) -> ServedCatalogue:
  """Reads the catalogue that `to_bytes` wrote, and checks it.

  Raises:
    ValueError: another format, or an array that is missing, too much, of
      another shape, not finite or no UTF-8.
    Exception: another error of numpy, which is a damaged file as well.
  """
  with np.load(io.BytesIO(data)) as arrays:
    saved = dict(arrays)
  if saved["format"] != _FORMAT:
    raise ValueError(f"format {saved['format']}, expected {_FORMAT}")
  if unknown := saved.keys() - _MEMBERS:
    raise ValueError(f"the array {min(unknown)!r} belongs to no catalogue")
  index = sid.from_arrays(saved)
  items = saved["items"]

  def check(name, *shape, dtype=np.float32):
    array = saved[name]
    if array.dtype != dtype or array.shape != shape:
      raise ValueError(
        f"{name} are {array.dtype} {list(array.shape)}, "
        f"expected {np.dtype(dtype)} {list(shape)}"
      )
    if not np.isfinite(array).all():
      raise ValueError(f"{name} are not finite")

  def spread(array):
    """[M, ...] -> [C + 1, ...]."""
    rows = np.zeros((index.capacity + 1, *array.shape[1:]), array.dtype)
    rows[items] = array
    return rows

  def read_texts(name):
    ends = saved[f"{name}_ends"]
    if ends.shape != items.shape or ends.dtype.kind not in "iu":
      raise ValueError(f"{name}_ends are not {len(items)} integers")
    lengths = spread(np.diff(ends.astype(np.int64), prepend=0))
    rows = Texts(saved[f"{name}_utf8"], np.cumsum(lengths))
    rows.check()
    return rows

  def read_tags():
    names = Texts(saved["tag_names_utf8"], saved["tag_names_ends"])
    names.check()
    count, width = len(names.ends), saved["tag_words"].shape[-1]
    check("tag_words", len(items), width, dtype=np.uint32)
    check("added", len(items), dtype=np.uint32)
    if not width or count > width * tags_lib.WORD:
      raise ValueError(f"{count} tags in {width} words")
    return Tags(
      tuple(names.of(i) for i in range(count)),
      spread(saved["tag_words"]),
      spread(saved["added"]),
    )

  width = saved["codebooks"].shape[-1]
  check("codebooks", index.levels, index.vocab_size, width)
  check("features", len(items), saved["features"].shape[-1])
  if "popularity" in saved:
    check("popularity", len(items))
  return ServedCatalogue(
    index=index,
    codebooks=saved["codebooks"],
    features=spread(saved["features"]),
    item_ids=read_texts("item_ids"),
    titles=read_texts("titles"),
    popularity=spread(saved["popularity"]) if "popularity" in saved else None,
    tags=read_tags(),
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
  tags: Sequence[Sequence[str]] | None = None,
  added: np.ndarray | None = None,
) -> ServedCatalogue:
  """Builds the served catalogue from the arrays of the training side.

  Args:
    index: the SIDs of at most N items.
    codebooks: float32 [L, V, D].
    features: float32 [N + 1, D], row 0 for padding.
    item_ids: [N + 1], names in the source.
    titles: [N + 1], for people.
    capacity: C; None: that of the index.
    popularity: float32 [N + 1], or None.
    tags: [N + 1] lists of names of tags, the first of padding; None: no tags.
    added: int [N + 1], see Tags.added; None: zeros.

  Raises:
    InputError: an argument of another type or shape, numbers that are not
      finite, or more items than the capacity.
  """
  if not isinstance(index, sid.SidIndex):
    raise InputError(f"index is {arguments.short(index)}; expected a SidIndex")
  if capacity is not None:
    index = _with_capacity(index, capacity)
  sizes = (index.levels, index.vocab_size)
  codebooks = arguments.floats(
    "codebooks", codebooks, (*sizes, None), finite=True
  )
  features = arguments.floats("features", features, (None, None), finite=True)
  count = len(features)
  if not index.num_items < count <= index.capacity + 1:
    raise InputError(
      f"features have {count} rows; expected {index.num_items + 1}, one for "
      "padding and one for each item of the index, up to the capacity "
      f"{index.capacity}"
    )
  missing = index.capacity + 1 - count
  if popularity is not None:
    popularity = arguments.floats(
      "popularity", popularity, (count,), finite=True
    )
    popularity = np.pad(popularity, (0, missing))
  room = (0, missing)
  names = {
    name: joined._replace(ends=np.pad(joined.ends, room, "edge"))
    for name, joined in (
      ("item_ids", _texts("item_ids", item_ids, count)),
      ("titles", _texts("titles", titles, count)),
    )
  }
  return ServedCatalogue(
    index=index,
    codebooks=codebooks,
    features=np.pad(features, (room, (0, 0))),
    popularity=popularity,
    tags=tags_lib.make(tags, added, count - 1, index.capacity),
    **names,
  )


def _with_capacity(index: sid.SidIndex, capacity: int) -> sid.SidIndex:
  """Returns the same items with another capacity."""
  is_number = isinstance(capacity, int | np.integer)
  if not is_number or not 1 <= capacity <= _LARGEST_ID:
    raise InputError(
      f"capacity is {arguments.short(capacity)}; expected an integer from 1 to "
      f"{_LARGEST_ID}"
    )
  arrays = sid.to_arrays(index) | {"capacity": np.asarray(capacity)}
  try:
    return sid.from_arrays(arrays)
  except ValueError as error:
    raise InputError(str(error)) from error


def _texts(name: str, rows: Any, count: int) -> Texts:
  """Returns `count` texts; raises InputError for anything else."""
  try:
    joined = None if isinstance(rows, str | dict | set) else texts(rows)
  except (AttributeError, TypeError, UnicodeEncodeError):
    joined = None
  if joined is None or len(joined.ends) != count:
    raise InputError(
      f"{name} are {arguments.short(rows)}; expected a list of {count} strings "
      "of valid Unicode"
    )
  return joined
