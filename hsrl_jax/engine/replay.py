"""Replay of parallel streams: a ring of time steps as (init, add, sample).

Each entry holds one transition of every stream. A block of steps is added at
once, after the scan that made them: while it runs, the ring is only read, so
no copy of it is ever made. A stream is sampled from its own past alone: what it
yields does not depend on how streams are spread over devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.ops import sampling
from hsrl_jax.types import Array, PRNGKey


class ReplayState(NamedTuple):
  """The ring. B stands for the streams' axes."""

  items: Any  # Pytree with leaves [C, *B, ...].
  added: Array  # int32 [], how many steps were added in total.


def init(example: Any, capacity: int) -> ReplayState:
  """An empty ring of `capacity` steps like `example`, leaves [*B, ...]."""
  items = jax.tree.map(
    lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example
  )
  return ReplayState(items, jnp.zeros((), jnp.int32))


def add(state: ReplayState, steps: Any) -> ReplayState:
  """Adds a block of steps, leaves [T, *B, ...], in place of the oldest.

  T is the same in every call and divides the capacity.
  """
  length = jax.tree.leaves(steps)[0].shape[0]
  slot = state.added % jax.tree.leaves(state.items)[0].shape[0]
  items = jax.tree.map(
    lambda ring, x: jax.lax.dynamic_update_slice_in_dim(ring, x, slot, 0),
    state.items,
    steps,
  )
  return ReplayState(items, state.added + length)


def sample(state: ReplayState, keys: PRNGKey, count: int) -> Any:
  """Draws `count` past transitions of each stream, uniformly, independently.

  Args:
    state: before anything is added, the draws are the zeros of an empty slot.
    keys: one for each stream, [*B].
    count: draws of each stream, with replacement.

  Returns:
    Pytree with leaves [*B, count, ...].
  """
  capacity = jax.tree.leaves(state.items)[0].shape[0]
  size = jnp.clip(state.added, 1, capacity)

  def draw(key):
    return sampling.index(key, size, (count,))

  for _ in keys.shape:
    draw = jax.vmap(draw)
  streams = [i[..., None] for i in jnp.indices(keys.shape)]
  slots = draw(keys)
  return jax.tree.map(lambda ring: ring[(slots, *streams)], state.items)
