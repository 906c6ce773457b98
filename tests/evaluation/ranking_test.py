"""Ranks and measures against sorting in plain Python."""

import math

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.evaluation import ranking


def _case(seed=0, users=30, items=12, seen=4):
  rng = np.random.default_rng(seed)
  scores = rng.integers(0, 6, (users, items + 1)).astype("f")  # Many ties.
  scores[:, 0] = 9.0  # Padding would win.
  target = rng.integers(1, items + 1, users)
  return scores, target, rng.integers(0, items + 1, (users, seen))


def _lists(scores, target, excluded):
  """All items of each user, best first, by sorting."""
  for row, own, seen in zip(scores, target, excluded, strict=True):
    allowed = [
      i for i in range(1, len(row)) if i == own or i not in seen.tolist()
    ]
    yield sorted(allowed, key=lambda i, row=row: (-row[i], i))


class RankingTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_ranks_are_places_in_the_sorted_list(self, with_seen):
    scores, target, excluded = _case()
    if with_seen:
      excluded = np.zeros_like(excluded)
    expected = [
      ranked.index(own) + 1
      for ranked, own in zip(
        _lists(scores, target, excluded), target.tolist(), strict=True
      )
    ]
    found = ranking.ranks(scores, target, None if with_seen else excluded)
    np.testing.assert_array_equal(found, expected)

  @parameterized.parameters(True, False)
  def test_ranks_in_lists(self, with_seen):
    scores, target, excluded = _case(1)
    nobody = np.zeros_like(excluded)
    lists = [x[:5] for x in _lists(scores, target, nobody)]
    lists[3][2:] = [0, 0, 0]
    expected = []
    for row, own, seen in zip(lists, target, excluded, strict=True):
      seen = [] if with_seen else [i for i in seen if i != own]
      kept = [i for i in row if i and i not in seen]
      expected.append(kept.index(own) + 1 if own in kept else 0)
    found = ranking.list_ranks(
      np.asarray(lists), target, None if with_seen else excluded
    )
    np.testing.assert_array_equal(found, expected)
    self.assertContainsSubset([0, 1, 2], expected)

  def test_measures_are_those_by_hand(self):
    measures = ranking.measures(np.asarray([1, 5, 6, 0, 21]), (5, 20))
    self.assertEqual(measures["recall@5"].tolist(), [1, 1, 0, 0, 0])
    self.assertEqual(measures["recall@20"].tolist(), [1, 1, 1, 0, 0])
    np.testing.assert_allclose(
      measures["ndcg@20"],
      [1, math.log(2) / math.log(6), math.log(2) / math.log(7), 0, 0],
    )
    np.testing.assert_allclose(measures["ndcg@5"][2:], 0)

  def test_popularity_counts(self):
    items = np.asarray([[0, 0, 2], [1, 2, 4]])
    self.assertEqual(ranking.popularity(items, 5).tolist(), [0, 1, 2, 0, 1, 0])


if __name__ == "__main__":
  absltest.main()
