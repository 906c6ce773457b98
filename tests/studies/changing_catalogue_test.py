"""Changing catalogue: what the change does, against sets counted by hand."""

import contextlib
import dataclasses
import io
import json
import tempfile
import types
from unittest import mock

import jax
import numpy as np
import pandas as pd
import pytest
from absl.testing import absltest

from hsrl_jax import config as config_lib
from hsrl_jax import sid
from hsrl_jax.data import prepare, source
from hsrl_jax.experiments import jobs
from hsrl_jax.studies import changing_catalogue as changing
from hsrl_jax.studies import content, plots
from hsrl_jax.studies.registry import ChangingCatalogue
from tests import command, toy

MOVIELENS = "movielens_latest_small"
SHARES = (50,)
START, CHANGED = 26, 13  # Of the 40 items of the toy, 14 are held out.
BASE = dataclasses.replace(
  toy.config(learning_rate=1e-2, iterations=160, iterations_per_call=20),
  quantizer=config_lib.QuantizerConfig(levels=2, vocab_size=8),
  evaluate=config_lib.EvaluateConfig(episodes=100),
)


def _prepared():
  """A run whose stages are complete, with the toy's items and users."""
  inputs = toy.inputs()
  features = np.asarray(inputs.catalogue.features)
  return types.SimpleNamespace(
    config=BASE,
    env=toy.env(),
    dataset=types.SimpleNamespace(
      items=source.Items(
        features,
        [str(x) for x in range(toy.ITEMS + 1)],
        ["", *(f"Film {x} ({1950 + x})" for x in range(1, toy.ITEMS + 1))],
        ["", *(f"genre {x % 4}" for x in range(1, toy.ITEMS + 1))],
      ),
      splits={
        "test": types.SimpleNamespace(user_id=np.arange(toy.USERS)),
      },
    ),
    users=lambda split: inputs.env_params,
  )


class WorldTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.prepared = _prepared()
    cls.world = changing.World(cls.prepared, SHARES)

  def test_items_leave_and_others_arrive(self):
    start, newcomers = map(set, self.world.split)
    self.assertLen(start, START)
    self.assertEqual(start | newcomers, set(range(1, toy.ITEMS + 1)))
    before = self.world.start.index
    self.assertEqual(set(np.flatnonzero(before.active)), start)
    after = self.world.changed(50).index
    left = set(self.world.split.start[:CHANGED])
    arrived = set(self.world.split.newcomers[:CHANGED])
    self.assertEqual(set(np.flatnonzero(after.active)), start - left | arrived)
    everybody = np.sort(self.world.split.start)
    np.testing.assert_array_equal(
      sid.sid_of(before, everybody), sid.sid_of(after, everybody)
    )
    known = np.flatnonzero(after.known)
    self.assertLen(known, START + CHANGED)
    sids = np.asarray(sid.sid_of(after, known))
    self.assertLen(np.unique(sids, axis=0), len(known))
    same = jax.tree.map(lambda a, b: a.shape == b.shape, before, after)
    self.assertTrue(all(jax.tree.leaves(same)))

  def test_codebooks_know_the_start_alone(self):
    features = np.asarray(self.world.start.features)
    changed = features.copy()
    changed[self.world.split.newcomers] += 100.0
    other = changing.start_catalogue(BASE.quantizer, changed, self.world.split)
    np.testing.assert_array_equal(other.codebooks, self.world.start.codebooks)

  def test_newcomers_are_known_by_their_content(self):
    """Other ratings of theirs change nothing; other words do."""
    items = self.prepared.dataset.items
    new, start = self.world.split.newcomers, self.world.split.start
    rated = np.array(items.features)
    rated[new] += 7.0
    titles = list(items.titles)
    titles[new[0]] = "Another word (2020)"
    made = [
      content.for_newcomers(x, new, dimensions=8)
      for x in (
        items,
        items._replace(features=rated),
        items._replace(titles=titles),
      )
    ]
    np.testing.assert_array_equal(made[0], made[1])
    self.assertGreater(np.abs(made[0] - made[2])[new[0]].max(), 0.01)
    # Words, the year, and the given columns, for those who have them.
    self.assertEqual(made[0].shape, (toy.ITEMS + 1, 8 + 1 + 7))
    np.testing.assert_array_equal(made[0][new][:, 9:], 0)
    kept, given = made[0][start][:, 9:], np.array(items.features)[start]
    np.testing.assert_allclose(
      kept / np.linalg.norm(kept), given / np.linalg.norm(given), rtol=1e-4
    )
    np.testing.assert_array_equal(made[0][0], 0)

  def test_ratings_of_newcomers_change_nothing_of_theirs(self):
    """Through the builder of MovieLens, whose features are made of ratings."""
    folder = prepare.builder_folder(MOVIELENS)
    builder = prepare.load_builder(folder / f"{MOVIELENS}_dataset_builder.py")
    users, films = 12, 30
    new, start = np.array([3, 8, 21]), np.array([1, 2, 30])
    film = np.tile(np.arange(1, films + 1), users)
    rng = np.random.default_rng(0)
    ratings = pd.DataFrame(
      {
        "user_id": np.repeat(np.arange(1, users + 1), films),
        "item": film,
        "year": 1950.0 + film,
        "genres": [("Action", "Drama", "Action|Drama")[i % 3] for i in film],
      }
    )

    def features(stars):
      given = builder.item_features(
        ratings.assign(rating=stars), np.ones(len(ratings), bool)
      )
      items = source.Items(
        np.pad(given, ((1, 0), (0, 0))),
        [str(i) for i in range(films + 1)],
        ["", *(f"Film {i} ({1950 + i})" for i in range(1, films + 1))],
        ["", *(ratings.genres[:films])],
      )
      return (
        items.features,
        content.for_newcomers(items, new, dimensions=8),
        content.of_items(items, dimensions=8),
      )

    stars = rng.integers(1, 6, len(ratings)).astype(float)
    other = np.where(np.isin(film, new), 6.0 - stars, stars)
    given, known, alone = zip(features(stars), features(other), strict=True)
    self.assertGreater(np.abs(given[0] - given[1])[new].max(), 0.1)
    np.testing.assert_array_equal(known[0][new], known[1][new])
    np.testing.assert_array_equal(*alone)
    # Of the others, the ratings are known.
    changed = np.where(np.isin(film, start), 6.0 - stars, stars)
    self.assertGreater(
      np.abs(known[0] - features(changed)[1])[start].max(), 0.1
    )

  def test_by_default_all_items_are_known_by_content_alone(self):
    self.assertEqual(ChangingCatalogue().newcomers, "content")
    items = self.prepared.dataset.items
    for kind, want in (
      ("content", content.of_items(items, 64)),
      ("unrated", content.for_newcomers(items, self.world.split.newcomers, 64)),
      ("logged", items.features),
    ):
      world = changing.World(self.prepared, SHARES, kind)
      np.testing.assert_array_equal(world.start.features, want)

  def test_the_year_is_that_of_the_title(self):
    items = self.prepared.dataset.items
    year = content.of_items(items, dimensions=4)[1:, -1]
    # Equidistant, with mean 0 and a mean square of one.
    want = np.arange(toy.ITEMS) - (toy.ITEMS - 1) / 2
    np.testing.assert_allclose(year, want / want.std(), rtol=1e-4)
    unknown = items._replace(titles=["", *(["Film"] * toy.ITEMS)])
    np.testing.assert_array_equal(content.of_items(unknown, 4)[:, -1], 0)

  def test_histories_lose_the_newcomers_alone(self):
    hidden = set(self.world.split.newcomers)
    users = self.world.held_out_users
    logged = self.prepared.users("test").histories
    for mine, theirs in zip(
      np.asarray(users.histories), np.asarray(logged), strict=True
    ):
      kept = [i for i in theirs if i > 0 and i not in hidden]
      self.assertEqual(mine.tolist(), [0] * (len(mine) - len(kept)) + kept)

  def test_recovery_is_counted_for_each_seed(self):
    bounds = {0: {"random": 0.0, "greedy_oracle": 10.0}}
    bounds[5] = {"random": 1.0, "greedy_oracle": 6.0}

    def point(step, *reward):
      return {
        "step": step,
        "total_reward": list(reward),
        "newcomers": [0.5] * len(reward),
      }

    found = {
      ("hsrl", 5): {
        "before": point(None, 8.0, 4.0, 5.0),  # 0.8, 0.4 and 0.5 normalised.
        "after": [
          point(0, 4.7, 2.9, 2.0),  # 0.74, 0.38, 0.2
          point(20, 4.9, 2.0, 3.0),  # 0.78
          point(40, 2.0, 3.0, 3.3),  # The third: 0.46, below 0.475.
        ],
      }
    }
    (row,) = changing.summary(bounds, found)["rows"]
    self.assertEqual(row["steps_to_recover"], [20, 0, None])
    self.assertEqual(changing._median([20, 0, None], 40), "20")
    self.assertEqual(changing._median([None, 0, None], 40), ">40")
    np.testing.assert_allclose(
      row["after"][1]["normalised"]["per_seed"], [0.78, 0.2, 0.4]
    )

  def test_equal_bounds_have_no_scale(self):
    point = {"total_reward": [8.0, 4.0], "newcomers": [0.0, 0.0]}
    after = [point | {"step": step} for step in (0, 20)]
    results = changing.summary(
      {s: {"random": 3.0, "greedy_oracle": 3.0} for s in (0, 5)},
      {("hsrl", 5): {"before": point, "after": after}},
    ) | {"dataset": "toy", "protocol": "paper"}
    self.assertEqual(results["rows"][0]["steps_to_recover"], [None, None])
    line = changing.table(results).splitlines()[-1].split()
    self.assertEqual(line[3:7], ["-", "-", "-", "-"])
    plots.changing_catalogue(results)


