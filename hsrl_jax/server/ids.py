"""Rows of the catalogue by the items' ids in the source."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.serving.arguments import short
from hsrl_jax.serving.catalogue import ServedCatalogue, Texts

_TYPES = frozenset((str, int))  # A bool has a type of its own.


class ItemIds(NamedTuple):
  """The ids of one catalogue."""

  # Id in the source to row. Of an id that several rows have, the row of an
  # active item.
  rows: dict[str, int]
  texts: Texts | None  # Of the catalogue.

  def to_rows(self, name: str, ids: Sequence[Any]) -> list[int]:
    """Returns the rows of ids.

    Args:
      name: of the field, for the message.
      ids: strings or integers.

    Raises:
      InputError: one of them is no id, or unknown.
    """
    if not _TYPES.issuperset(map(type, ids)):
      item = next(x for x in ids if type(x) not in _TYPES)
      raise InputError(
        f"{name} holds {short(item)}; expected item ids of the source, which "
        "are strings or integers"
      )
    try:
      return list(map(self.rows.__getitem__, map(str, ids)))
    except KeyError as error:
      raise InputError(
        f"{name} holds {short(error.args[0])}, which is no known item; "
        "expected item ids of the source that the catalogue has or had (rows "
        "of the catalogue with --ids=rows)"
      ) from error


NO_IDS = ItemIds({}, None)


def of_catalogue(
  catalogue: ServedCatalogue, before: ItemIds = NO_IDS
) -> ItemIds:
  """Returns the ids of a catalogue; takes seconds for millions of items.

  Args:
    catalogue: that is served.
    before: of the catalogue that was served before; what is equal is shared.
  """
  texts, known = catalogue.item_ids, np.asarray(catalogue.index.known)
  same = before.texts is not None and all(
    np.array_equal(old, new)
    for old, new in zip(before.texts, texts, strict=True)
  )
  if same:
    return before
  active = np.asarray(catalogue.index.active)
  utf8, ends = texts.utf8.tobytes(), texts.ends
  rows: dict[str, int] = {}
  for chosen in (known & ~active, known & active):
    numbers = np.flatnonzero(chosen)
    numbers = numbers[numbers > 0]
    starts = ends[numbers - 1].tolist()
    stops, numbers = ends[numbers].tolist(), numbers.tolist()
    for start, stop, row in zip(starts, stops, numbers, strict=True):
      if stop > start:
        rows[utf8[start:stop].decode()] = row
  return ItemIds(rows, texts)
