"""Catalogue size: synthetic items against geometry; which jobs a rerun has."""

import contextlib
import dataclasses
import io
import os
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import config as config_lib
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import jobs
from hsrl_jax.studies import catalogue_size, plots
from tests import command, toy

SIZES = (64, 160)
NAMES = ("hsrl",)
BASE = dataclasses.replace(
  toy.config(
    users=4, batch_size=4, buffer_size=4 * 40, iterations=8, save_every=8
  ),
  data=config_lib.DataConfig(dataset="toy"),
  quantizer=config_lib.QuantizerConfig(levels=2, vocab_size=16),
  simulator=config_lib.SimulatorConfig(epochs=1, dropout=0.0, hidden=8),
  evaluate=config_lib.EvaluateConfig(episodes=30),
)


def _features(count=30):
  rows = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
  return np.concatenate([np.zeros((1, 3), np.float32), rows])


class SyntheticTest(parameterized.TestCase):
  def test_a_smaller_catalogue_is_a_part_and_others_go_to_the_nearest(self):
    features = _features()
    made = catalogue_size.synthetic(features, 12)
    real = {tuple(x) for x in features[1:]}
    self.assertLen({tuple(x) for x in made.features[1:]} & real, 12)
    self.assertEqual(made.stands_for[0], 0)
    for item in range(1, 31):
      distance = np.linalg.norm(made.features[1:] - features[item], axis=1)
      self.assertEqual(made.stands_for[item], distance.argmin() + 1)

  def test_a_larger_one_keeps_the_items_and_mixes_them(self):
    features = _features()
    made = catalogue_size.synthetic(features, 500)
    np.testing.assert_array_equal(made.features[:31], features)
    np.testing.assert_array_equal(made.stands_for, np.arange(31))
    self.assertLen(np.unique(made.features[1:], axis=0), 500)
    # In any direction the farthest is an item of the dataset.
    directions = np.random.default_rng(1).normal(size=(3, 200))
    farthest = (features[1:] @ directions).max(0)
    np.testing.assert_array_less(
      (made.features[31:] @ directions).max(0), farthest
    )

  @parameterized.parameters((1_000, 300), (10**6, 50), (10**9, 1))
  def test_large_catalogues_have_fewer_sessions(self, size, expected):
    config = config_lib.EvaluateConfig(episodes=300)
    self.assertEqual(catalogue_size.sessions(config, size), expected)


class RunTest(absltest.TestCase):
  """What the experiment does with the rows that its jobs return."""

  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.experiment = command.experiment(
      "catalogue_size", folder, BASE, sizes=(100,)
    )
    self.enter_context(mock.patch.object(jobs, "prepare"))
    self.jobs = []

  def run_with(self, **limits):
    """Runs with other limits; HSRL needs 14 GB, what is free 300 s a seed."""
    config = dataclasses.replace(self.experiment.config, **limits)

    def alone(function, experiment, size, name="bounds"):
      self.jobs.append(name)
      if function is catalogue_size.bounds:
        return {"random": 2.0, "greedy_oracle": 12.0, "sids_seconds": 1.0}
      row = dict.fromkeys(("total_reward", "left_out", "decision_ms"))
      row |= {"iteration_ms": 2.5, "memory_gb": 1.0}
      if name == "hsrl" and config.memory_gb < 14:
        return row | {"left_out": "needs 14 GB"}
      if name == "free" and config.seconds_per_run < 300:
        return row | {"left_out": "takes 300 s"}
      return row | {"total_reward": [7.0, 4.5], "decision_ms": 0.5}

    self.jobs.clear()
    with (
      mock.patch.object(catalogue_size, "alone", alone),
      contextlib.redirect_stdout(io.StringIO()),
    ):
      results = catalogue_size.run(self.experiment._replace(config=config))
    return {row["policy"]: row for row in results["rows"]}

  def test_what_was_left_out_is_tried_again(self):
    rows = self.run_with()
    self.assertEqual(self.jobs, ["bounds", "hsrl", "features", "free"])
    self.assertEqual(rows["hsrl"]["left_out"], "needs 14 GB")
    self.assertEqual(rows["free"]["left_out"], "takes 300 s")
    rows = self.run_with(memory_gb=16.0)
    self.assertEqual(self.jobs, ["hsrl", "free"])
    self.assertIsNone(rows["hsrl"]["left_out"])
    self.assertEqual(rows["hsrl"]["total_reward"], [7.0, 4.5])
    rows = self.run_with(memory_gb=1.0, seconds_per_run=400.0)
    self.assertEqual(self.jobs, ["free"])  # What is measured stays.
    self.assertIsNone(rows["hsrl"]["left_out"])

  def test_rewards_are_normalised_at_their_size(self):
    row = self.run_with()["features"]
    np.testing.assert_allclose(row["normalised"]["per_seed"], [0.5, 0.25])

  def test_equal_bounds_have_no_scale(self):
    results = catalogue_size.summary(
      {64: {"random": 3.0, "greedy_oracle": 3.0}},
      {
        (64, "hsrl"): {
          "total_reward": [8.0, 4.0],
          "iteration_ms": 1.0,
          "decision_ms": 2.0,
          "memory_gb": 0.5,
          "left_out": None,
        }
      },
    )
    results |= {"dataset": "toy", "protocol": "paper", "iterations": 8}
    text = catalogue_size.table(results | {"episodes": {"64": 30}})
    self.assertEqual(text.splitlines()[-1].split()[2:4], ["-", "-"])
    plots.catalogue_size(results)

  def test_the_table_fits_a_terminal(self):
    rows = [*self.run_with().values()]
    rows[0] |= {"size": 10**6, "iteration_ms": 12345.6, "memory_gb": 12.3}
    results = {"rows": rows, "dataset": "movielens_latest_small"}
    results |= {"protocol": "no_repeat", "iterations": 2_000}
    text = catalogue_size.table(results | {"episodes": {"1000000": 50}})
    self.assertIn("12,345.6", text)
    self.assertIn("1,000,000 hsrl: needs 14 GB", text)
    self.assertLessEqual(max(map(len, text.splitlines())), 80)


