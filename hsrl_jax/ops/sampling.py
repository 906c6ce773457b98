"""Random draws that are cheap where the generator is not the point.

On a CPU one call of JAX's generator is dozens of small kernels. Where thousands
of draws are wanted in each step of a loop, `bits` makes them in one pass
from the key alone.
"""

# Worth it: tests/benchmarks/train_throughput.py, by turns, does 54.9 iterations
# a second of CPU time (median of five) with this file's `bits` and `split`, and
# 52.5 (of six) with those of jax.random.

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.types import Array, PRNGKey

_FEW = 2**17  # Of so many values, 23 bits are a fair draw.


def bits(key: PRNGKey, count: int) -> Array:
  """Random words, uint32 [count]: a hash of the key and each position.

  The mixer is a bijection of 32 bits with two multiplications (constants of
  the `lowbias32` search), applied twice, a word of the key before each. It
  passes for exploration noise and dropout, not for cryptography. The key is
  consumed.
  """
  first, *_, last = jax.random.key_data(key)
  word = jax.lax.iota(jnp.uint32, count) * jnp.uint32(0x9E3779B9)
  return _mix(_mix(word ^ first) ^ last)


def split(key: PRNGKey, count: int) -> PRNGKey:
  """New keys, [count], by `bits`. The key is consumed."""
  size = jax.random.key_data(key).shape[-1]
  words = bits(key, count * size).reshape(count, size)
  return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))


def _mix(x: Array) -> Array:
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def uniform(key: PRNGKey, shape: tuple[int, ...] = ()) -> Array:
  """Uniform in (0, 1), float32 `shape`, by `bits`; neither end is met."""
  return _unit(bits(key, int(np.prod(shape))).reshape(shape))


def _unit(words: Array) -> Array:
  """23 bits of each word as a number in (0, 1); both ends are left out."""
  return ((words >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def gumbel(key: PRNGKey, shape: tuple[int, ...]) -> Array:
  """Standard Gumbel noise, float32 `shape`, by `bits`."""
  return -jnp.log(-jnp.log(uniform(key, shape)))


def long_tailed_gumbel(key: PRNGKey, shape: tuple[int, ...]) -> Array:
  """Standard Gumbel noise, float32 `shape`, exact far out.

  `gumbel` ends at 16.6 and is coarse before, so that what has one chance in
  millions comes too seldom. This one has all 32 bits of its draws in the upper
  tail, and ends at 22.9.
  """
  words = bits(key, int(np.prod(shape))).reshape(shape)
  upper = (words.astype(jnp.float32) + 0.5) * 2.0**-32  # Near 0: the far end.
  return -jnp.log(-jnp.log1p(-jnp.minimum(upper, 1.0 - 2.0**-24)))


def normal(key: PRNGKey, shape: tuple[int, ...]) -> Array:
  """Standard normal noise, float32 `shape`, by `bits`; within 5.3."""
  return jax.scipy.special.ndtri(uniform(key, shape))


def index(
  key: PRNGKey, count: int | Array, shape: tuple[int, ...] = ()
) -> Array:
  """Uniform integers in 0..count-1, int32 `shape`; `count` below 2^31.

  `jax.random.randint` calls the generator three times to be exact for any
  count. Here the chances of two values differ by a part of count / 2^23 at
  most, above a count of 2^17 by one of count / 2^32.
  """
  words = bits(key, int(np.prod(shape))).reshape(shape)
  # All 32 bits would do for small counts too; their draws stay what they were.
  large = _high_product(words, jnp.asarray(count).astype(jnp.uint32))
  return jnp.where(
    count <= _FEW, index_of(_unit(words), count), large.astype(jnp.int32)
  )


def _high_product(x: Array, y: Array) -> Array:
  """The upper 32 bits of the product, uint32, by halves of 16 bits.

  `jax.lax.mulhi` does not compile under `pmap` (seen with jax 0.10.2).
  """
  x1, x0, y1, y0 = x >> 16, x & 0xFFFF, y >> 16, y & 0xFFFF
  middle = (x1 * y0 & 0xFFFF) + (x0 * y1 & 0xFFFF) + (x0 * y0 >> 16)
  return x1 * y1 + (x1 * y0 >> 16) + (x0 * y1 >> 16) + (middle >> 16)


def index_of(draw: Array, count: int | Array) -> Array:
  """The integer in 0..count-1 of a draw by `uniform`; `count` up to 2^17.

  Above that the chances of values differ more and more, and above 2^23 some
  never come.
  """
  return jnp.minimum(jnp.floor(draw * count).astype(jnp.int32), count - 1)
