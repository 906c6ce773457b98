"""Experiment `offline_check` from data to plot, as small as it gets."""

import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile

from absl.testing import absltest

from hsrl_jax import config as config_lib
from hsrl_jax.experiments import jobs, offline_check
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


class OfflineRunTest(absltest.TestCase):
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
    self.assertEqual(first["snips"]["value"], first["snips"]["value"])
    logged = results["logged"][0]
    self.assertEqual(logged["draws"], 120 * 5)
    self.assertLess(logged["effective_sample_size"], 120 * 5)
    # The toy's users were shown items all alike.
    self.assertGreater(results["behaviour_perplexity"], 85)
    self.assertLess(results["behaviour_perplexity"], 105)


if __name__ == "__main__":
  absltest.main()
