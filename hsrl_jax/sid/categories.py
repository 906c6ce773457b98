"""Categories of items on the device, as metadata or first tokens name them."""

import jax
import jax.numpy as jnp

from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array


def categories(catalogue: Catalogue) -> Array:
  """The categories of the items, float32 [N + 1, C], 1 where an item has one.

  Where a catalogue names none, the first tokens of the SIDs stand for them.
  """
  if catalogue.categories is not None:
    return catalogue.categories.astype(jnp.float32)
  index = catalogue.index
  first = jax.nn.one_hot(index.tokens[0], index.vocab_size)
  return first * index.known[:, None]


def rarest(categories: Array) -> Array:
  """Of each item the category that fewest items have alone, [N + 1, C].

  Of equally rare ones it is the first.
  """
  items_of = jnp.where(categories > 0, categories.sum(0), jnp.inf)
  own = jax.nn.one_hot(items_of.argmin(1), categories.shape[1])
  return own * (categories.sum(1, keepdims=True) > 0)
