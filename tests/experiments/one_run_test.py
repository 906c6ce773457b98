"""Experiments `ab` and `offline_check` from data to plot, on one toy run."""

import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from hsrl_jax import config as config_lib
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import ab, jobs, offline_check
from hsrl_jax.training.run import SESSIONS
from tests.training import toy

BASE = config_lib.Config(
  config_lib.DataConfig("toy"),
  config_lib.QuantizerConfig(levels=2, vocab_size=16, iterations=5, restarts=1),
  config_lib.SimulatorConfig(epochs=2),
  toy.config(iterations=20, seeds=(0,)),
  config_lib.EvaluateConfig(episodes=150),
)


class OneRunTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = pathlib.Path(tempfile.mkdtemp())

  def run_mode(self, name, run, **config):
    experiment = jobs.Experiment(
      name,
      BASE,
      config_lib.ExperimentConfig(**config),
      self.workdir,
      "the command",
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
      run(experiment)
    self.assertTrue((self.workdir / "plot.png").exists())
    results = json.loads((self.workdir / "results.json").read_text())
    self.assertEqual(results["experiment"], name)
    return results, out.getvalue()

  def test_both(self):
    results, out = self.run_mode("ab", ab.run, control="random")
    self.assertIn("hsrl (B) against random (A)", out)
    reward = results["measures"]["total_reward"]
    evaluated = json.loads((self.workdir / "hsrl/results.json").read_text())
    for arm, name in (("control", "random"), ("treatment", "hsrl")):
      self.assertAlmostEqual(
        reward[arm],
        evaluated["policies"][name]["total_reward"]["mean"],
        places=4,
      )
    self.assertEqual(results["users"], 60)

    # The folder is the same arm, and what is trained is not trained again.
    folder = str(self.workdir / "hsrl")
    again, out = self.run_mode(
      "ab", ab.run, control=folder, treatment="greedy_oracle"
    )
    self.assertNotIn("policy ...", out)
    self.assertEqual(again["control"], "hsrl")
    self.assertEqual(
      again["measures"]["depth"]["control"],
      results["measures"]["depth"]["treatment"],
    )

    # Sessions of other users or other luck are no pair.
    other = self.workdir / "other"
    other.mkdir()
    with np.load(self.workdir / "hsrl" / SESSIONS) as file:
      sessions = dict(file)
    sessions["greedy_oracle/positives"] = (
      sessions["greedy_oracle/positives"] + 1
    )
    np.savez(other / SESSIONS, **sessions)
    with self.assertRaisesRegex(InputError, "other.*another simulator"):
      self.run_mode("ab", ab.run, control=folder, treatment=str(other))
    with self.assertRaisesRegex(InputError, "'nobody' is no arm"):
      self.run_mode("ab", ab.run, control="nobody")

    results, out = self.run_mode(
      "offline_check", offline_check.run, temperatures=(1.0, 0.5)
    )
    self.assertNotIn("policy ...", out)
    self.assertLess(max(map(len, out.splitlines())), 81)
    # At the temperature of the logs all of them count alike.
    first = results["simulated"][0]
    self.assertAlmostEqual(first["effective_sample_size"], first["draws"])
    self.assertEqual(first["draws"], 150 * 5)
    self.assertLess(results["logged"][0]["effective_sample_size"], 120 * 5)

  def test_an_agent_without_probabilities_is_refused(self):
    policy = dataclasses.replace(BASE.policy, agent="random")
    experiment = jobs.Experiment(
      "offline_check",
      dataclasses.replace(BASE, policy=policy),
      config_lib.ExperimentConfig(),
      self.workdir,
      "",
    )
    with (
      contextlib.redirect_stdout(io.StringIO()),
      contextlib.redirect_stderr(io.StringIO()),
      self.assertRaisesRegex(InputError, "no probabilities"),
    ):
      offline_check.run(experiment)


if __name__ == "__main__":
  absltest.main()
