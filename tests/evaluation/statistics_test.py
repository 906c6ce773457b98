"""Statistics against a bootstrap, a simulation, and numbers by hand."""

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from scipy import stats

from hsrl_jax.evaluation import statistics

Z = stats.norm.ppf(0.975)


_MIXED = (3.0, 1.0, 0.3, 1.0, 3.0)


def _drawn(seed, seeds, users, spread, others=None):
  """Sessions of two policies, two a user; who they are is in the order.

  Args:
    seed: of the draws.
    seeds: S, of the first policy.
    users: U.
    spread: standard deviations of users, of their taste for a policy, of seeds,
      of seed and user together, and of sessions; the latter are skewed.
    others: seeds of the second policy; None: S. One has no effect of its own.

  Returns:
    [S, 2 U] of each policy, whose true means are the same.
  """
  rng = np.random.default_rng(seed)
  user, own, of_seed, both, noise = spread
  common = user * rng.normal(size=users)
  made = []
  for count in (seeds, others or seeds):
    x = common + own * rng.normal(size=users)
    x = x + of_seed * rng.normal(size=(count, 1)) * (count > 1)
    x = x + both * rng.normal(size=(count, users))
    luck = rng.exponential(size=(count, 2 * users)) - 1
    made.append(np.repeat(x, 2, 1) + noise * luck)
  return made


def _coverage(users, spread, others, trials):
  """How often the interval of no difference contains 0; ten seeds."""
  who, covered = np.repeat(np.arange(users), 2), 0
  for trial in range(trials):
    a, b = _drawn(trial, 10, users, spread, others)
    low, high = statistics.difference(a, b, who, resamples=400, seed=trial)[
      "ci95"
    ]
    covered += low <= 0 <= high
  return covered / trials


def _half(found):
  return (found["ci95"][1] - found["ci95"][0]) / 2


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


class SummaryTest(absltest.TestCase):
  def test_summary_of_one_seed_is_over_sessions(self):
    x = np.random.default_rng(0).normal(size=200)
    got = statistics.summarise([x])
    low, high = stats.t.interval(0.95, 199, x.mean(), stats.sem(x))
    np.testing.assert_allclose(got["ci95"], [low, high])
    self.assertLen(got["per_seed"], 1)

  def test_summary_of_seeds_is_over_their_means(self):
    seeds = [np.array([1.0, 3]), np.array([2.0, 4]), np.array([3.0, 8])]
    got = statistics.summarise(seeds)
    means = [2.0, 3.0, 5.5]
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    np.testing.assert_allclose(got["ci95"], [low, high])
    self.assertAlmostEqual(got["mean"], 3.5)
    self.assertEqual(got["per_seed"], means)

  def test_sessions_of_a_user_are_no_news(self):
    """Each session three times over: the interval is that of one of each."""
    x = np.random.default_rng(0).normal(size=200)
    user = np.arange(200)
    got = statistics.summarise([np.tile(x, 3)], np.tile(user, 3))
    np.testing.assert_allclose(got["ci95"], statistics.summarise([x])["ci95"])

  def test_users_with_more_sessions_count_more(self):
    # Means of users 2 and 6; the mean of the sessions is 3.
    got = statistics.by_user([[1.0, 2, 3, 6]], np.array([5, 5, 5, 9]))
    # By hand: 3 + (6 - 3 * 3) / 2 and 3 + (6 - 3) / 2.
    np.testing.assert_allclose(got, [[1.5, 4.5]])

  def test_perplexity_of_even_and_of_one(self):
    self.assertAlmostEqual(statistics.perplexity(np.array([7, 7, 0, 7])), 3.0)
    self.assertAlmostEqual(statistics.perplexity(np.array([0, 5])), 1.0)


