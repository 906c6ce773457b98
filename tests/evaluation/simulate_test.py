"""Simulated sessions, and the bounds, against sessions computed by hand."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.sim.leave import Patience
from hsrl_jax.sim.reward import Reward
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator


def _env(probability, no_repeat=False, patience=9.0, max_steps=5):
  """Items 1..6; `probability` [7] for everybody."""
  table = jnp.asarray(probability, jnp.float32)
  return UserSimulator(
    response_fn=lambda params, profile, history, slate: table[slate],
    slate_size=2,
    no_repeat=no_repeat,
    max_steps=max_steps,
    reward=Reward(-0.1),
    leave=Patience(patience),
  )


def _users(count=3):
  return EnvParams(None, jnp.zeros((count, 1)), jnp.ones((count, 4), jnp.int32))


class EvaluateTest(absltest.TestCase):
  def test_sessions_by_hand(self):
    # Items 1 and 2 always please: reward 1, patience falls by 1 a step.
    # Items 3 and 4 never: reward -0.1, patience falls by 3.2 a step.
    env = _env([0, 1, 1, 0, 0, 0, 0])
    scores = jnp.array([0.0, 9, 8, 0, 0, 0, 0])

    def run(scores):
      return simulate.simulate(
        bounds.constant_policy(2),
        env,
        (scores, jnp.arange(7) > 0),
        _users(),
        jax.random.key(0),
        episodes=4,
      )

    good = run(scores)
    np.testing.assert_allclose(good.total_reward, 5.0)  # The step limit.
    np.testing.assert_allclose(good.depth, 5)
    np.testing.assert_allclose(good.positives, 10)
    bad = run(jnp.array([0.0, 0, 0, 9, 8, 0, 0]))
    # 9 - 3.2 = 5.8, 2.6, then -0.6 < 1: the user leaves after 3 steps.
    np.testing.assert_allclose(bad.depth, 3)
    np.testing.assert_allclose(bad.total_reward, -0.3, rtol=1e-5)
    np.testing.assert_array_equal(bad.slates[0, :3], [[3, 4]] * 3)
    np.testing.assert_array_equal(bad.slates[0, 3:], 0)

  def test_each_session_is_of_the_row_that_is_named(self):
    """A policy that shows a user's history tells who it is."""
    users = _users()._replace(
      histories=jnp.array([[0, 0, 1, 2], [0, 0, 3, 4], [0, 0, 5, 6]])
    )

    def act(params, observation, excluded, key):
      del params, excluded, key
      return observation.history[-2:]

    for rows, shown in (
      (None, [1, 3, 5, 1]),
      (np.int32([2, 0, 2, 1]), [5, 1, 5, 3]),
    ):
      sessions = simulate.simulate(
        act, _env([0.0] * 7), None, users, jax.random.key(0), rows, episodes=4
      )
      np.testing.assert_array_equal(sessions.slates[:, 0, 0], shown)

  def test_any_number_of_sessions_of_any_pool_is_compiled_once(self):
    """In chunks of four, the last of which is not full."""
    env = _env([0.0, 0.5, 0.1, 0.9, 0.4, 0.3, 0.6])
    rows = np.int32([4, 1, 3, 0, 2, 2, 0, 4, 1, 3, 1])

    def act(params, observation, excluded, key):
      del params, excluded, key
      return observation.history[-2:]  # It tells who the user is.

    def run(count, episodes):
      users = _users(count)
      histories = 1 + (np.arange(count)[:, None] + np.arange(4)) % 6
      users = users._replace(histories=jnp.asarray(histories, jnp.int32))
      given = (act, env, None, users, jax.random.key(0), rows[:episodes])
      return simulate.simulate(*given, episodes=episodes)

    whole = run(5, 11)
    np.testing.assert_array_equal(whole.slates[:, 0, 0], 1 + (rows + 2) % 6)
    with mock.patch.object(simulate, "CHUNK", 4):
      before = simulate._compiled()._cache_size()
      for count, episodes in ((5, 11), (6, 8), (7, 4), (5, 6)):
        sessions = run(count, episodes)
        for found, expected in zip(sessions, whole, strict=True):
          self.assertLen(found, episodes)
          np.testing.assert_array_equal(found, expected[:episodes])
      self.assertEqual(simulate._compiled()._cache_size(), before + 1)

  def test_bounds_under_no_repeat_walk_down_the_ranking(self):
    env = _env(
      [0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3],
      no_repeat=True,
      patience=100.0,
      max_steps=3,
    )
    users = _users()
    mean = bounds.mean_probabilities(env, users, num_items=6)
    np.testing.assert_allclose(
      mean, [0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3], rtol=1e-6
    )
    sessions = {
      name: simulate.simulate(
        act, env, params, users, jax.random.key(0), episodes=3
      )
      for name, (act, params) in bounds.bounds(
        env, users, jnp.arange(7) > 0
      ).items()
    }
    for name in ("best_constant", "greedy_oracle"):
      for slates in np.asarray(sessions[name].slates):
        np.testing.assert_array_equal(slates, [[1, 3], [5, 6], [4, 2]])
    for slates in np.asarray(sessions["random"].slates):
      self.assertCountEqual(slates.ravel().tolist(), [1, 2, 3, 4, 5, 6])

  def test_bounds_keep_to_the_active_items(self):
    env = _env([0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3])
    active = jnp.asarray([0, 0, 1, 1, 1, 0, 1], bool)
    shown = {
      name: np.asarray(
        simulate.simulate(
          act, env, params, _users(), jax.random.key(0), episodes=9
        ).slates
      )
      for name, (act, params) in bounds.bounds(env, _users(), active).items()
    }
    self.assertEqual(set(shown["random"].ravel()) - {0}, {2, 3, 4, 6})
    for name in ("best_constant", "greedy_oracle"):
      np.testing.assert_array_equal(shown[name][:, 0], [[3, 6]] * 9)

  def test_policies_meet_the_same_users_and_luck(self):
    env = _env([0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    runs = [
      simulate.simulate(
        bounds.constant_policy(2),
        env,
        (jnp.asarray(s), jnp.arange(7) > 0),
        _users(),
        jax.random.key(1),
        episodes=50,
      )
      for s in ([0.0, 9, 8, 0, 0, 0, 0], [0.0, 0, 0, 0, 0, 9, 8])
    ]
    np.testing.assert_array_equal(runs[0].responses, runs[1].responses)
    self.assertGreater(float(runs[0].total_reward.std()), 0)


class SampleTest(absltest.TestCase):
  def test_users_come_in_rounds(self):
    user = np.array([7, 7, 7, 2, 5, 5])
    for seed in range(20):
      rows = simulate.sample(user, 13, seed)
      self.assertEqual(set(user[rows[:3]]), {2, 5, 7})
      self.assertEqual(set(user[rows[3:5]]), {5, 7})
      self.assertEqual(set(rows[:6]), set(range(6)))  # No row twice.
      np.testing.assert_array_equal(rows[6:12], rows[:6])
      np.testing.assert_array_equal(simulate.sample(user, 4, seed), rows[:4])

  def test_every_user_and_each_row_of_one_is_as_likely(self):
    user = np.repeat([1, 2, 3, 4], [9, 1, 1, 1])
    first = np.array([simulate.sample(user, 1, x)[0] for x in range(4_000)])
    # 4,000 draws: three standard deviations are 82 of a user, 31 of a row.
    for name in (1, 2, 3, 4):
      self.assertAlmostEqual((user[first] == name).sum(), 1_000, delta=82)
    for row in range(9):
      self.assertAlmostEqual((first == row).sum(), 1_000 / 9, delta=33)


if __name__ == "__main__":
  absltest.main()
