"""Held-out measures against other libraries, brute force and hand counts."""

from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats
from sklearn import metrics as sk_metrics

from hsrl_jax.evaluation import held_out, ranking
from hsrl_jax.types import Sessions


def _sessions(seed=0, rows=60, width=5, items=30, users=12) -> Sessions:
  rng = np.random.default_rng(seed)
  history = rng.integers(1, items + 1, (rows, 4)).astype(np.int32)
  history[rng.random(history.shape) < 0.3] = 0
  return Sessions(
    rng.integers(1, users + 1, rows).astype(np.int32),
    rng.normal(size=(rows, 2)).astype(np.float32),
    history,
    np.stack([rng.permutation(items)[:width] + 1 for _ in range(rows)]).astype(
      np.int32
    ),
    (rng.random((rows, width)) < 0.4).astype(np.float32),
  )


class RankTest(parameterized.TestCase):
  def _check(self, top, scores, active, out):
    order = [i for i in np.argsort(-scores) if active[i] and i not in out]
    np.testing.assert_array_equal(top, order[:20])

  @parameterized.parameters(True, False)
  def test_best_items_by_brute_force(self, without_history):
    sessions, items = _sessions(rows=7), 30
    table = np.random.default_rng(1).normal(size=(items + 1, 2))
    active = np.arange(items + 1) > 0
    active[[3, 9]] = False

    def score(params, observation):
      return params @ observation.profile

    rankings = ranking.rank(
      ranking.of_scores(score, active),
      jnp.asarray(table, jnp.float32),
      sessions,
      items,
      sessions.history if without_history else None,
    )
    self.assertEqual(rankings.top_of_all is None, not without_history)
    for row in range(7):
      scores = (table @ sessions.profile[row]).astype(np.float32)
      np.testing.assert_allclose(
        rankings.shown[row], scores[sessions.exposed[row]], rtol=1e-5
      )
      if without_history:
        history = set(sessions.history[row])
        self._check(rankings.top[row], scores, active, history)
        self._check(rankings.top_of_all[row], scores, active, set())
      else:
        self._check(rankings.top[row], scores, active, set())

  def test_padding_is_never_ranked(self):
    sessions = _sessions(rows=3, items=6, width=2)
    ranker = ranking.of_scores(ranking._constant, np.arange(7) > 4)
    top = ranking.best(ranker, jnp.ones(7), sessions, 6, None)
    np.testing.assert_array_equal(
      np.sort(top, 1), np.tile([0, 0, 0, 0, 5, 6], (3, 1))
    )

  def test_rows_that_fill_no_chunk(self):
    """The last chunk is filled up; each row is still its own."""
    sessions = _sessions(rows=7)

    def shown(params, observation, items):
      del observation
      return params * items

    ranker = ranking.Ranker(
      shown, lambda params, observation, excluded: observation.history[-2:]
    )
    with mock.patch.object(ranking, "_CELLS", 3 * 31):  # Chunks of 3 rows.
      rankings = ranking.rank(ranker, jnp.float32(2), sessions, 30, None)
    np.testing.assert_array_equal(rankings.shown, 2 * sessions.exposed)
    np.testing.assert_array_equal(rankings.top, sessions.history[:, -2:])


class WithinSlatesTest(absltest.TestCase):
  def test_auc_and_ndcg_are_those_of_scikit_learn(self):
    sessions = _sessions()
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 3, sessions.response.shape).astype(float)  # Ties.
    measured = held_out.within_slates(
      scores, sessions.response, sessions.user_id
    )
    for row, (y, x) in enumerate(zip(sessions.response, scores, strict=True)):
      if 0 < y.sum() < len(y):
        self.assertAlmostEqual(
          measured["auc_within_slates"].value[row],
          sk_metrics.roc_auc_score(y, x),
        )
      else:
        self.assertTrue(np.isnan(measured["auc_within_slates"].value[row]))
      if y.sum():
        self.assertAlmostEqual(
          measured["ndcg_within_slates"].value[row],
          sk_metrics.ndcg_score(y[None], x[None]),
        )

  def test_first_item_by_hand(self):
    scores = np.array([[2.0, 2.0, 1.0], [0.0, 3.0, 1.0]])
    liked = np.array([[1, 0, 1], [1, 0, 0]])
    measured = held_out.within_slates(scores, liked, np.array([1, 2]))
    np.testing.assert_allclose(measured["liked_first"].value, [0.5, 0.0])

  def test_slates_of_one_item_are_joined_by_user(self):
    scores = np.array([[0.1], [0.9], [0.5], [0.7]])
    liked = np.array([[0], [1], [1], [0]])
    user = np.array([4, 4, 7, 7])
    measured = held_out.within_slates(scores, liked, user)["auc_within_slates"]
    np.testing.assert_allclose(measured.value, [1.0, 0.0])
    np.testing.assert_array_equal(measured.user, [4, 7])


