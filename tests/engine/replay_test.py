"""The ring against a Python list."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.engine import replay

CAPACITY, BLOCK, STREAMS = 6, 2, (2, 3)


def _block(start):
  """Steps start .. start + BLOCK - 1 (from 1) of each stream, recognisable."""
  step = np.arange(start, start + BLOCK).reshape(-1, 1, 1)
  stream = np.arange(6).reshape(STREAMS)
  stamp = (100 * step + stream).astype(np.int32)
  return {"id": stamp, "pair": np.stack([stamp, -stamp], -1).astype("f")}


_add = jax.jit(replay.add)
_sample = jax.jit(replay.sample, static_argnums=2)


def _filled(blocks):
  example = jax.tree.map(lambda x: x[0], _block(1))
  state = replay.init(example, CAPACITY)
  for block in range(blocks):
    state = _add(state, _block(1 + BLOCK * block))
  return state


class ReplayTest(parameterized.TestCase):
  def test_init(self):
    state = _filled(0)
    self.assertEqual(state.items["id"].shape, (CAPACITY, *STREAMS))
    self.assertEqual(state.items["id"].dtype, jnp.int32)
    self.assertEqual(state.items["pair"].shape, (CAPACITY, *STREAMS, 2))
    self.assertEqual(state.added, 0)

  @parameterized.parameters(1, 2, 3, 4, 8)
  def test_ring_equals_a_list(self, blocks):
    ring = collections.deque(maxlen=CAPACITY)
    for block in range(blocks):
      steps = _block(1 + BLOCK * block)
      ring.extend((steps["id"][t], steps["pair"][t]) for t in range(BLOCK))
    state = _filled(blocks)
    self.assertEqual(state.added, blocks * BLOCK)
    # In order of time, whatever slot the ring has them in.
    size = len(ring)
    order = np.argsort(np.asarray(state.items["id"])[:, 0, 0], kind="stable")
    order = order[CAPACITY - size :]
    for name, values in zip(
      ("id", "pair"), zip(*ring, strict=True), strict=True
    ):
      found = np.asarray(state.items[name])
      np.testing.assert_array_equal(found[order], values)
    unfilled = np.setdiff1d(np.arange(CAPACITY), order)
    np.testing.assert_array_equal(state.items["id"][unfilled], 0)

  @parameterized.parameters(1, 2, 3, 5)
  def test_samples_are_of_the_same_stream_and_uniform(self, blocks):
    keys = jax.random.split(jax.random.key(blocks), STREAMS)
    count = 600
    found = _sample(_filled(blocks), keys, count)
    self.assertEqual(found["id"].shape, (*STREAMS, count))
    self.assertEqual(found["pair"].shape, (*STREAMS, count, 2))
    # Leaves stay together.
    np.testing.assert_array_equal(found["pair"][..., 0], found["id"])
    np.testing.assert_array_equal(found["pair"][..., 1], -found["id"])
    step, stream = np.divmod(found["id"], 100)
    np.testing.assert_array_equal(
      stream, np.broadcast_to(np.arange(6).reshape(*STREAMS, 1), stream.shape)
    )
    newest = BLOCK * blocks
    alive = range(max(1, newest - CAPACITY + 1), newest + 1)
    for draws in step.reshape(6, count):
      values, counts = np.unique(draws, return_counts=True)
      np.testing.assert_array_equal(values, alive)
      expected = count / len(alive)
      self.assertLess(np.abs(counts - expected).max(), 5 * np.sqrt(expected))
    # Streams draw independently.
    self.assertLen(np.unique(step.reshape(6, count), axis=0), 6)

  def test_a_stream_draws_the_same_among_other_streams(self):
    keys = jax.random.split(jax.random.key(0), STREAMS)
    state = _filled(4)
    sample = _sample(state, keys, 8)
    part = replay.ReplayState(
      jax.tree.map(lambda x: x[:, 1:], state.items), state.added
    )
    np.testing.assert_array_equal(
      _sample(part, keys[1:], 8)["id"], sample["id"][1:]
    )

  def test_empty_ring_yields_zeros(self):
    keys = jax.random.split(jax.random.key(0), STREAMS)
    found = _sample(_filled(0), keys, 4)
    np.testing.assert_array_equal(found["id"], np.zeros((*STREAMS, 4)))


if __name__ == "__main__":
  absltest.main()
