"""Tags and times in a request: no item outside, and none missing."""

import pathlib
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import serving
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.errors import InputError
from hsrl_jax.serving import folder as folder_lib
from tests import toy
from tests.serving import toy_export

NAMES = ("drama", "é", "region=EU", "new")
PROFILE = [0.5, -0.5, 0.2, 1.0]


def _tags():
  rng = np.random.default_rng(5)
  rows = [[x for x in NAMES if rng.random() < 0.4] for _ in range(toy.ITEMS)]
  return [[], *rows]


def _permitted(catalogue, include, exclude, since, seen):
  """The items that may be shown, by the names of their tags."""
  active = np.asarray(catalogue.index.active)
  result = set()
  for item in np.flatnonzero(active).tolist():
    tags = set(catalogue.tags.of(item))
    if include and not tags & set(include):
      continue
    if tags & set(exclude) or catalogue.tags.added[item] < (since or 0):
      continue
    result.add(item)
  return result - set(seen)


class ConstraintsTest(parameterized.TestCase):
  def _load(self, search_from, **overrides):
    folder = pathlib.Path(self.create_tempdir().full_path) / "export"
    with mock.patch.object(hsrl, "SEARCH_FROM", search_from):
      made = toy_export.make(folder, tags=_tags(), **overrides)
    return made, serving.load(folder, [4])

  def _check(self, recommender, count=60, temperature=0.0):
    """Random requests against the names; returns how many were short."""
    rng, short = np.random.default_rng(7), 0
    requests = []
    for _ in range(count):
      include, exclude = (
        [x for x in NAMES if rng.random() < 0.3] for _ in range(2)
      )
      since = int(rng.integers(0, 3)) if rng.random() < 0.5 else None
      seen = rng.integers(1, toy.ITEMS + 1, 4).tolist()
      requests.append((include, exclude, since, seen))
    slates = recommender.decode(
      [
        recommender.query(
          [4, 7],
          PROFILE,
          seen,
          include=include,
          exclude=exclude,
          since=since,
          temperature=temperature,
        )
        for include, exclude, since, seen in requests
      ]
    )
    for row, request in enumerate(requests):
      want = _permitted(recommender.catalogue, *request)
      shown = slates.items[row][slates.valid[row]].tolist()
      self.assertContainsSubset(set(shown), want)
      self.assertLen(set(shown), min(toy.SLATE, len(want)))
      short += len(want) < toy.SLATE
      places = slates.propensity[row]
      np.testing.assert_array_equal(places > 0, slates.valid[row])
    return short

  @parameterized.parameters(
    (1, dict(beams=3)),
    (10**6, dict()),
  )
  def test_random_requests(self, search_from, overrides):
    made, recommender = self._load(search_from, **overrides)
    self._check_nothing_said(made, recommender)
    catalogue = made.catalogue.remove_items([1, 2, 30]).add_items(
      [45, 46],
      made.catalogue.features[[3, 8]],
      tags=[["new"], ["drama", "later"]],
    )
    recommender = recommender.with_catalogue(catalogue)
    self.assertGreater(self._check(recommender), 0)
    self._check(recommender, temperature=1.0)

  @pytest.mark.slow
  def test_random_requests_to_other_agents(self):
    for search_from, overrides in (
      (10**6, toy_export.ON_POLICY),
      (1, dict(beams=512)),
      (1, dict(beams=50)),
      (1, dict(beams=3)),
      (10**6, dict(agent="popularity")),
      (10**6, dict(agent="ddpg")),
      (10**6, dict(agent="wolpertinger")),
      (10**6, dict(agent="cql")),
      (10**6, dict(agent="ppo", **toy_export.ON_POLICY)),
    ):
      with self.subTest(str(overrides)):
        self._check(self._load(search_from, **overrides)[1])

  def _check_nothing_said(self, made, recommender):
    """Rules that all items keep change nothing, and neither do no rules."""
    requests = toy_export.requests(4)
    catalogue = made.catalogue.tag_items([5], [["gone"]]).tag_items([5], [[]])
    ruled = recommender.with_catalogue(catalogue)
    rows = zip(*requests, strict=True)
    everything = ruled.decode([ruled.query(*x, exclude=["gone"]) for x in rows])
    free = recommender.recommend(*requests)
    np.testing.assert_array_equal(everything.items, free.items)
    live = made.live(made.catalogue, *toy_export.padded(*requests))[0]
    np.testing.assert_array_equal(free.items, live)


class TagsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    name = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(name) / "export"
    cls.made = toy_export.make(cls.folder, tags=_tags())
    cls.recommender = serving.load(cls.folder, [1])

  def test_tags_are_kept_in_the_file(self):
    catalogue = self.made.catalogue
    self.assertEqual(
      [sorted(catalogue.tags.of(i)) for i in range(toy.ITEMS + 1)],
      [sorted(x) for x in _tags()],
    )
    changed = catalogue.add_items(
      [41, 42], catalogue.features[[3, 4]], tags=[["x", "é"], []]
    ).add_items([43], catalogue.features[[5]], added=1_900_000_000)
    self.assertEqual(changed.tags.of(41), ["é", "x"])
    self.assertEqual(
      changed.tags.added[[40, 41, 42, 43]].tolist(), [0, 1, 1, 1_900_000_000]
    )
    back = changed.remove_items([41]).add_items(
      [41], np.zeros((1, catalogue.features.shape[1])), tags=[["drama"]]
    )
    self.assertEqual(back.tags.of(41), ["é", "x"])
    serving.write_catalogue(self.folder, changed)
    read = folder_lib.read_catalogue(
      self.folder, folder_lib.read_manifest(self.folder)
    )
    self.assertEqual(read.tags.names, changed.tags.names)
    np.testing.assert_array_equal(read.tags.words, changed.tags.words)
    np.testing.assert_array_equal(read.tags.added, changed.tags.added)
    self.assertEqual(
      self.recommender.refreshed(self.folder).catalogue.tags.of(41), ["é", "x"]
    )

  @parameterized.parameters(
    (dict(include=["x"]), "include holds 'x', which is no tag"),
    (dict(include="drama"), "include holds 'drama'; expected lists"),
    (dict(exclude=[3]), r"exclude holds \[3\]; expected lists"),
    (dict(exclude=[""]), "exclude holds"),
    (dict(since=-1), "since is -1; expected an integer from 0"),
    (dict(since=2**32 - 1), "since is 4294967295"),
    (dict(since=1.5), "since is 1.5"),
    (dict(since=True), "since is True"),
  )
  def test_bad_requests_say_why(self, given, what):
    with self.assertRaisesRegex(InputError, what):
      self.recommender.query([1], [0.0] * 4, **given)

  def test_bad_tags_say_why(self):
    catalogue, features = self.made.catalogue, self.made.catalogue.features
    for call, what in (
      (lambda: catalogue.tag_items([99], [[]]), "item 99 is not known"),
      (lambda: catalogue.tag_items([3, 3], [[], []]), "there twice"),
      (lambda: catalogue.tag_items([3], []), "tags are of 0 items"),
      (lambda: catalogue.tag_items([3], "x"), "tags are no list"),
      (lambda: catalogue.tag_items([3], [[1]]), "tags holds"),
      (
        lambda: catalogue.tag_items([3], [[f"t{i}" for i in range(29)]]),
        "tags are 33 with 't28'; expected 32 at most",
      ),
      (
        lambda: catalogue.add_items([41], features[[3]], tags=[]),
        "tags are of 0 items",
      ),
      (
        lambda: catalogue.add_items([41], features[[3]], added=-1),
        "added is -1",
      ),
    ):
      with self.assertRaisesRegex(InputError, what):
        call()


if __name__ == "__main__":
  absltest.main()
