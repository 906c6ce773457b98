import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.ops import tree


class TreeTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_polyak_by_hand(self):
    target = {"a": jnp.asarray([0.0, 10.0]), "b": {"c": jnp.asarray(1.0)}}
    online = {"a": jnp.asarray([1.0, 20.0]), "b": {"c": jnp.asarray(-1.0)}}
    found = self.variant(tree.polyak)(target, online, 0.25)
    chex.assert_trees_all_close(
      found, {"a": np.asarray([0.25, 12.5]), "b": {"c": np.asarray(0.5)}}
    )

  def test_polyak_ends(self):
    target, online = jnp.asarray([2.0]), jnp.asarray([3.0])
    np.testing.assert_array_equal(tree.polyak(target, online, 0.0), target)
    np.testing.assert_array_equal(tree.polyak(target, online, 1.0), online)

  @chex.variants(with_jit=True, without_jit=True)
  def test_fingerprint_by_hand(self):
    x = {"a": jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.asarray(5)}
    expected = 1 + 2 * np.cos(1) + 3 * np.cos(2) + 4 * np.cos(3) + 2 * 5
    self.assertAlmostEqual(
      float(self.variant(tree.fingerprint)(x)), expected, places=4
    )

  def test_fingerprint_differs_with_any_element(self):
    x = {
      "a": jnp.arange(6.0).reshape(2, 3),
      "b": jnp.arange(4),
      "c": jnp.ones(2),
    }
    seen = {float(tree.fingerprint(x))}
    count = 1
    for name, leaf in x.items():
      for i in np.ndindex(leaf.shape):
        other = x | {name: leaf.at[i].add(1)}
        seen.add(float(tree.fingerprint(other)))
        count += 1
    self.assertLen(seen, count)

  def test_fingerprint_sees_order(self):
    f = jax.jit(tree.fingerprint)
    a, b = jnp.asarray([1.0, 2.0]), jnp.asarray([2.0, 1.0])
    self.assertNotEqual(f((a, b)), f((b, a)))
    self.assertEqual(f((a, b)), f((a, b)))


if __name__ == "__main__":
  absltest.main()
