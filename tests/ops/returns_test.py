import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

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

  def test_item_rewards(self):
    np.testing.assert_allclose(
      returns.item_rewards(jnp.asarray([1.0, 0.0, 1.0]), -0.1), [1.0, -0.1, 1.0]
    )

  @parameterized.parameters(0.0, 2.0)
  def test_item_advantages_by_hand(self, advantage):
    found = returns.item_advantages(
      jnp.float32(advantage), jnp.asarray([1.0, -0.1, -0.1, -0.1])
    )
    np.testing.assert_allclose(
      found - advantage, [0.825, -0.275, -0.275, -0.275], rtol=1e-5
    )


if __name__ == "__main__":
  absltest.main()
