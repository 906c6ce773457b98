"""Digests, words and names of whole pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from hsrl_jax.types import Array, Params


def digest(tree: Params) -> int:
  """32 bits of a pytree, which tell it from another one nearly surely.

  They differ wherever a single bit does. Sums of integers have no order, so the
  digest does not depend on how leaves lie on devices. It is computed on the
  host, where it costs little and compiles nothing.
  """
  leaves = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
  total = 0
  for i, x in enumerate(leaves):
    x = words(x)
    # An odd factor keeps whatever bit changes.
    odd = np.arange(1, 2 * x.size, 2, np.uint32).reshape(x.shape)
    for shard in x.addressable_shards:
      if shard.replica_id == 0:
        bits = np.asarray(shard.data).view(f"uint{8 * x.dtype.itemsize}")
        digits = np.sum(bits * odd[shard.index], dtype=np.uint32)
        total += (2 * i + 1) * int(digits)
  if not all(x.is_fully_addressable for x in leaves):
    own = np.uint32(total % 2**32)
    total = int(np.sum(multihost_utils.process_allgather(own), dtype=np.uint32))
  return total % 2**32


def words(x: Array) -> Array:
  """An array, or the words of which its random keys are made."""
  is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(x) if is_key else x


def of_words(like: Array, words: Array) -> Array:
  """An array, or where `like` has random keys those of these words."""
  is_key = jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
  return jax.random.wrap_key_data(words) if is_key else words


def by_name(tree: Params) -> dict[str, np.ndarray]:
  """Leaves by their paths, in their order; on the host."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def first_not_finite(tree: Params) -> str | None:
  """The path of the first leaf with NaN or an infinity, if any; on the host."""
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if jnp.issubdtype(jnp.result_type(x), jnp.inexact) and not (
      np.isfinite(x).all()
    ):
      return jax.tree_util.keystr(path, simple=True, separator="/")
  return None