class TopicsTest(absltest.TestCase):
  def test_worlds_of_topics_are_refused(self):
    simulator = config_lib.SimulatorConfig(boredom="topic")
    base = dataclasses.replace(BASE, simulator=simulator)
    experiment = mock.Mock(base=base)
    with self.assertRaisesRegex(
      InputError, "boredom is 'topic'.*made up have no topics; expected"
    ):
      catalogue_size.world(experiment, 64)


@pytest.mark.slow
class WholeTest(absltest.TestCase):
  """The experiment at two sizes, in this process."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.experiment = command.experiment(
      "catalogue_size", folder.name, BASE, sizes=SIZES
    )
    policies = catalogue_size.POLICIES
    policies = {name: policies[name] for name in NAMES}
    cls.enterClassContext(
      mock.patch.object(catalogue_size, "POLICIES", policies)
    )
    with (
      mock.patch.object(catalogue_size, "alone", lambda f, *args: f(*args)),
      contextlib.redirect_stdout(io.StringIO()),
    ):
      cls.results = catalogue_size.run(cls.experiment)

  def test_every_size_and_policy_is_measured(self):
    rows = {(x["size"], x["policy"]): x for x in self.results["rows"]}
    self.assertEqual(set(rows), {(n, name) for n in SIZES for name in NAMES})
    for row in rows.values():
      self.assertIsNone(row["left_out"])
      self.assertLen(row["total_reward"], 2)
      self.assertGreater(row["iteration_ms"], 0)
      self.assertGreater(row["decision_ms"], 0)
      self.assertGreaterEqual(row["memory_gb"], row["start_gb"])

  def test_rewards_are_normalised_at_their_size(self):
    for row in self.results["rows"]:
      bounds = self.results["bounds"][str(row["size"])]
      low, high = bounds["random"], bounds["greedy_oracle"]
      self.assertLess(low, high)
      np.testing.assert_allclose(
        row["normalised"]["per_seed"],
        [(x - low) / (high - low) for x in row["total_reward"]],
      )

  def test_a_world_has_its_size_and_only_its_items(self):
    with contextlib.redirect_stdout(io.StringIO()):
      w = catalogue_size.world(self.experiment, 64)
    self.assertEqual(w.catalogue.index.num_items, 64)
    for users in (w.users, w.held_out):
      self.assertEqual(len(users.response.item_features), 65)
      self.assertLessEqual(int(users.histories.max()), 64)
    # Nobody's history has changed its length.
    run = jobs.prepare(self.experiment, jobs.Job("dataset", BASE))
    lengths = [
      (np.asarray(x.histories) > 0).sum(1)
      for x in (w.users, run.users("train"))
    ]
    np.testing.assert_array_equal(*lengths)

  def test_what_does_not_fit_is_left_out_with_a_reason(self):
    for limit, why in (
      ({"memory_gb": 1e-6}, "GB"),
      ({"seconds_per_run": 1e-6}, "s a seed"),
    ):
      config = dataclasses.replace(self.experiment.config, **limit)
      with contextlib.redirect_stdout(io.StringIO()):
        row = catalogue_size.measure(
          self.experiment._replace(config=config), 64, "hsrl"
        )
      self.assertIn(why, row["left_out"])
      self.assertIsNone(row["total_reward"])
      self.assertEqual(row["iteration_ms"] is None, "memory_gb" in limit)

  def test_alone_is_another_process(self):
    self.assertNotEqual(catalogue_size.alone(os.getpid), os.getpid())
    self.assertGreater(catalogue_size._memory("VmHWM"), 0.05)


if __name__ == "__main__":
  absltest.main()
