"""Rewards against all responses, one by one; a reward of another kind."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.agents.hsrl.agent import compose_slate
from hsrl_jax.config import SimulatorConfig
from hsrl_jax.engine import replayed
from hsrl_jax.sim import reward
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Sessions
from tests import toy


class RewardTest(parameterized.TestCase):
  def test_items(self):
    np.testing.assert_allclose(
      Reward(-0.1).items(jnp.asarray([1.0, 0.0, 1.0])), [1.0, -0.1, 1.0]
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
        found = Reward(-0.1, point).shares(jnp.asarray(row > 0) * 1.0)
        np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_a_sum_is_so_many_means(self):
    response = jnp.asarray([1.0, 0.0, 1.0, 1.0, 0.0])
    mean, total = Reward(0.0), Reward(0.0, sums=True)
    self.assertEqual(float(total.slate(total.items(response))), 3)
    self.assertTrue(total.is_mean)
    np.testing.assert_allclose(
      total.shares(response), 5 * mean.shares(response), rtol=1e-6
    )
    chances = jnp.asarray([0.9, 0.2, 0.55, 0.0, 1.0])
    np.testing.assert_allclose(total.expected(chances), 2.65, rtol=1e-5)

  def test_items_to_expect(self):
    found = Reward(-0.5).expected_items(jnp.asarray([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(found, [-0.5, -0.125, 1.0], rtol=1e-6)

  def test_a_world_of_sardine_counts_clicks(self):
    world = SimulatorConfig(world="SlateTopK-Bored")
    self.assertEqual(reward.of_config(world), Reward(0.0, sums=True))
    share = dataclasses.replace(world, reward="mean")
    self.assertEqual(reward.of_config(share), Reward(0.0))
    own = SimulatorConfig(penalty=-0.2, reward="sum")
    self.assertEqual(reward.of_config(own), Reward(-0.2, sums=True))

  @parameterized.parameters(None, 0.3, 0.9)
  def test_expected_reward_of_a_slate_by_all_responses(self, point):
    chances = np.array([0.9, 0.2, 0.55, 0.0, 1.0])
    want = 0.0
    for response in itertools.product((0, 1), repeat=5):
      hit = np.array(response) == 1
      mean = np.where(hit, 1, -0.1).mean()
      reward = mean if point is None else 1 - abs(mean - point)
      want += np.where(hit, chances, 1 - chances).prod() * reward
    found = Reward(-0.1, point).expected(jnp.asarray(chances))
    self.assertAlmostEqual(float(found), want, places=5)

  def test_a_miss_is_worth_having_among_hits_with_a_sweet_point(self):
    found = Reward(-0.1, 0.9).shares(jnp.asarray([1.0] * 8 + [0.0]))
    # Without the miss the slate earns 0.9 instead of 0.978.
    np.testing.assert_allclose(found[-1], 8 * (0.8778 + 0.1 - 0.9), atol=1e-3)
    self.assertGreater(found[-1], found[0])


class AnotherReward(Reward):
  """A slate is worth a point if anything in it was liked."""

  def slate(self, rewards):
    return (rewards > 0).any(-1).astype(jnp.float32)


class AnotherRewardTest(absltest.TestCase):
  REWARD = AnotherReward(-0.1)

  def test_is_not_taken_for_the_first(self):
    """Rewards are static arguments of jitted functions."""
    self.assertNotEqual(self.REWARD, Reward(-0.1))
    self.assertEqual(self.REWARD, AnotherReward(-0.1))
    self.assertEqual(hash(self.REWARD), hash(AnotherReward(-0.1)))

  def test_sessions_earn_it(self):
    env = toy.env()._replace(reward=self.REWARD)
    users = toy.inputs().env_params

    def step(key):
      _, result = env.step(
        key, env.start(1, users), jnp.array([1, 3, 4]), users
      )
      return result.response, result.reward

    response, reward = jax.vmap(step)(jax.random.split(jax.random.key(0), 64))
    liked = np.asarray(response).any(1)
    self.assertBetween(liked.mean(), 0.05, 0.95)
    np.testing.assert_array_equal(reward, liked)

  def test_agents_learn_from_it(self):
    """Expectation and shares follow from the reward of a slate."""
    chances = np.array([0.9, 0.2, 0.55])
    self.assertAlmostEqual(
      float(self.REWARD.expected(jnp.asarray(chances))),
      1 - (1 - chances).prod(),
      places=5,
    )
    for response, shares in (
      ([1, 0, 0], [2, 0, 0]),
      ([1, 1, 0], [0, 0, 0]),
      ([0, 0, 0], [0, 0, 0]),
    ):
      found = self.REWARD.shares(jnp.asarray(response, jnp.float32))
      np.testing.assert_array_equal(found, shares)
    slate = compose_slate(
      jnp.array([-9.0, -9.0]), jnp.array([-9.0, 9.0]), self.REWARD
    )
    self.assertEqual(slate.tolist(), [3, 2])  # The one with the sure hit.


class LoggedTest(parameterized.TestCase):
  @parameterized.parameters(
    # Means of the items' rewards: (1 - 0.1) / 2, 1 and -0.1.
    (Reward(-0.1), [0.45, 1.0, -0.1]),
    (Reward(-0.1, 0.9), [0.55, 0.9, 0.0]),
    (AnotherReward(-0.1), [1.0, 1.0, 0.0]),
  )
  def test_logged_slates_earn_what_shown_ones_do(self, reward, expected):
    logs = replayed.logged(
      Sessions(
        user_id=np.arange(3),
        profile=np.zeros((3, 0), np.float32),
        history=np.zeros((3, 4), np.int32),
        exposed=np.array([[1, 2], [3, 4], [5, 6]], np.int32),
        response=np.array([[1, 0], [1, 1], [0, 0]], np.float32),
      ),
      reward,
    )
    np.testing.assert_allclose(logs.reward, expected, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
