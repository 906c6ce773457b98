"""Random draws that cost one call of the generator."""

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array, PRNGKey


def index(
  key: PRNGKey, count: int | Array, shape: tuple[int, ...] = ()
) -> Array:
  """Uniform integers in 0..count-1, int32 `shape`; `count` up to 2^24.

  `jax.random.randint` calls the generator three times to be exact for any
  count; here the bias is below count / 2^24.
  """
  return index_of(jax.random.uniform(key, shape), count)


def index_of(draw: Array, count: int | Array) -> Array:
  """The integer in 0..count-1 of a uniform draw in [0, 1), any shape."""
  return jnp.minimum(jnp.floor(draw * count).astype(jnp.int32), count - 1)
