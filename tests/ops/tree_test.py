from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.ops import tree


class TreeTest(chex.TestCase):
  def test_digest_sees_every_bit(self):
    leaves = {
      "a": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
      "b": np.arange(4, dtype=np.int32),
      "c": np.arange(3, dtype=np.uint8),
    }
    whole = tree.digest(leaves)
    self.assertEqual(tree.digest(jax.tree.map(jnp.asarray, leaves)), whole)
    for name, leaf in leaves.items():
      for bit in range(8 * leaf.nbytes):
        data = bytearray(leaf.tobytes())
        data[bit // 8] ^= 1 << bit % 8
        other = np.frombuffer(data, leaf.dtype).reshape(leaf.shape)
        self.assertNotEqual(tree.digest(leaves | {name: other}), whole)

  def test_digest_sees_flags_keys_and_order(self):
    flags = jnp.asarray([True, False])
    keys = jax.random.split(jax.random.key(0), 2)
    for leaf in (flags, keys):
      self.assertNotEqual(tree.digest(leaf), tree.digest(leaf[::-1]))
    a, b = jnp.ones(2), jnp.zeros(2)
    self.assertNotEqual(tree.digest((a, b)), tree.digest((b, a)))

  def test_digest_does_not_depend_on_devices(self):
    x = jax.random.normal(jax.random.key(0), (8, 5))
    mesh = jax.make_mesh((jax.device_count(),), ("d",))
    spread = jax.device_put(
      x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    )
    self.assertEqual(tree.digest((spread, x)), tree.digest((x, x)))

  def test_first_not_finite_is_named(self):
    class State(NamedTuple):
      params: dict
      step: jax.Array

    good = {"dense": [jnp.ones(3), jnp.ones(2)], "ids": jnp.arange(3)}
    self.assertIsNone(tree.first_not_finite(State(good, jnp.int32(0))))
    for bad in (np.nan, np.inf, -np.inf):
      dense = [jnp.ones(3), jnp.asarray([1.0, bad])]
      found = tree.first_not_finite(
        State(good | {"dense": dense}, jnp.int32(0))
      )
      self.assertEqual(found, "params/dense/1")
    self.assertEqual(tree.first_not_finite({"a": 1.0, "b": np.nan}), "b")


if __name__ == "__main__":
  absltest.main()
