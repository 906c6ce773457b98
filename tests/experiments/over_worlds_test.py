"""Interquartile means and profiles over worlds, by hand."""

import numpy as np
from absl.testing import absltest

from hsrl_jax.experiments import over_worlds


def _world(**rows):
  kinds = {"bounds": "bound", "playlist": "rule", "capped": "rule"}
  return {
    "rows": {
      name: {"kind": kinds.get(name, "agent"), "normalised": {"per_seed": x}}
      for name, x in rows.items()
    }
  }


class OverWorldsTest(absltest.TestCase):
  def test_rows_of_every_world_and_the_best_rule_of_each(self):
    worlds = {
      "a": _world(bounds=[1.0], hsrl=[0.1, 0.2], ppo=[0.5]),
      "b": _world(bounds=[1.0], hsrl=[0.3, 0.5]),
    }
    rules = {
      "a": _world(bounds=[2.0], playlist=[0.6], capped=[0.7]),
      "b": _world(playlist=[0.8], capped=[-0.1]),
    }
    found = over_worlds.runs(worlds, rules)
    self.assertEqual(set(found), {"hsrl", over_worlds.RULE})
    np.testing.assert_array_equal(found["hsrl"], [[0.1, 0.2], [0.3, 0.5]])
    np.testing.assert_array_equal(found[over_worlds.RULE], [[0.7], [0.8]])

  def test_the_middle_half_of_all_runs(self):
    runs = [np.array([9.0, 1.0, 2.0, -7.0]), np.array([3.0, 0.0, 5.0, 4.0])]
    # In order -7, 0, 1, 2, 3, 4, 5, 9.
    self.assertAlmostEqual(over_worlds.interquartile_mean(runs), 2.5)

  def test_runs_are_drawn_within_their_world(self):
    constant = [np.full(4, 0.0), np.full(4, 1.0)]
    one = over_worlds.measured(constant)
    # Whatever is drawn, half of the runs are of each world.
    np.testing.assert_allclose((one["mean"], *one["ci95"]), 0.5)
    rng = np.random.default_rng(1)
    runs = [rng.normal(size=10), rng.normal(size=10)]
    low, high = over_worlds.measured(runs)["ci95"]
    # About the interval of the mean of a normal sample that is trimmed.
    self.assertBetween((high - low) / (2 * 1.96 * 20**-0.5), 0.6, 1.5)
    self.assertIsNone(over_worlds.measured([np.ones(1)])["ci95"])

  def test_profile_counts_worlds_alike(self):
    runs = [np.array([0.1, 0.3]), np.array([0.2, 0.4, 0.6, 0.8])]
    found = over_worlds.profile(runs, np.array([0.0, 0.2, 0.5, 0.9]))
    np.testing.assert_allclose(found, [1.0, 0.625, 0.25, 0.0])


if __name__ == "__main__":
  absltest.main()
