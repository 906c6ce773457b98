"""Experiment `offline_check`: its table, and the whole of it, small."""

import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile
import types

import numpy as np
import pytest
from absl.testing import absltest

from hsrl_jax import config as config_lib
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import jobs, offline_check
from hsrl_jax.report import experiment_plots
from tests import toy

BASE = dataclasses.replace(
  toy.config(iterations=4, curve_every=4, save_every=4, seeds=(0,)),
  data=config_lib.DataConfig("toy"),
  quantizer=config_lib.QuantizerConfig(
    levels=2, vocab_size=16, iterations=2, restarts=1
  ),
  simulator=config_lib.SimulatorConfig(epochs=1, max_steps=2),
  evaluate=config_lib.EvaluateConfig(episodes=100),
)


class TableTest(absltest.TestCase):
  def test_table_is_80_columns(self):
    estimate = {"value": -0.123, "ci95": [-0.223, 1.023]}
    row = {
      "temperature": 0.25,
      "draws": 200_000,
      "effective_sample_size": 12_345.6,
      "clipped": 0.123,
      "direct": estimate,
      "snips": estimate,
      "doubly_robust": estimate,
    }
    results = {
      "agent": "hsrl",
      "dataset": "movielens_latest_small",
      "split": "test",
      "logging_temperature": 1.0,
      "weight_clip": 100.0,
      "behaviour_alike_items": 1_234.5,
      "items": 10_681,
      "simulated": [row | {"truth": 0.5, "acted": 0.5}] * 2,
      "logged": [row] * 2,
    }
    text = offline_check.table(results)
    self.assertLessEqual(max(map(len, text.splitlines())), 80, text)
    experiment_plots.offline_check(results)

  def test_an_agent_without_probabilities_is_refused(self):
    scores = types.SimpleNamespace(log_pi=np.zeros((2, 4, 3)))
    with self.assertRaisesRegex(InputError, "no probabilities"):
      offline_check.check_probabilities(scores)
    scores.log_pi[0, 0, 0] = -1
    offline_check.check_probabilities(scores)


@pytest.mark.slow
class WholeTest(absltest.TestCase):
  def test_from_data_to_plot(self):
    root, out = self.enter_context(tempfile.TemporaryDirectory()), io.StringIO()
    workdir = pathlib.Path(root)
    config = config_lib.ExperimentConfig(temperatures=(1.0, 0.5))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
      offline_check.run(
        jobs.Experiment("offline_check", BASE, config, workdir, "")
      )
    self.assertTrue((workdir / "plot.png").exists())
    results = json.loads((workdir / "results.json").read_text())
    # At the temperature of the logs all of them count alike.
    first = results["simulated"][0]
    self.assertAlmostEqual(first["effective_sample_size"], first["draws"])
    self.assertEqual(first["draws"], 100 * 5)
    # Then SNIPS is the mean of the draws, whose expectation is the truth.
    low, high = first["snips"]["ci95"]
    error = abs(first["snips"]["value"] - first["truth"])
    self.assertLess(error, high - low)
    logged = results["logged"][0]
    self.assertEqual(logged["draws"], 120 * 5)
    self.assertLess(logged["effective_sample_size"], 120 * 5)
    # The toy's users were shown items all alike.
    self.assertGreater(results["behaviour_alike_items"], 85)
    self.assertLess(results["behaviour_alike_items"], 105)


if __name__ == "__main__":
  absltest.main()
