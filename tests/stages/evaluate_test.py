"""Stage evaluate: the scores that it ranks by, and what it withholds."""

import dataclasses
import pathlib
import tempfile
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import agents
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.config import SPLITS, Config, EvaluateConfig
from hsrl_jax.data import source
from hsrl_jax.data.feedback import Feedback
from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.stages import evaluate
from hsrl_jax.stages import score_from_logs as from_logs
from hsrl_jax.stages import score_on_logs as on_logs
from hsrl_jax.stages import score_sessions as sessions_lib
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Sessions
from tests import toy
from tests.agents import checks

NOTHING = jnp.zeros(0, jnp.int32)


def _ranker(made, config=None):
  return on_logs.ranking_of(
    types.SimpleNamespace(
      config=config or made.config, catalogue=made.catalogue
    )
  )


def _greedy(agent, own, user):
  return jax.jit(agent.act)(*own, user, NOTHING, None, 1.0)


class RankingTest(parameterized.TestCase):
  @parameterized.parameters("hsrl", "a2c", "ddpg", "popularity")
  def test_the_order_is_that_of_the_agents_slates(self, name):
    made = checks.made(name)
    own, user = (made.params, made.catalogue), made.observation
    ranker, everything = _ranker(made), jnp.arange(toy.ITEMS + 1)
    scores = np.asarray(jax.jit(ranker.shown)(own, user, everything))
    self.assertLess(scores[0], scores[1:].min())  # Padding comes last.
    self.assertLen(set(scores), toy.ITEMS + 1)
    order = np.argsort(-scores)
    slate = _greedy(made.agent, own, user).slate
    np.testing.assert_array_equal(order[: toy.SLATE], slate)
    top = jax.jit(ranker.best)(own, user, slate[:1])
    np.testing.assert_array_equal(top, order[1:21])

  def test_what_a_search_finds(self):
    """Its best items; those of a slate by log pi, whether it finds them."""
    with mock.patch.object(hsrl, "SEARCH_FROM", 1):
      made = checks.made("hsrl", beams=20)
      ranker = _ranker(made)
      whole = agents.make_agent(made.config, toy.ITEMS, toy.ITEMS)
      self.assertEqual((made.agent.beams, whole.beams), (20, toy.ITEMS))
    own, user = (made.params, made.catalogue), made.observation
    # As many beams as items: the search is exact.
    exact = _greedy(whole, own, user).ranked
    shown = jax.jit(ranker.shown)(own, user, exact.items)
    np.testing.assert_allclose(shown, exact.scores, rtol=1e-4, atol=1e-5)
    slate = _greedy(made.agent, own, user).slate
    best = jax.jit(ranker.best)
    top = best(own, user, NOTHING)
    np.testing.assert_array_equal(top[: toy.SLATE], slate)
    without = best(own, user, slate[:1])
    self.assertNotIn(int(slate[0]), without.tolist())
    self.assertNotIn(0, without.tolist())  # Another one is in its place.

  @pytest.mark.slow
  def test_a_sweet_point_does_not_change_the_order(self):
    made = checks.made("hsrl")
    simulator = dataclasses.replace(made.config.simulator, sweet_point=0.2)
    composed = dataclasses.replace(made.config, simulator=simulator)
    orders = [
      jax.jit(_ranker(made, config).best)(
        (made.params, made.catalogue), made.observation, NOTHING
      )
      for config in (made.config, composed)
    ]
    np.testing.assert_array_equal(*orders)

  def test_random_has_no_order(self):
    self.assertIsNone(_ranker(checks.made("random")))


def _logs(seed=0):
  """60 rows of five out of 30 items, of twelve users."""
  rng = np.random.default_rng(seed)
  return Sessions(
    rng.integers(1, 13, 60),
    rng.normal(size=(60, 2)),
    rng.integers(1, 31, (60, 4)),
    rng.integers(1, 31, (60, 5)),
    rng.integers(0, 2, (60, 5)).astype(float),
  )


class LeftOutTest(absltest.TestCase):
  def test_all_that_a_user_saw_before(self):
    splits = {name: _logs(seed) for seed, name in enumerate(SPLITS)}
    items = source.Items(np.zeros((31, 1)), *[[""] * 31] * 3)
    dataset, logs = source.Dataset(items, splits), splits["test"]

    def left_out(dataset, without="seen", split="test"):
      config = Config(evaluate=EvaluateConfig(split, without=without))
      parts = types.SimpleNamespace(config=config, dataset=dataset)
      return on_logs.left_out_of(parts, logs)

    def check(found, splits, drawn=False):
      for row, user in enumerate(logs.user_id):
        want = {0, *logs.history[row].tolist()}
        for x in splits:
          own = x.user_id == user
          shown = x.exposed[own][(x.response[own] > 0) | (not drawn)]
          want |= {*shown.tolist()}
        self.assertEqual(want, {0, *found[row].tolist()})

    check(left_out(dataset), (splits["train"], splits["val"]))
    check(left_out(dataset, split="val"), (splits["train"],))
    check(left_out(dataset, split="train"), ())
    drawn = items._replace(feedback=Feedback("implicit", "uniform", 4))
    found = left_out(dataset._replace(items=drawn))
    check(found, (splits["train"], splits["val"]), drawn=True)
    # These users like things again.
    self.assertIsNone(left_out(dataset, "history"))


