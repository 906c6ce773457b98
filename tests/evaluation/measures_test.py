"""Measures of sessions against sessions counted by hand."""

import json
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest
from scipy import stats

from hsrl_jax import sid
from hsrl_jax.evaluation import measures, simulate, statistics
from hsrl_jax.report import run_page


def _policies(random, oracle, trained):
  """Sessions with these total rewards, by policy; two seeds of `trained`."""

  def sessions(total):
    two = np.full(len(total), 2.0, np.float32)
    shown = np.ones((len(total), 2, 3), np.int32)
    return simulate.Simulated(np.float32(total), two, two, shown, shown * 0.0)

  return {
    "random": [sessions(random)],
    "greedy_oracle": [sessions(oracle)],
    "hsrl": [sessions(x) for x in trained],
  }


class MeasuresTest(absltest.TestCase):
  def test_kept_sessions_name_users_and_count_liked_slates(self):
    responses = np.zeros((3, 2, 2))
    responses[0, 0] = 1  # One slate, both items.
    responses[2, :, 1] = 1  # Two slates, an item of each.
    total = np.arange(3.0)
    sessions = simulate.Simulated(total, total, total, responses, responses)
    path = pathlib.Path(self.create_tempdir()) / "sessions.npz"
    measures.save(path, {"hsrl": [sessions, sessions]}, np.array([7, 9, 7]))
    with np.load(path) as file:
      np.testing.assert_array_equal(file["user"], [7, 9, 7])
      np.testing.assert_array_equal(
        file["hsrl/liked_slates"], [[1, 0, 2], [1, 0, 2]]
      )

  def test_code_usage(self):
    tokens = np.array([[0, 1], [2, 0], [0, 3]])
    index = sid.build_index(tokens, vocab_size=4, capacity=5)
    shown = [np.array([[1, 2], [3, 0]]), np.array([[3, 3]])]
    expected = np.zeros((2, 4), int)
    for item in (1, 2, 3, 3, 3):
      for level in range(2):
        expected[level, tokens[item - 1, level]] += 1
    counts = measures.code_usage(index, shown)
    np.testing.assert_array_equal(counts, expected)
    for row in counts:
      self.assertAlmostEqual(
        statistics.perplexity(row), np.exp(stats.entropy(row / row.sum()))
      )

  def test_normalised_is_zero_at_random_and_one_at_the_oracle(self):
    table = measures.report(
      _policies([1.0, 3], [11.0, 13], [[7.0, 7], [9.0, 9]]), items=10
    )
    self.assertAlmostEqual(table["random"]["normalised"]["mean"], 0.0)
    self.assertAlmostEqual(table["greedy_oracle"]["normalised"]["mean"], 1.0)
    self.assertEqual(table["hsrl"]["normalised"]["per_seed"], [0.5, 0.7])
    np.testing.assert_allclose(table["hsrl"]["positive_share"]["mean"], 2 / 6)

  def test_published_measures_by_hand(self):
    """Sessions of 1 and 3 steps with rewards 2 and 3, then 6 and 3."""
    slates = np.array([[[5, 2], [0, 0], [0, 0]], [[2, 5], [7, 1], [9, 2]]])
    depth = np.float32([1, 3])
    greedy, first, second = (
      simulate.Simulated(np.float32(x), depth, depth, slates, slates * 0.0)
      for x in ([1, 1], [2, 3], [6, 3])
    )
    policies = {"random": [greedy], "greedy_oracle": [greedy]}
    one = measures.report(policies | {"hsrl": [first]}, items=20)["hsrl"]
    two = measures.report(policies | {"hsrl": [first, second]}, items=20)[
      "hsrl"
    ]
    # All rewards by all steps; items 1, 2, 5, 7 and 9 of 20.
    self.assertAlmostEqual(one["reward_per_step"]["mean"], 5 / 4)
    np.testing.assert_allclose(
      two["reward_per_step"]["per_seed"], [5 / 4, 9 / 4]
    )
    self.assertEqual(one["coverage"]["mean"], 0.25)
    self.assertEqual(one["coverage"]["ci95"], [None, None])
    self.assertEqual(two["coverage"]["ci95"], [0.25, 0.25])
    # Paired differences 1 and 2; Student with one degree of freedom.
    self.assertEqual(one["above_greedy"]["mean"], 1.5)
    half = 0.5 * stats.t.ppf(0.975, 1)
    np.testing.assert_allclose(
      one["above_greedy"]["ci95"], [1.5 - half, 1.5 + half]
    )
    self.assertEqual(two["above_greedy"]["per_seed"], [1.5, 3.5])

  def test_reward_a_step_has_the_interval_of_a_ratio(self):
    """Its half-width covers the truth in 95 % of 2,000 draws."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(2000):
      depth = rng.integers(1, 9, 200)
      reward = 0.5 * depth + rng.normal(size=200)
      blank = np.zeros((200, 1, 1))
      sessions = simulate.Simulated(reward, depth, depth, blank, blank)
      of = measures.MEASURES["reward_per_step"].of
      low, high = statistics.summarise([of(sessions)])["ci95"]
      hits.append(low < 0.5 < high)
    self.assertBetween(np.mean(hits), 0.935, 0.965)

  def test_one_seed_has_an_interval_over_users(self):
    """Two users, three sessions each, that are all alike: as two sessions."""
    user = np.array([4, 8, 4, 8, 4, 8])
    table = measures.report(
      _policies([1.0, 3] * 3, [11.0, 13] * 3, [[7.0, 9] * 3]), user
    )
    low, high = stats.t.interval(0.95, 1, 8, stats.sem([7, 9]))
    for name, low_, high_ in (
      ("total_reward", low, high),
      ("normalised", (low - 2) / 10, (high - 2) / 10),
    ):
      np.testing.assert_allclose(table["hsrl"][name]["ci95"], [low_, high_])

  def test_equal_bounds_have_no_scale(self):
    table = measures.report(
      _policies([1.0, 3], [2.0, 2], [[7.0, 7], [9, 9]]), items=10
    )
    self.assertEqual(json.loads(json.dumps(table, allow_nan=False)), table)
    self.assertEqual(table["hsrl"]["total_reward"]["mean"], 8.0)
    normalised = table["hsrl"]["normalised"]
    self.assertIsNone(normalised["mean"])
    self.assertEqual(normalised["per_seed"], [None, None])
    why = "random and greedy_oracle earn the same"
    self.assertEqual(normalised["withheld"], why)
    results = {"dataset": "toy", "split": "test", "protocol": "paper"}
    results |= {"episodes": 2, "seeds": [0, 1], "policies": table}
    text = run_page.table(results)
    self.assertIn(f"normalised is withheld: {why}", text)
    self.assertRegex(text, r"hsrl +8.00 .* -\n")

  def test_a_new_measure_is_one_entry(self):
    """It is in results.json, in sessions.npz and a column of the page."""
    longest = measures.Measure(lambda x: np.asarray(x.depth) * 10, "Tenfold")
    path = pathlib.Path(self.create_tempdir()) / "sessions.npz"
    policies = _policies([1.0], [5.0], [[2.0], [3.0]])
    with mock.patch.dict(measures.MEASURES, {"tenfold": longest}):
      table = measures.report(policies, items=10)
      measures.save(path, policies, np.array([7]))
      self.assertIn(("Tenfold", "tenfold", "{:.2f}"), measures.columns())
    self.assertEqual(table["hsrl"]["tenfold"]["per_seed"], [20.0, 20.0])
    saved = measures.read(path)
    np.testing.assert_array_equal(saved["hsrl/tenfold"], [[20], [20]])


if __name__ == "__main__":
  absltest.main()
