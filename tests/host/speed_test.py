"""Operations of products against counts by hand."""

import jax
import jax.numpy as jnp
from absl.testing import absltest

from hsrl_jax.host import speed


class ProductsTest(absltest.TestCase):
  def test_by_hand(self):
    x, y = jnp.ones((3, 5)), jnp.ones((5, 7))
    self.assertEqual(speed.products(jnp.matmul, x, y), 2 * 3 * 5 * 7)
    batched = jax.vmap(jnp.matmul, (0, None))
    self.assertEqual(
      speed.products(batched, jnp.ones((4, 3, 5)), y), 4 * 2 * 3 * 5 * 7
    )
    self.assertEqual(speed.products(lambda x: x + 1, x), 0)

  def test_loops_branches_and_calls(self):
    x = jnp.ones((6, 6))
    one = 2 * 6**3

    def scanned(x):
      return jax.lax.scan(lambda c, _: (c @ x, None), x, length=9)[0]

    self.assertEqual(speed.products(jax.jit(scanned), x), 9 * one)

    def branch(x):
      return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    self.assertEqual(speed.products(branch, x), 2 * one)
    # Of the gradient: the product itself, and one for each factor.
    gradient = jax.grad(lambda x, y: ((x @ y) ** 2).sum(), argnums=(0, 1))
    self.assertEqual(
      speed.products(gradient, jnp.ones((2, 3)), jnp.ones((3, 4))),
      3 * 2 * 2 * 3 * 4,
    )

  def test_of_training(self):
    x = jnp.ones((64, 64))
    given = ((x, x), 3, 10, 96, 50.0)
    found = speed.of_training(jnp.matmul, *given)
    self.assertEqual(found["iterations_per_second"], 50.0)
    self.assertEqual(found["slates_per_second"], 4_800.0)
    self.assertAlmostEqual(found["gflop_per_iteration"], 2 * 64**3 * 0.3 / 1e9)
    self.assertGreater(found["utilisation"], 0)
    self.assertLess(found["utilisation"], 1)


if __name__ == "__main__":
  absltest.main()
