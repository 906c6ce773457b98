import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.ops import returns


class ReturnsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_td_target_by_hand(self):
    rewards = jnp.asarray([1.0, 1.0, -0.5])
    terminated = jnp.asarray([0.0, 1.0, 0.0])
    values = jnp.asarray([10.0, 10.0, 2.0])
    f = self.variant(jax.vmap(lambda *x: returns.td_target(*x, 0.9)))
    np.testing.assert_allclose(
      f(rewards, terminated, values), [10.0, 1.0, 1.3], rtol=1e-6
    )

  def test_td_target_has_no_gradient(self):
    gradients = jax.grad(returns.td_target, argnums=(0, 2))(1.0, 0.0, 2.0, 0.9)
    np.testing.assert_array_equal(gradients, [0.0, 0.0])

  def test_item_advantages_by_hand(self):
    share = np.array([[1.1], [-2.2], [1.1]], np.float32) / 3

    def get(baseline, item_credit):
      return returns.item_advantages(
        jnp.float32(3.0),
        jnp.asarray(baseline),
        jnp.asarray(share[:, 0]) if item_credit else None,
        clip=1.0,
      )

    # y - V = 1.5 and 0.2, the first clipped to 1.
    np.testing.assert_allclose(get([1.5], True), 1 + share, rtol=1e-5)
    np.testing.assert_allclose(get([1.5], False), [[1.0]])
    np.testing.assert_allclose(get([2.8, 1.5], False), [[0.2, 1.0]], rtol=1e-5)
    np.testing.assert_allclose(
      get([2.8, 1.5], True), np.array([0.2, 1.0]) + share, rtol=1e-5
    )


if __name__ == "__main__":
  absltest.main()
