"""Evaluation against hand-computed sessions and statistics."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from scipy import stats

from hsrl_jax.evaluation import simulate
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
        simulate.constant_policy(2),
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

  def test_bounds_under_no_repeat_walk_down_the_ranking(self):
    env = _env(
      [0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3],
      no_repeat=True,
      patience=100.0,
      max_steps=3,
    )
    users = _users()
    mean = simulate.mean_probabilities(env, users, num_items=6)
    np.testing.assert_allclose(
      mean, [0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3], rtol=1e-6
    )
    bounds = {
      name: simulate.simulate(
        act, env, params, users, jax.random.key(0), episodes=3
      )
      for name, (act, params) in simulate.bounds(
        env, users, jnp.arange(7) > 0
      ).items()
    }
    for name in ("best_constant", "greedy_oracle"):
      for slates in np.asarray(bounds[name].slates):
        np.testing.assert_array_equal(slates, [[1, 3], [5, 6], [4, 2]])
    for slates in np.asarray(bounds["random"].slates):
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
      for name, (act, params) in simulate.bounds(env, _users(), active).items()
    }
    self.assertEqual(set(shown["random"].ravel()) - {0}, {2, 3, 4, 6})
    for name in ("best_constant", "greedy_oracle"):
      np.testing.assert_array_equal(shown[name][:, 0], [[3, 6]] * 9)

  def test_policies_meet_the_same_users_and_luck(self):
    env = _env([0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    runs = [
      simulate.simulate(
        simulate.constant_policy(2),
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

  def test_kept_sessions_name_users_and_count_liked_slates(self):
    responses = np.zeros((3, 2, 2))
    responses[0, 0] = 1  # One slate, both items.
    responses[2, :, 1] = 1  # Two slates, an item of each.
    total = np.arange(3.0)
    sessions = simulate.Sessions(total, total, total, responses, responses)
    path = pathlib.Path(self.create_tempdir()) / "sessions.npz"
    simulate.save(path, {"hsrl": [sessions, sessions]}, np.array([7, 9]))
    with np.load(path) as file:
      np.testing.assert_array_equal(file["user"], [7, 9, 7])
      np.testing.assert_array_equal(
        file["hsrl/liked_slates"], [[1, 0, 2], [1, 0, 2]]
      )

  def test_summary_of_one_seed_is_over_sessions(self):
    x = np.random.default_rng(0).normal(size=200)
    got = simulate.summarise([x])
    low, high = stats.t.interval(0.95, 199, x.mean(), stats.sem(x))
    np.testing.assert_allclose(got["ci95"], [low, high])
    self.assertLen(got["per_seed"], 1)

  def test_summary_of_seeds_is_over_their_means(self):
    seeds = [np.array([1.0, 3]), np.array([2.0, 4]), np.array([3.0, 8])]
    got = simulate.summarise(seeds)
    means = [2.0, 3.0, 5.5]
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    np.testing.assert_allclose(got["ci95"], [low, high])
    self.assertAlmostEqual(got["mean"], 3.5)
    self.assertEqual(got["per_seed"], means)

  def test_normalised_is_zero_at_random_and_one_at_the_oracle(self):
    def sessions(total):
      zeros = np.zeros(len(total))
      return simulate.Sessions(
        np.array(total), zeros + 2, zeros, np.zeros((len(total), 2, 2)), None
      )

    table = simulate.report(
      {
        "random": [sessions([1.0, 3])],
        "greedy_oracle": [sessions([11.0, 13])],
        "hsrl": [sessions([7.0, 7]), sessions([9.0, 9])],
      }
    )
    self.assertAlmostEqual(table["random"]["normalised"]["mean"], 0.0)
    self.assertAlmostEqual(table["greedy_oracle"]["normalised"]["mean"], 1.0)
    self.assertEqual(table["hsrl"]["normalised"]["per_seed"], [0.5, 0.7])


if __name__ == "__main__":
  absltest.main()
