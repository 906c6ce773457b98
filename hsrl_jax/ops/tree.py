"""Arithmetic on pytrees."""

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array, Params


def polyak(target: Params, online: Params, rate: float) -> Params:
  """target + rate (online - target), leaf by leaf."""
  return jax.tree.map(lambda t, o: t + rate * (o - t), target, online)


def fingerprint(tree: Params) -> Array:
  """One float32 number that differs where any leaf differs (nearly surely)."""
  leaves = [jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(tree)]
  return sum(
    (i + 1) * jnp.sum(x * jnp.cos(jnp.arange(x.size)).reshape(x.shape))
    for i, x in enumerate(leaves)
  )
