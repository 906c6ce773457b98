"""Experiment `one_policy`: who starts from whom, and all of it, small."""

import json
import pathlib
import tempfile
import types
from unittest import mock

import pytest
from absl.testing import absltest

from hsrl_jax.errors import InputError
from hsrl_jax.experiments import held_out_rows, jobs, one_policy
from hsrl_jax.experiments.registry import OnePolicy
from tests import command, toy

SMALL = (
  *("--dataset=toy", "--sid_levels=2", "--sid_vocab_size=10"),
  "--simulator_epochs=2",
  *("--width=8", "--critic_hidden=8", "--users=16"),
  *("--iterations=40", "--iterations_per_call=20", "--curve_every=40"),
  *("--save_every=40", "--evaluate_episodes=60"),
  *("--next_item_width=8", "--next_item_hidden=8"),
)
FIRST = types.SimpleNamespace(workdir=pathlib.Path("there"))


def _experiment(**config):
  base = toy.config("hsrl", recipe="next_item,on_policy")
  own = OnePolicy(**config)
  return jobs.Experiment("one_policy", base, own, pathlib.Path("one"), "")


class JobsTest(absltest.TestCase):
  def test_rows_differ_in_what_they_say(self):
    changes = {"hsrl": {}} | one_policy.VARIANTS
    found = [
      one_policy._job(_experiment(), name, x, FIRST)
      for name, x in changes.items()
    ]
    configs = {x.name: x.config for x in found}
    self.assertCountEqual(configs, changes)
    alone = configs.pop("rl_alone")
    self.assertEqual(alone.train.recipe, "on_policy")
    self.assertIsNone(alone.train.continue_from)
    own = configs.pop("hsrl")
    for name, config in configs.items():
      self.assertEqual(config.train, own.train, name)
      self.assertEqual(config.train.continue_from, "there", name)
      self.assertNotEqual(
        (config.agent, config.settings), (own.agent, own.settings), name
      )

  def test_an_unknown_variant_is_refused(self):
    message = "variants has 'fast'; expected some"
    with self.assertRaisesRegex(InputError, message):
      one_policy.run(_experiment(variants=("fast",)))

  def test_without_logs_there_is_nothing_to_hold_out(self):
    run = types.SimpleNamespace(without_slates=True)
    self.enter_context(mock.patch.object(one_policy, "Run", return_value=run))
    with self.assertRaisesRegex(InputError, "needs logged slates"):
      one_policy.run(_experiment())


@pytest.mark.slow
class WholeTest(absltest.TestCase):
  def test_both_measures_of_all_rows(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    given = (
      *(*SMALL, "--experiment=one_policy", "--seeds=0,1"),
      *("--recipe=next_item,on_policy", f"--workdir={folder}/own"),
      *("--experiment_variants=rl_alone", "--next_item_epochs=1"),
      *("--simulator_observed=interactions", "--segment=10", "--minibatches=2"),
    )
    status, out, err = command.run(*given)
    self.assertEqual(status, 0, err)
    self.assertIn("rl_alone", out)
    results = json.loads((folder / "own" / "results.json").read_text())
    rows = results["rows"]
    self.assertCountEqual(rows, ("supervised", "hsrl", "rl_alone"))
    for name in ("hsrl", "rl_alone"):
      for measure in (*held_out_rows.MEASURES, "total_reward"):
        self.assertIn("ci95", rows[name]["difference"][measure])
    # What more it earns is more than RL alone does.
    both = [rows[x]["total_reward"]["mean"] for x in ("hsrl", "rl_alone")]
    more = rows["hsrl"]["difference"]["total_reward"]["mean"]
    self.assertAlmostEqual(more, both[0] - both[1], places=4)
    status, out, err = command.run(f"--workdir={folder}/own")
    self.assertEqual(status, 0, err)
    self.assertNotIn("policy done", out)


if __name__ == "__main__":
  absltest.main()
