"""Statistics against a bootstrap, a simulation, and numbers by hand."""

import numpy as np
from absl.testing import absltest
from scipy import stats

from hsrl_jax.evaluation import statistics


class StatisticsTest(absltest.TestCase):
  def test_sums_by_group(self):
    got = statistics.by_group(np.array([1.0, 2, 4, 8]), np.array([7, 3, 7, 5]))
    np.testing.assert_array_equal(got, [2, 8, 5])

  def test_error_of_a_ratio_is_that_of_a_bootstrap(self):
    rng = np.random.default_rng(0)
    below = rng.integers(1, 6, 400).astype(float)
    above = below * rng.normal(2, 1, 400) + rng.normal(0, 1, 400)
    value, influence = statistics.ratio(above, below)
    self.assertAlmostEqual(value, above.sum() / below.sum())
    self.assertAlmostEqual(influence.mean(), 0.0)
    rows = rng.integers(0, 400, (4000, 400))
    drawn = above[rows].sum(1) / below[rows].sum(1)
    np.testing.assert_allclose(
      statistics.standard_error(influence), drawn.std(), rtol=0.05
    )

  def test_with_one_session_each_it_is_students_test(self):
    x = np.random.default_rng(1).normal(0.2, 1, 50)
    value, influence = statistics.ratio(x, np.ones(50))
    error = statistics.standard_error(influence)
    want = stats.ttest_1samp(x, 0)
    self.assertAlmostEqual(statistics.p_value(value, error, 50), want.pvalue)
    np.testing.assert_allclose(
      statistics.interval(value, error, 50), want.confidence_interval(0.95)
    )

  def test_nothing_that_varies(self):
    self.assertEqual(statistics.p_value(0.0, 0.0, 5), 1.0)
    self.assertEqual(statistics.p_value(0.1, 0.0, 5), 0.0)
    self.assertEqual(statistics.standard_error(np.array([3.0])), 0.0)

  def test_holm_by_hand(self):
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (the larger before it), 0.5 * 1.
    np.testing.assert_allclose(
      statistics.holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06]
    )
    np.testing.assert_allclose(statistics.holm([0.9, 0.8]), [1.0, 1.0])

  def test_the_sample_size_gives_its_power(self):
    # Two arms of 0 and 1, as conversions are, simulated again and again.
    rates = np.array([0.30, 0.36])
    size = statistics.sample_size(
      rates[1] - rates[0], tuple(rates * (1 - rates))
    )
    rng = np.random.default_rng(2)

    def power(size):
      share = rng.binomial(size, rates[:, None], (2, 20_000)) / size
      error = np.sqrt((share * (1 - share)).sum(0) / size)
      return (np.abs(share[1] - share[0]) / error > 1.959964).mean()

    self.assertAlmostEqual(power(size), 0.8, delta=0.015)
    self.assertLess(power(size // 2), 0.6)
    self.assertIsNone(statistics.sample_size(0.0, (1.0, 1.0)))


if __name__ == "__main__":
  absltest.main()
