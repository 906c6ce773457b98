"""Categories of items, and topics, one of them each (docs/simulator.md)."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# A category that stands for none, as MovieLens has it.
_NONE = "(no genres listed)"


class Topics(NamedTuple):
  """The topics of a catalogue; topic 0 is none."""

  # int32 [N + 1], the topic of each item, 1..T; 0 for padding and for an item
  # without a category.
  of_items: np.ndarray
  names: tuple[str, ...]  # T names, sorted; topic t is `names[t - 1]`.
  # bool [N + 1, C], which categories each item has, by name; False for padding.
  categories: np.ndarray


def of_categories(categories: Sequence[str]) -> Topics:
  """The rarest category of each item, counted over the catalogue.

  Of equally rare ones it is the first by name.

  Args:
    categories: N + 1 texts such as "Action|Comedy"; the first is of padding.
  """
  split = [set(text.split("|")) - {"", _NONE} for text in categories]
  split[0] = set()
  items_of = collections.Counter(name for names in split for name in names)
  rarest = [
    min(names, key=lambda name: (items_of[name], name), default=None)
    for names in split
  ]
  names = tuple(sorted(set(rarest) - {None}))
  number = {name: topic for topic, name in enumerate(names, start=1)}
  of_items = np.array([number.get(name, 0) for name in rarest], np.int32)
  table = [[name in own for name in sorted(items_of)] for own in split]
  return Topics(of_items, names, np.array(table, bool))
