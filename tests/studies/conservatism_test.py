"""Experiment `conservatism`: its plan, its table, and all of it, small."""

import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest

from hsrl_jax import config as config_lib
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import jobs
from hsrl_jax.studies import conservatism
from hsrl_jax.studies.registry import Conservatism
from tests import toy

TOY = toy.config(iterations=4, curve_every=4, save_every=4, seeds=(0, 1))
BASE = dataclasses.replace(
  TOY,
  train=dataclasses.replace(TOY.train, segment=4),
  data=config_lib.DataConfig("toy"),
  quantizer=config_lib.QuantizerConfig(levels=2, vocab_size=16),
  simulator=config_lib.SimulatorConfig(epochs=1, max_steps=2),
  evaluate=config_lib.EvaluateConfig(episodes=50),
)
CONFIG = Conservatism(logged_slates=(20, 40), conservative_weights=(0.0, 0.1))


def _experiment(workdir="nowhere", config=CONFIG):
  return jobs.Experiment(
    "conservatism", BASE, config, pathlib.Path(workdir), ""
  )


class PlanTest(absltest.TestCase):
  def test_sizes_then_weights_and_nothing_twice(self):
    rows = [x[1:] for x in conservatism.plan(_experiment())]
    own = [
      ("cql", 20, 0.1),
      ("cql", 40, 0.1),
      ("cql", 40, 0.0),
      ("hsrl", 20, None),
      ("hsrl", 40, None),
      ("model", 20, None),
      ("model", 40, None),
    ]
    self.assertEqual(rows, own * 2)

  def test_who_does_not_learn_from_logs_is_refused(self):
    config = dataclasses.replace(CONFIG, agents=("td3",))
    with self.assertRaisesRegex(
      InputError, "has 'td3'; expected some of .*hsrl"
    ):
      conservatism.compared(config)

  def test_table_is_80_columns(self):
    measure = {"mean": -123.4, "ci95": [-124.5, -122.1]}
    row = {
      **{"logging": "uniform", "agent": "sasrec", "slates": 100_000},
      **{"weight": 0.01, "total_reward": measure, "in_model": measure},
      **{"above_logging": measure, "above_best_constant": measure},
    }
    names = ("best_constant", "logging: uniform", "logging: popularity")
    results = {
      **{"dataset": "movielens_latest_small", "split": "test"},
      **{"episodes": 2_000, "iterations": 100_000},
      "bounds": dict.fromkeys(names, measure),
      "rows": [
        row,
        *(row | {"logging": x, "weight": None} for x in conservatism.LOGGING),
      ],
    }
    text = conservatism.table(results)
    self.assertLessEqual(max(map(len, text.splitlines())), 80, text)
    self.assertLen(conservatism.figure(results).axes, 4)
    results["rows"] = results["rows"][1:]
    self.assertLen(conservatism.figure(results).axes, 2)


@pytest.mark.slow
class WholeTest(absltest.TestCase):
  def test_from_data_to_plot_and_again(self):
    root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    config = dataclasses.replace(
      CONFIG,
      logged_slates=(40,),
      conservative_weights=(0.0,),
      agents=("cql", "model"),
    )
    fit = conservatism.simulator.run
    with (
      mock.patch.object(conservatism, "LOGGING", ("uniform",)),
      mock.patch.object(conservatism.simulator, "run", wraps=fit) as fits,
      contextlib.redirect_stdout(io.StringIO()) as out,
      contextlib.redirect_stderr(io.StringIO()),
    ):
      conservatism.run(_experiment(root, config))
    results = json.loads((root / "results.json").read_text())
    self.assertTrue((root / "plot.png").exists())
    self.assertLen(results["rows"], 3)
    for row in results["rows"]:
      reward = row["total_reward"]
      self.assertLen(reward["per_seed"], 2)
      logging = results["bounds"][f"logging: {row['logging']}"]["mean"]
      np.testing.assert_allclose(
        row["above_logging"]["mean"], reward["mean"] - logging
      )
      # The estimate is not the truth, but of the same kind.
      self.assertNotEqual(row["in_model"]["per_seed"], reward["per_seed"])
      self.assertLen(row["in_model"]["per_seed"], 2)
    # Nothing is simulated in training, and what is finished is kept.
    lines = (root / "uniform/cql_40_0/policy/metrics.jsonl").read_text()
    self.assertNotIn("eval", lines)
    self.assertIn("job 3 of 3", out.getvalue())
    self.assertEqual(fits.call_count, 2)  # The world's, and one of the logs.


if __name__ == "__main__":
  absltest.main()