class NextLikedTest(absltest.TestCase):
  def test_recall_and_ndcg_by_hand(self):
    sessions = Sessions(
      np.array([1, 2, 3]),
      np.zeros((3, 0)),
      np.zeros((3, 1), np.int32),
      np.array([[1, 2], [3, 4], [5, 6]]),
      np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]),
    )
    top = np.zeros((3, 20), np.int64)
    top[0, :3] = [9, 1, 8]  # One of two likes, second.
    top[1, 7] = 4  # The like, eighth.
    measured = held_out.next_liked(top, sessions, np.ones(10))
    np.testing.assert_allclose(measured["recall@5"].value, [0.5, 0, np.nan])
    np.testing.assert_allclose(measured["recall@10"].value, [0.5, 1, np.nan])
    gain = 1 / np.log2(3)
    np.testing.assert_allclose(
      measured["ndcg@10"].value, [gain / (1 + gain), 1 / np.log2(9), np.nan]
    )
    # All items were liked as often: log2 of 9 of them.
    np.testing.assert_allclose(
      measured["novelty"].value[:2], np.log2(9.5 * 2) - 1, atol=0.2
    )


class ListsTest(absltest.TestCase):
  def test_counts_by_hand(self):
    train = Sessions(
      np.array([1, 1]),
      np.zeros((2, 0)),
      np.zeros((2, 1), np.int32),
      np.array([[1, 2], [1, 3]]),
      np.array([[1.0, 0.0], [1.0, 0.0]]),
    )
    np.testing.assert_allclose(ranking.popularity(train, 4)[1], [0, 2, 0, 0, 0])
    np.testing.assert_allclose(
      ranking.item_mean(train, 4)[1],
      [0.5, 7 / 12, 5 / 11, 5 / 11, 0.5],
      rtol=1e-6,
    )

  def test_repeats_are_found(self):
    sessions = _sessions()
    self.assertTrue(ranking.repeats(sessions))
    fresh = sessions._replace(history=np.zeros_like(sessions.history))
    self.assertFalse(ranking.repeats(fresh))


class IntervalsTest(absltest.TestCase):
  def test_one_row_a_user_is_students_interval(self):
    values = np.random.default_rng(0).normal(size=40)
    result = held_out.mean([held_out.Measured(values, np.arange(40))])
    self.assertAlmostEqual(result["mean"], values.mean())
    np.testing.assert_allclose(
      result["ci95"],
      stats.t.interval(0.95, 39, values.mean(), stats.sem(values)),
    )

  def test_rows_of_a_user_are_one_unit(self):
    values = np.repeat(np.random.default_rng(0).normal(size=40), 5)
    once = held_out.mean([held_out.Measured(values[::5], np.arange(40))])
    five = held_out.mean(
      [held_out.Measured(values, np.repeat(np.arange(40), 5))]
    )
    np.testing.assert_allclose(five["ci95"], once["ci95"])

  def test_the_interval_covers_the_truth(self):
    # Users and seeds both vary; 600 trials of 10 seeds and 50 users.
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(600):
      user = np.repeat(np.arange(50), 3)
      rows = rng.normal(size=50)[user] + rng.normal(size=150)
      seeds = [
        held_out.Measured(rows + 0.3 * rng.normal(), user) for _ in range(10)
      ]
      low, high = held_out.mean(seeds)["ci95"]
      inside += low <= 0 <= high
    self.assertBetween(inside / 600, 0.93, 0.97)

  def test_coverage_is_the_jackknife(self):
    rng = np.random.default_rng(4)
    top, user = rng.integers(0, 60, (30, 20)), rng.integers(0, 9, 30)
    result = held_out.coverage([top], user, 60)

    def share(rows):
      return len(set(top[rows, :10].ravel()) - {0}) / 60

    self.assertAlmostEqual(result["mean"], share(np.full(30, True)))
    users = np.unique(user)
    without = np.array([share(user != x) for x in users])
    error = ((len(users) - 1) * without.var()) ** 0.5
    half = stats.t.ppf(0.975, len(users) - 1) * error
    self.assertAlmostEqual(result["ci95"][1] - result["mean"], half)

  def test_the_most_shown_item(self):
    top = np.zeros((4, 20), np.int64)
    top[:3, 0], top[3, 0] = 5, 6
    result = held_out.top_item_share([top], np.arange(4))
    self.assertAlmostEqual(result["mean"], 0.75)


