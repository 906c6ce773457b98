"""The paired bootstrap against closed forms and coverage."""

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from hsrl_jax.evaluation import bootstrap

Z = stats.norm.ppf(0.975)


def _half(found):
  return (found["ci95"][1] - found["ci95"][0]) / 2


class DifferenceTest(parameterized.TestCase):
  def test_sessions_alone(self):
    """Seeds that are all alike: the interval is that of a paired t-test."""
    rng = np.random.default_rng(0)
    user = rng.normal(scale=5, size=400)  # Common to both; cancels.
    gap = rng.normal(1.0, 1.0, 400)
    found = bootstrap.difference(
      np.tile(user + gap, (3, 1)),
      np.tile(user, (3, 1)),
      resamples=20_000,
      seed=0,
    )
    self.assertAlmostEqual(found["mean"], gap.mean(), places=9)
    expected = Z * gap.std() / np.sqrt(400)
    self.assertAlmostEqual(_half(found) / expected, 1, delta=0.03)

  def test_seeds_alone(self):
    """Sessions that are all alike: variances of both means of seeds add up."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(3, 1, 40), rng.normal(1, 2, 60)
    found = bootstrap.difference(
      np.tile(a[:, None], 9), np.tile(b[:, None], 9), resamples=20_000, seed=0
    )
    self.assertAlmostEqual(found["mean"], a.mean() - b.mean(), places=9)
    error = np.sqrt(a.var(ddof=1) / 40 + b.var(ddof=1) / 60)
    self.assertAlmostEqual(_half(found) / (Z * error), 1, delta=0.03)

  def test_both(self):
    """Session and seed effects that add up: their variances do, too."""
    rng = np.random.default_rng(2)
    seeds, sessions = rng.normal(size=(40, 1)), rng.normal(size=(1, 300)) * 3
    found = bootstrap.difference(
      seeds + sessions, np.zeros((1, 300)), resamples=20_000, seed=0
    )
    error = np.sqrt(seeds.var(ddof=1) / 40 + sessions.var() / 300)
    self.assertAlmostEqual(_half(found) / (Z * error), 1, delta=0.03)

  def test_few_seeds_cover_no_difference(self):
    """Five seeds each and no true difference; 95 % would be ideal."""
    covered = 0
    for trial in range(300):
      rng = np.random.default_rng(trial)
      user = rng.normal(scale=3, size=100)
      a, b = (
        user + rng.normal(size=(5, 1)) + rng.normal(size=(5, 100))
        for _ in range(2)
      )
      low, high = bootstrap.difference(a, b, resamples=400, seed=trial)["ci95"]
      covered += low <= 0 <= high
    self.assertBetween(covered / 300, 0.88, 0.99)

  def test_a_policy_against_itself(self):
    one = np.random.default_rng(3).normal(size=(1, 50))
    found = bootstrap.difference(one, one, resamples=100, seed=0)
    self.assertEqual(found, {"mean": 0.0, "ci95": [0.0, 0.0]})


if __name__ == "__main__":
  absltest.main()
