"""Features of an item that nobody has met yet."""

import re

import numpy as np

from hsrl_jax.data import item_vectors
from hsrl_jax.data.item_vectors import DIMENSIONS
from hsrl_jax.data.source import Items

_YEAR = re.compile(r"\((\d{4})\)\s*$")  # At the end of a title.


def of_items(items: Items, dimensions: int = DIMENSIONS) -> np.ndarray:
  """Features out of content alone: words and the year; float32 [N + 1, D].

  Words are those of titles, genres and further columns of a user's items, see
  `item_vectors.of_words`; the year is what stands in brackets at the end of a
  title. Both are equally long in the mean square over the items. No rating has
  a part in them. There are at most `dimensions` of the words.
  """
  titles = items.titles[1:]
  texts = {"title": titles, "genres": items.genres[1:]}
  if items.titles == items.external_ids:
    del texts["title"]  # Made of the ids.
  texts |= item_vectors.attributes(items)
  found = [_YEAR.search(x) for x in titles]
  year = np.array([[float(x[1]) if x else np.nan] for x in found])
  blocks = [
    item_vectors.of_words(texts, dimensions),
    item_vectors.standardised(year),
  ]
  return _padded(item_vectors.join(blocks))


def for_newcomers(
  items: Items, newcomers: np.ndarray, dimensions: int = DIMENSIONS
) -> np.ndarray:
  """Features of a catalogue that some items will join; float32 [N + 1, D].

  Content, see `of_items`, and beside it what is given, which is made of the
  ratings of an item in parts: zeros for `newcomers`, ids [M], who have none.
  """
  given = np.array(items.features[1:])
  given[newcomers - 1] = 0
  return _padded(item_vectors.join([of_items(items, dimensions)[1:], given]))


def _padded(rows: np.ndarray) -> np.ndarray:
  return np.concatenate([np.zeros_like(rows[:1]), rows])
