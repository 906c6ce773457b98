"""Served slates that are drawn: how often they come is what they say."""

import itertools
import pathlib
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from scipy import stats

from hsrl_jax import serving
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.errors import InputError
from tests import toy
from tests.serving import toy_export

ON_POLICY = {"recipe": "on_policy", "segment": 4, "minibatches": 2}
LEFT, BATCH, CALLS = (2, 5, 17, 23, 38), 1024, 16
HISTORY, PROFILE = [4, 7, 17], [0.5, -0.5, 0.2, 1.0]


def _seeds(query, count, number):
  """The same request with other random bits, so often."""
  seeds = np.random.default_rng(number).integers(
    0, 2**32, (count, 2), np.uint32
  )
  return [query._replace(seed=seed) for seed in seeds]


def _load(folder, search_from=10**6, sizes=(BATCH,), **overrides):
  """An export with five items left, and its recommender."""
  with mock.patch.object(hsrl, "SEARCH_FROM", search_from):
    exported = toy_export.make(folder, **overrides)
  gone = [i for i in range(1, toy.ITEMS + 1) if i not in LEFT]
  catalogue = exported.catalogue.remove_items(gone)
  return exported, serving.load(folder, sizes).with_catalogue(catalogue)


class FrequenciesTest(parameterized.TestCase):
  def _check(self, temperature=0.7, **overrides):
    """Frequencies of all slates of five items; returns the slates drawn."""
    folder = pathlib.Path(self.create_tempdir().full_path) / "export"
    exported, recommender = _load(folder, **overrides)
    query = recommender.query(HISTORY, PROFILE, temperature=temperature)
    drawn = [
      recommender.decode(_seeds(query, BATCH, call)) for call in range(CALLS)
    ]
    slates = serving.Recommendations(
      *(np.concatenate(x) for x in zip(*drawn, strict=True))
    )
    self.assertTrue(slates.valid.all())
    said = {}
    for slate, places in zip(
      slates.items.tolist(), slates.propensity.astype(float), strict=True
    ):
      before = said.setdefault(tuple(slate), places.prod())
      self.assertAlmostEqual(before, places.prod(), places=6)
    all_slates = set(itertools.permutations(LEFT, toy.SLATE))
    self.assertContainsSubset(said.keys(), all_slates)
    count = len(slates.items)
    # What did not come is unlikely, and all together are one.
    self.assertLess(abs(sum(said.values()) - 1), 5 / count**0.5)
    often = {x: 0 for x in said}
    for slate in slates.items.tolist():
      often[tuple(slate)] += 1
    likely = [x for x in said if said[x] * count >= 8]
    expected = np.array([said[x] * count for x in likely])
    seen = np.array([often[x] for x in likely])
    self.assertGreater(len(likely), 10)
    expected = np.append(expected, max(count - expected.sum(), 1))
    seen = np.append(seen, count - seen.sum())
    statistic = ((seen - expected) ** 2 / expected).sum()
    self.assertGreater(stats.chi2.sf(statistic, len(likely)), 1e-4)
    best = recommender.decode([recommender.query(HISTORY, PROFILE)])
    np.testing.assert_array_equal(best.propensity, np.ones((1, toy.SLATE)))
    live = exported.live(
      recommender.catalogue,
      *toy_export.padded([HISTORY], [PROFILE], [[]]),
    )
    np.testing.assert_array_equal(best.items, live[0])
    return slates

  def test_frequencies_are_the_propensities(self):
    self._check()

  @pytest.mark.slow
  def test_frequencies_are_the_propensities_of_all_kinds(self):
    for overrides in (
      dict(search_from=1),
      dict(search_from=1, beams=4, temperature=2.0),
      dict(temperature=40.0, **ON_POLICY),
      dict(agent="ppo", temperature=60.0, **ON_POLICY),
      dict(slates="independent", temperature=40.0, **ON_POLICY),
      dict(agent="popularity"),
      dict(agent="sasrec", temperature=3.0),
      dict(agent="a2c"),
      dict(agent="ddpg"),
      dict(agent="cql", temperature=5.0),
      dict(agent="pgra"),
      dict(agent="wolpertinger", temperature=1.0),
    ):
      with self.subTest(str(overrides)):
        self._check(**overrides)


class DrawnTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    name = cls.enterClassContext(tempfile.TemporaryDirectory())
    _, cls.recommender = _load(pathlib.Path(name) / "export", sizes=(4,))

  def test_a_draw_is_by_log_pi(self):
    """Propensities of a scoring agent, from its log pi by the definition."""
    recommender = self.recommender
    query = recommender.query(HISTORY, PROFILE, temperature=0.5)
    slates = recommender.decode(_seeds(query, 40, 0))
    log_pi = dict(
      zip(slates.items.ravel(), slates.log_probs.ravel(), strict=True)
    )
    self.assertCountEqual(log_pi, LEFT)
    for slate, said in zip(slates.items, slates.propensity, strict=True):
      left = {x: np.exp(float(y) / 0.5) for x, y in log_pi.items()}
      for item, propensity in zip(slate, said, strict=True):
        self.assertAlmostEqual(
          propensity, left[item] / sum(left.values()), places=5
        )
        del left[item]

  def test_a_batch_mixes_temperatures(self):
    recommender = self.recommender
    best = recommender.query(HISTORY, PROFILE)
    alone = recommender.decode([best])
    drawn = recommender.query(HISTORY, PROFILE, temperature=2.0)
    mixed = recommender.decode([best, *_seeds(drawn, 2, 3), best])
    for row in (0, 3):
      for one, other in zip(alone, mixed, strict=True):
        np.testing.assert_array_equal(one[0], other[row])
    self.assertLess(mixed.propensity[1:3].max(), 1)
    again = recommender.decode(_seeds(drawn, 2, 3))
    np.testing.assert_array_equal(again.items, mixed.items[1:3])

  def test_first_places_alone(self):
    recommender = self.recommender
    query = recommender.query(HISTORY, PROFILE, temperature=1.0)
    whole = recommender.decode([query])
    two = recommender.decode([query._replace(k=np.int32(2))])
    np.testing.assert_array_equal(two.items[:, :2], whole.items[:, :2])
    self.assertEqual(two.items[0, 2], 0)
    self.assertEqual(two.propensity[0, 2], 0)
    self.assertEqual(two.log_probs[0, 2], -np.inf)
    self.assertEqual(two.valid.tolist(), [[True, True, False]])
    self.assertTrue((two.sids[0, 2] == -1).all())
    # Each request has random bits of its own.
    seeds = [
      recommender.query(HISTORY, PROFILE, temperature=1.0).seed.tolist()
      for _ in range(2)
    ]
    self.assertNotEqual(*seeds)
    for bad, what in (
      (dict(temperature=-1), "temperature is -1; expected 0 for"),
      (dict(temperature=1e-9), "temperature is 1e-09; expected 0 for"),
      (dict(temperature=float("nan")), "temperature is nan"),
      (dict(temperature="1"), "temperature is '1'; expected numbers"),
      (dict(temperature=True), "temperature is True"),
      (dict(k=0), "k is 0; expected an integer from 1 to 3"),
      (dict(k=4), "k is 4"),
      (dict(k=1.0), "k is 1.0"),
      (dict(k=True), "k is True"),
    ):
      with self.assertRaisesRegex(InputError, what):
        recommender.query(HISTORY, PROFILE, **bad)


if __name__ == "__main__":
  absltest.main()