@pytest.mark.slow
class WholeTest(absltest.TestCase):
  """Two policies through a change of half of the catalogue."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    # By content alone a toy of 40 films loses more than it can show.
    own = {"shares": SHARES, "newcomers": "logged"}
    cls.experiment = command.experiment(
      "changing_catalogue", folder.name, BASE, **own
    )
    prepared = _prepared()
    cls.enterClassContext(
      mock.patch.object(jobs, "prepare", lambda *args: prepared)
    )
    cls.traces = 0
    make = changing.loop.make

    def counting(*args):
      engine = make(*args)

      def run(*args):
        cls.traces += 1
        return engine.run(*args)

      return engine._replace(run=run)

    policies = {name: changing.POLICIES[name] for name in ("hsrl", "free")}
    cls.enterClassContext(mock.patch.object(changing, "POLICIES", policies))
    # Tests go on with what is compiled.
    cls.enterClassContext(mock.patch.object(jax, "clear_caches"))
    cls.learnings = []

    class Kept(changing.Learning):
      def __init__(self, *args):
        super().__init__(*args)
        cls.learnings.append(self)

    with (
      mock.patch.object(changing.loop, "make", counting),
      mock.patch.object(changing, "Learning", Kept),
      contextlib.redirect_stdout(io.StringIO()),
    ):
      cls.results = changing.run(cls.experiment)
    cls.world = cls.learnings[0].world

  def row(self, policy, share):
    (row,) = (
      x
      for x in self.results["rows"]
      if (x["policy"], x["share"]) == (policy, share)
    )
    return row

  def test_nothing_that_left_is_shown_and_newcomers_are(self):
    learning = self.learnings[0]
    learner, stream = learning._at_change()
    catalogue = self.world.changed(50)
    state, inputs = learning._place(learner, stream, catalogue)
    (learner, stream), left = state, set(self.world.split.start[:CHANGED])
    learner, stream = learning._advance((learner, stream), inputs, 2)
    slates = np.asarray(stream.replay.items.slate)
    added = int(np.asarray(stream.replay.added).ravel()[0])
    self.assertEqual(added, 40)  # The replay began anew.
    shown = set(slates[slates > 0].ravel())
    self.assertEmpty(shown & left)
    self.assertNotEmpty(shown & set(self.world.split.newcomers))
    params = changing.parallel.target_params(learner, learning.layout)
    seeds = changing.training.by_seed(params)
    sessions = self.world.sessions(learning.act, (seeds[0], catalogue))
    self.assertEmpty(set(np.asarray(sessions.slates).ravel()) & left)

  def test_one_trace_for_each_policy(self):
    self.assertEqual(self.traces, len(changing.POLICIES))

  def test_no_change_is_no_change(self):
    for name in changing.POLICIES:
      row = self.row(name, 0)
      self.assertEqual(
        row["before"]["total_reward"], row["after"][0]["total_reward"]
      )
      self.assertEqual(row["after"][-1]["newcomers"]["mean"], 0)

  def test_a_change_costs_the_one_logit_policy_more(self):
    def kept(name):
      row = self.row(name, 50)
      return (
        row["after"][0]["normalised"]["mean"]
        / row["before"]["normalised"]["mean"]
      )

    self.assertGreater(kept("hsrl"), kept("free"))

  def test_a_second_run_does_nothing(self):
    with (
      mock.patch.object(changing.Learning, "run", side_effect=AssertionError),
      contextlib.redirect_stdout(io.StringIO()) as out,
    ):
      again = changing.run(self.experiment)
    self.assertEqual(again, self.results)
    lines = out.getvalue().splitlines()
    shown = changing.table(again).splitlines()
    self.assertEqual([x for x in lines if x in shown], shown)
    self.assertLessEqual(max(map(len, shown)), 80)
    kept = json.loads((self.experiment.workdir / "results.json").read_text())
    self.assertEqual(kept["rows"], again["rows"])


if __name__ == "__main__":
  absltest.main()