class DifferenceTest(parameterized.TestCase):
  def test_sessions_alone(self):
    """Seeds that are all alike: the interval is that of a paired t-test."""
    rng = np.random.default_rng(0)
    user = rng.normal(scale=5, size=400)  # Common to both; cancels.
    gap = rng.normal(1.0, 1.0, 400)
    found = statistics.difference(
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
    found = statistics.difference(
      np.tile(a[:, None], 9), np.tile(b[:, None], 9), resamples=20_000, seed=0
    )
    self.assertAlmostEqual(found["mean"], a.mean() - b.mean(), places=9)
    error = np.sqrt(a.var(ddof=1) / 40 + b.var(ddof=1) / 60)
    self.assertAlmostEqual(_half(found) / (Z * error), 1, delta=0.03)

  def test_both(self):
    """Session and seed effects that add up: their variances do, too."""
    rng = np.random.default_rng(2)
    seeds, sessions = rng.normal(size=(40, 1)), rng.normal(size=(1, 300)) * 3
    found = statistics.difference(
      seeds + sessions, np.zeros((1, 300)), resamples=20_000, seed=0
    )
    error = np.sqrt(seeds.var(ddof=1) / 40 + sessions.var() / 300)
    self.assertAlmostEqual(_half(found) / (Z * error), 1, delta=0.03)

  def test_users_are_paired_and_their_sessions_dependent(self):
    """One seed each: the interval is that of a t-test of users' means."""
    rng = np.random.default_rng(3)
    user, sessions = rng.permutation(np.repeat(np.arange(80), 4)), (1, 320)
    gap = rng.normal(0.5, 1.0, 80)
    base = rng.normal(size=sessions)
    found = statistics.difference(
      base + gap[user], base, user, resamples=20_000, seed=0
    )
    low, high = stats.t.interval(0.95, 79, gap.mean(), stats.sem(gap))
    np.testing.assert_allclose(found["ci95"], [low, high], atol=0.015)

  def test_the_error_is_that_of_the_components(self):
    """Against the truth of the model, on the mean of many draws."""
    a, b = zip(*(_drawn(x, 6, 50, _MIXED) for x in range(300)), strict=True)
    user, own, seed, both, noise = _MIXED
    # Of the two policies: own tastes of users, seeds, and what is left.
    rest = both**2 + noise**2 / 2
    want = 2 * (own**2 / 50 + seed**2 / 6 + rest / (6 * 50))
    got = np.mean(
      [
        statistics.error(
          *(statistics.by_user(x, np.repeat(range(50), 2)) for x in pair)
        )[0]
        ** 2
        for pair in zip(a, b, strict=True)
      ]
    )
    np.testing.assert_allclose(got, want, rtol=0.1)

  @parameterized.named_parameters(
    ("few", 200, _MIXED, 10, 60),
    ("against_a_bound", 200, _MIXED, 1, 60),
  )
  def test_coverage_at_a_glance(self, users, spread, others, trials):
    covered = _coverage(users, spread, others, trials)
    self.assertBetween(covered, 0.85, 1.0)

  @parameterized.parameters(
    (200, _MIXED, 10),
    (600, _MIXED, 10),
    (200, _MIXED, 1),
    # Seeds alone, luck alone, and the users' taste alone.
    (200, (3.0, 0.3, 1.0, 0.3, 1.0), 10),
    (200, (3.0, 0.0, 0.0, 0.0, 3.0), 10),
    (200, (3.0, 3.0, 0.05, 0.5, 1.0), 10),
  )
  @pytest.mark.slow
  def test_coverage(self, users, spread, others):
    """Ten seeds, and ten or one of the other; the truth is no difference."""
    covered = _coverage(users, spread, others, trials=250)
    # 0.93 to 0.97, and twice the error of the simulation.
    self.assertBetween(covered, 0.9, 0.995)

  def test_a_policy_against_itself(self):
    one = np.random.default_rng(3).normal(size=(1, 50))
    found = statistics.difference(one, one, resamples=100, seed=0)
    self.assertEqual(found, {"mean": 0.0, "ci95": [0.0, 0.0]})


if __name__ == "__main__":
  absltest.main()