class MeasureTest(absltest.TestCase):
  def test_the_reference_is_compared_on_the_same_rows(self):
    sessions = _sessions()
    train = _sessions(seed=5)
    lists = {
      "good": (ranking._constant, jnp.arange(31.0)),
      "item_mean": ranking.item_mean(train, 30),
    }
    rankings = {
      name: [
        ranking.rank(
          ranking.of_scores(score, np.arange(31) > 0),
          params,
          sessions,
          30,
          sessions.history,
        )
      ]
      for name, (score, params) in lists.items()
    }
    result = held_out.measure(rankings, sessions, train, 30, "good")
    self.assertEqual(set(result["held_out"]), {"good", "item_mean"})
    for name in ("auc_within_slates", "recall@10"):
      ours, theirs = (
        result["held_out"][x][name]["mean"] for x in ("good", "item_mean")
      )
      self.assertAlmostEqual(
        result["held_out_differences"]["item_mean"][name]["mean"], ours - theirs
      )

  def test_intervals_of_shares_are_within_0_and_1(self):
    # One of four users has the item that was liked; another list has all.
    sessions = Sessions(
      np.arange(4),
      np.zeros((4, 0)),
      np.zeros((4, 1), int),
      np.tile([1, 2], (4, 1)),
      np.tile([1.0, 0.0], (4, 1)),
    )
    top = np.array([[1], [2], [2], [3]])
    own = ranking.Rankings(np.zeros((4, 2)), top)
    measured = held_out.measure({"own": [own]}, sessions, sessions, 3, "own")
    for name, found in measured["held_out"]["own"].items():
      low, high = found["ci95"]
      self.assertLessEqual(low, found["mean"], name)
      if name != "novelty":
        self.assertBetween(low, 0, 1, name)
        self.assertBetween(high, 0, 1, name)
    self.assertEqual(measured["held_out"]["own"]["recall@10"]["ci95"][0], 0)
    self.assertEqual(measured["held_out"]["own"]["coverage"]["ci95"][1], 1)

  def test_the_logging_policy_ranks_what_it_showed_alone(self):
    sessions = _sessions()
    self.assertIsNone(ranking.logging_policy(sessions))
    place = np.tile(np.arange(5), (60, 1))
    by_place = ranking.logging_policy(sessions._replace(position=place))
    drawn = np.random.default_rng(2).random((60, 5))
    by_chance = ranking.logging_policy(
      sessions._replace(position=place, propensity=drawn)
    )
    for rankings, scores in ((by_place, -place), (by_chance, drawn)):
      measured = held_out.measure(
        {"logging_policy": [rankings]}, sessions, sessions, 30, "logging_policy"
      )["held_out"]["logging_policy"]
      user = sessions.user_id
      rows = held_out.within_slates(scores, sessions.response, user)
      for name in ("auc_within_slates", "ndcg_within_slates"):
        self.assertEqual(measured[name], held_out.mean([rows[name]]))
      self.assertNotIn("recall@10", measured)
      self.assertNotIn("coverage", measured)

  def test_recall_with_the_history_stands_beside_recall_without(self):
    sessions = Sessions(
      np.array([1, 2]),
      np.zeros((2, 0)),
      np.array([[3], [4]]),
      np.array([[3, 1], [2, 1]]),
      np.array([[1.0, 0.0], [1.0, 0.0]]),
    )
    # Item 3 was liked again: only a ranking with the history can find it.
    own = ranking.Rankings(
      np.zeros((2, 2)), np.array([[1, 2], [2, 3]]), np.array([[3, 1], [4, 2]])
    )
    measured = held_out.measure({"own": [own]}, sessions, sessions, 4, "own")
    measured = measured["held_out"]["own"]
    self.assertEqual(measured["recall@10"]["mean"], 0.5)
    self.assertEqual(measured["recall@10_with_history"]["mean"], 1.0)
    gain = (1 + 1 / np.log2(3)) / 2
    self.assertAlmostEqual(measured["ndcg@10_with_history"]["mean"], gain)
    plain = own._replace(top_of_all=None)
    measured = held_out.measure({"own": [plain]}, sessions, sessions, 4, "own")
    names = [x for x in measured["held_out"]["own"] if "with_history" in x]
    self.assertEmpty(names)


if __name__ == "__main__":
  absltest.main()
