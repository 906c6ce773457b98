import itertools

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

  def test_item_advantages_by_hand(self):
    rewards = jnp.array([1.0, -0.1, 1.0])
    share = np.array([[1.1], [-2.2], [1.1]]) / 3

    def get(baseline, item_credit):
      return returns.item_advantages(
        jnp.float32(3.0),
        jnp.asarray(baseline),
        rewards,
        clip=1.0,
        item_credit=item_credit,
      )

    # y - V = 1.5 and 0.2, the first clipped to 1.
    np.testing.assert_allclose(get([1.5], True), 1 + share, rtol=1e-5)
    np.testing.assert_allclose(get([1.5], False), [[1.0]] * 3)
    np.testing.assert_allclose(
      get([2.8, 1.5], False), [[0.2, 1.0]] * 3, rtol=1e-5
    )
    np.testing.assert_allclose(
      get([2.8, 1.5], True), np.array([0.2, 1.0]) + share, rtol=1e-5
    )

  @parameterized.parameters(1, 2, 9)
  def test_credit_of_an_item_is_what_the_slate_loses_without_it(self, count):
    rewards = np.where(
      np.random.default_rng(0).random((50, count)) < 0.8, 1, -0.1
    )
    for row in rewards:
      for point in (None, 0.9):

        def slate(x, point=point):
          return x.mean() if point is None else 1 - abs(x.mean() - point)

        expected = [
          (count - 1) * (slate(row) - slate(np.delete(row, k)))
          if count > 1
          else 0.0
          for k in range(count)
        ]
        found = returns.item_shares(jnp.asarray(row), point)
        np.testing.assert_allclose(found, expected, atol=1e-5)

  @parameterized.parameters(None, 0.3, 0.9)
  def test_expected_reward_of_a_slate_by_all_responses(self, point):
    chances = np.array([0.9, 0.2, 0.55, 0.0, 1.0])
    want = 0.0
    for response in itertools.product((0, 1), repeat=5):
      hit = np.array(response) == 1
      mean = np.where(hit, 1, -0.1).mean()
      reward = mean if point is None else 1 - abs(mean - point)
      want += np.where(hit, chances, 1 - chances).prod() * reward
    found = returns.expected_slate_reward(jnp.asarray(chances), -0.1, point)
    self.assertAlmostEqual(float(found), want, places=5)

  def test_a_miss_is_worth_having_among_hits_with_a_sweet_point(self):
    rewards = jnp.asarray([1.0] * 8 + [-0.1])
    found = returns.item_shares(rewards, 0.9)
    # Without the miss the slate earns 0.9 instead of 0.978.
    np.testing.assert_allclose(found[-1], 8 * (0.8778 + 0.1 - 0.9), atol=1e-3)
    self.assertGreater(found[-1], found[0])


if __name__ == "__main__":
  absltest.main()
