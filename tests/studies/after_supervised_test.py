"""Experiment `after_supervised`: its jobs, its table, and all of it, small."""

import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest

from hsrl_jax.evaluation import held_out
from hsrl_jax.experiments import held_out_rows, jobs, one_policy
from hsrl_jax.studies import after_supervised
from hsrl_jax.studies.registry import AfterSupervised
from tests import command, toy


class JobsTest(absltest.TestCase):
  def test_each_weight_and_the_last_without_an_actor(self):
    start = {"recipe": "next_item,replay"}
    self.assertEqual(
      after_supervised.after((0.0, 5.0)),
      {
        "kl_0": {"kl_weight": 0.0} | start,
        "kl_5": {"kl_weight": 5.0} | start,
        "kl_5_no_actor": {"kl_weight": 5.0, "actor_weight": 0.0} | start,
        "kl_5_gamma_0": {"kl_weight": 5.0, "discount": 0.0} | start,
        "kl_5_mixed": {"kl_weight": 5.0, "logged_share": 0.5} | start,
        "mixed": {"kl_weight": 0.0, "logged_share": 0.5} | start,
      },
    )

  def test_supervised_policy_knows_where_the_source_files_are(self):
    class Stop(Exception):
      pass

    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    base = toy.config()
    data = dataclasses.replace(base.data, raw_data_dir=str(folder))
    base = dataclasses.replace(base, data=data)
    own = AfterSupervised()
    run = mock.patch.object(
      one_policy.Run, "complete", autospec=True, side_effect=Stop
    )
    with run as complete, self.assertRaises(Stop):
      after_supervised.run(
        jobs.Experiment("after_supervised", base, own, folder, "")
      )
    started = complete.call_args.args[0]
    self.assertEqual(started.config.data.raw_data_dir, str(folder))
    self.assertEqual(started.config.train.recipe, "next_item")


class DifferenceTest(absltest.TestCase):
  def test_seeds_are_paired(self):
    # What differs between seeds alone is no part of a paired difference.
    rng, user = np.random.default_rng(0), np.repeat(np.arange(20), 3)
    theirs = [rng.normal(size=60) + 10 * seed for seed in range(3)]
    ours = [x + 0.5 + 0.01 * rng.normal(size=60) for x in theirs]
    found = held_out.difference(
      *([held_out.Measured(x, user) for x in y] for y in (ours, theirs))
    )
    self.assertAlmostEqual(found["mean"], 0.5, places=2)
    self.assertLess(found["ci95"][1] - found["ci95"][0], 0.05)


class RowTest(absltest.TestCase):
  def test_the_difference_is_what_rl_adds(self):
    def rows(value):
      measure = held_out.Measured(np.full(4, value), np.arange(4))
      return [dict.fromkeys(held_out_rows.MEASURES, measure)]

    run, first = mock.MagicMock(), mock.MagicMock()
    with mock.patch.object(one_policy.compare, "difference") as reward:
      row = one_policy._row((first, rows(0.25)), (run, rows(0.75)), first)
    self.assertEqual(reward.call_args.args[0][0], run)
    for name in held_out_rows.MEASURES:
      self.assertAlmostEqual(row[name]["mean"], 0.75)
      self.assertAlmostEqual(row["difference"][name]["mean"], 0.5)


class TableTest(absltest.TestCase):
  def test_table_is_80_columns(self):
    share = {"mean": -0.12345, "ci95": [-0.12345, -0.12345]}
    reward = {"mean": -123.45678, "ci95": [-123.45678, 130.12345]}
    row = dict.fromkeys(held_out_rows.MEASURES, share)
    row["total_reward"] = reward
    rows = {
      "supervised": row | {"difference": None},
      "kl_0.25_no_actor": row | {"difference": row},
    }
    results = {
      **{"dataset": "movielens_latest_small", "protocol": "no_repeat"},
      **{"split": "test", "iterations": 10_000, "rows": rows},
      **{"goes_on": "then on-policy RL", "note": "more: than another " * 9},
      **{"lists": {"item_to_item": row}, "bounds": {"best_constant": reward}},
    }
    text = one_policy.table(results)
    self.assertLessEqual(max(map(len, text.splitlines())), 80, text)
    one_policy.figure(results)


class FigureTest(absltest.TestCase):
  def test_no_two_policies_look_alike(self):
    # More ways of training than there are colours.
    ways = ("supervised", *after_supervised.after((0.0, 1.0, 5.0)))
    measure = {"mean": 0.5, "ci95": [0.4, 0.6]}
    row = {"recall@10": measure, "total_reward": measure}
    rows = {f"{x}{way}": row for x in ("", "flat_") for way in ways}
    (axes,) = one_policy.figure({"rows": rows}).axes
    looks = {
      (x.lines[0].get_color(), x.lines[0].get_marker()) for x in axes.containers
    }
    self.assertLen(looks, len(rows))


@pytest.mark.slow
class WholeTest(absltest.TestCase):
  def test_what_learns_nothing_more_stays_as_it_was(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    given = (
      *(*command.JOBS, "--study=after_supervised", "--seeds=0,1"),
      *(f"--workdir={folder}/own", "--study_kl_weights=1"),
      *("--next_item_epochs=1", "--learning_rate=1e-12"),
    )
    status, out, err = command.study(*given)
    self.assertEqual(status, 0, err)
    self.assertIn("kl_1_no_actor", out)
    results = json.loads((folder / "own" / "results.json").read_text())
    rows = results["rows"]
    kl = ("kl_1", "kl_1_no_actor", "kl_1_gamma_0", "kl_1_mixed")
    own = ("supervised", *kl, "mixed")
    self.assertCountEqual(rows, (*own, *(f"flat_{x}" for x in own)))
    flat = json.loads((folder / "own/flat_supervised/results.json").read_text())
    alone = json.loads((folder / "own/supervised/results.json").read_text())
    for name in held_out_rows.MEASURES:
      self.assertEqual(
        rows["supervised"][name], alone["held_out"]["hsrl"][name]
      )
      self.assertEqual(
        rows["flat_supervised"][name], flat["held_out"]["hsrl"][name]
      )
      for other in (*own[1:], "flat_kl_1", "flat_mixed"):
        self.assertAlmostEqual(rows[other]["difference"][name]["mean"], 0)
      self.assertEqual(
        results["lists"]["item_mean"][name],
        alone["held_out"]["item_mean"][name],
      )
    self.assertEqual(
      results["bounds"]["random"], alone["policies"]["random"]["total_reward"]
    )
    self.assertNotIn("hsrl", {*results["lists"], *results["bounds"]})
    status, out, err = command.study(f"--workdir={folder}/own")
    self.assertEqual(status, 0, err)
    self.assertNotIn("policy done", out)


if __name__ == "__main__":
  absltest.main()