class DrawnTest(absltest.TestCase):
  def test_all_rows_where_there_are_few(self):
    sessions = _logs()
    with mock.patch.object(on_logs, "MOST_SCORES", 60 * 31):
      self.assertIs(on_logs.drawn(sessions, 30, 0), sessions)

  def test_whole_users_at_random_where_there_are_many(self):
    sessions, drawn = _logs(), []
    with mock.patch.object(on_logs, "MOST_SCORES", 20 * 31):
      for seed in range(300):
        judged = on_logs.drawn(sessions, 30, seed)
        self.assertLessEqual(len(judged.user_id), 20)
        users = np.unique(judged.user_id)
        rows = np.isin(sessions.user_id, users)
        for part, whole in zip(judged, sessions, strict=True):
          if whole is not None:
            np.testing.assert_array_equal(part, whole[rows])
        drawn.append(np.isin(np.arange(1, 13), users))
    # Each of the twelve about as often: 4 standard errors.
    share = np.mean(drawn, 0)
    self.assertLess(np.ptp(share), 8 * (0.25 / 300) ** 0.5)
    self.assertGreater(np.sum(drawn, 1).mean(), 2)

  def test_some_rows_of_a_user_who_has_too_many(self):
    sessions = _logs()._replace(user_id=np.full(60, 7))
    with mock.patch.object(on_logs, "MOST_SCORES", 20 * 31):
      judged = on_logs.drawn(sessions, 30, 0)
      rows = {x.tobytes() for x in sessions.profile}
      self.assertLen({x.tobytes() for x in judged.profile} & rows, 20)
      # Sessions of seven slates stay whole.
      sessions = sessions._replace(session=np.arange(60) // 7)
      judged = on_logs.drawn(sessions, 30, 0)
    _, count = np.unique(judged.session, return_counts=True)
    np.testing.assert_array_equal(count, [7, 7])


class FromLogsTest(absltest.TestCase):
  def test_the_policy_the_lists_and_the_logging_policy(self):
    made, rng = checks.made("sasrec"), np.random.default_rng(0)
    rows, chosen = 900, rng.integers(1, toy.ITEMS + 1, (900, 1))
    users = toy.users()
    user = np.arange(rows) % toy.USERS
    logs = Sessions(
      user,
      np.asarray(users.profiles)[user],
      np.asarray(users.histories)[user],
      chosen.astype(np.int32),
      # Items 1 to 10 are liked, most often.
      (rng.random((rows, 1)) < np.where(chosen <= 10, 0.8, 0.2)).astype(float),
      propensity=np.full((rows, 1), 1 / toy.ITEMS, np.float32),
    )
    parts = types.SimpleNamespace(
      config=made.config,
      catalogue=made.catalogue,
      dataset=types.SimpleNamespace(
        splits={"train": logs, "test": logs},
        items=types.SimpleNamespace(features=made.catalogue.features),
      ),
      env=toy.env(),
      response=jnp.float32(1.0),
    )
    found = from_logs.measure(parts, [(made.params, made.catalogue)])
    table = found["off_policy"]
    self.assertEqual(
      list(table), ["sasrec", "popularity", "item_mean", "logging_policy"]
    )
    self.assertAlmostEqual(
      table["logging_policy"]["on_policy"]["mean"], logs.response.mean()
    )
    # A list of one item: 1 row in 40 has it.
    best = np.bincount(chosen[:, 0], logs.response[:, 0]).argmax()
    shown = (chosen == best).sum()
    for name, estimate in table["popularity"].items():
      self.assertAlmostEqual(estimate["ess"], shown, places=3, msg=name)
      self.assertIn("too little overlap", estimate["refused"])
    self.assertNotIn("off_policy_sessions", found)
    # Sessions of two slates of a user: the mean of their totals.
    session = np.arange(rows) // (2 * toy.USERS) * toy.USERS + user
    split = logs._replace(session=session)
    parts.dataset.splits = dict.fromkeys(("train", "test"), split)
    found = from_logs.measure(parts, [(made.params, made.catalogue)])
    self.assertEqual(found["off_policy"], table)
    own = found["off_policy_sessions"]["logging_policy"]["on_policy"]
    earned = np.where(logs.response > 0, 1.0, parts.env.reward.penalty).sum()
    self.assertAlmostEqual(
      own["mean"], earned / len(np.unique(session)), places=4
    )
    self.assertIn("sasrec", found["off_policy_sessions_differences"])
    self._of_some(parts, split, (made.params, made.catalogue))
    of_split = dict.fromkeys(("train", "test"), logs._replace(propensity=None))
    parts.dataset.splits = of_split
    self.assertEmpty(from_logs.measure(parts, []))

  def _of_some(self, parts, split, own):
    """Slates without propensities count as if they were not there."""
    session = split.session
    without = (np.arange(len(session)) % 5 == 0) | (session % 7 == 0)
    some = split._replace(
      propensity=np.where(without[:, None], np.nan, split.propensity)
    )
    parts.dataset.splits = {"train": split, "test": some}
    found = from_logs.measure(parts, [own])
    rows = {
      "rows": np.sum(~without),
      "with_propensities": np.sum(~without),
      "of_rows": len(without),
    }
    self.assertEqual(found["off_policy_rows"], rows)
    for kept, table in (
      (~without, "off_policy"),
      (~np.isin(session, session[without]), "off_policy_sessions"),
    ):
      self.assertBetween(kept.sum(), 300, 800)
      test = jax.tree.map(lambda x, kept=kept: x[kept], split)
      parts.dataset.splits = {"train": split, "test": test}
      alone = from_logs.measure(parts, [own])
      for name in (table, f"{table}_differences"):
        self.assertEqual(found[name], alone[name])


class BoundsTest(absltest.TestCase):
  def test_runs_that_share_stages_share_them(self):
    root = self.enterContext(tempfile.TemporaryDirectory())
    env, rows = toy.env(), np.arange(6, dtype=np.int32) % toy.USERS
    index = types.SimpleNamespace(active=jnp.arange(toy.ITEMS + 1) > 0)

    def sessions(shared, simulates):
      parts = types.SimpleNamespace(
        judge=env,
        judged_users=lambda split: toy.users(),
        catalogue=types.SimpleNamespace(index=index),
        config=Config(),
        shared=shared,
        folder=lambda stage: pathlib.Path(root) / stage,
      )
      with mock.patch.object(
        sessions_lib, "simulated", wraps=sessions_lib.simulated
      ) as run:
        found = sessions_lib.with_bounds(parts, {}, rows)
      self.assertEqual(bool(run.call_args.args[1]), simulates)
      return found

    alone = sessions(None, True)
    self.assertEmpty(list(pathlib.Path(root).iterdir()))
    first, second = sessions(root, True), sessions(root, False)
    for found in (first, second):
      self.assertEqual(list(found), list(alone))
      for name, (want,) in alone.items():
        (got,) = found[name]
        for x, y in zip(want, got, strict=True):
          np.testing.assert_array_equal(x, y)

  def test_what_they_depend_on(self):
    base = agents.configure(Config(), "hsrl")

    def name(**changes):
      config = dataclasses.replace(base, **changes)
      return Parts(config, pathlib.Path("w")).fingerprints["bounds"]

    network = dataclasses.replace(base.network, dropout=0.5)
    self.assertEqual(name(network=network), name())
    for part, field, value in (
      ("simulator", "protocol", "no_repeat"),
      ("evaluate", "episodes", 7),
      ("data", "dataset", "toy"),
    ):
      other = dataclasses.replace(getattr(base, part), **{field: value})
      self.assertNotEqual(name(**{part: other}), name(), field)


class PoliciesTest(absltest.TestCase):
  def test_a_useless_simulator_normalises_nothing(self):
    sessions = {
      name: [
        simulate.Simulated(
          np.float32([reward, 2 * reward]),
          np.float32([2, 2]),
          np.float32([1, 3]),
          np.ones((2, 2, 3), np.int32),
          np.ones((2, 2, 3), np.float32),
        )
      ]
      for name, reward in zip(bounds.BOUNDS, (1, 3, 5), strict=True)
    }
    useless = {"verdict": "useless", "reasons": ["chance"]}
    for quality, shown in (({"verdict": "weak"}, True), (useless, False)):
      policies = evaluate._policies(sessions, quality, np.array([7, 9]), 40)
      for policy in policies.values():
        self.assertEqual(policy["normalised"]["mean"] is not None, shown)
        self.assertIsNotNone(policy["total_reward"]["mean"])
    self.assertIn("chance", policies["random"]["normalised"]["withheld"])


if __name__ == "__main__":
  absltest.main()
