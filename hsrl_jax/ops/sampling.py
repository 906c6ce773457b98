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
  draw = jnp.floor(jax.random.uniform(key, shape) * count).astype(jnp.int32)
  return jnp.minimum(draw, count - 1)
