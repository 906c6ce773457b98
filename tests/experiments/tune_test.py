"""Experiment `tune`: equal trials for all, and what others take of them."""

import contextlib
import io
import json
import pathlib
import tempfile
import types
from unittest import mock

from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError
from hsrl_jax.experiments import (
  compare,
  entrants,
  jobs,
  results,
  tune,
  world,
)
from hsrl_jax.experiments.registry import LAUNCH, Tune
from tests import command


def _tuned(*paths):
  tuned = tuple(map(str, paths))
  return entrants.tuned(tuned)


class GridTest(parameterized.TestCase):
  @parameterized.parameters(
    *("hsrl", "a2c", "ddpg", "td3", "sasrec"),
    *("capped", "spaced", "diverse"),
  )
  def test_trials_are_as_many_and_differ(self, agent):
    experiment = command.experiment("tune")
    for trials in (4, 16):
      found = tune.grid(agent, trials)
      self.assertLen(found, trials)
      self.assertLen({tuple(sorted(x.items())) for x in found}, trials)
      for changes in found:
        config = tune.configured(experiment, agent, changes)
        self.assertEqual(config.evaluate.split, "val")
        for field, value in changes.items():
          part = config.train
          if hasattr(config.settings, field):
            part = config.settings
          self.assertEqual(getattr(part, field), value)

  def test_rates_by_hand(self):
    rates = sorted({x["learning_rate"] for x in tune.grid("hsrl", 16)})
    # 3e-4 to 1e-2 in three steps of a factor of 3.22.
    self.assertEqual(rates, [0.0003, 0.00097, 0.0031, 0.01])


class RunTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.workdir = root / "bored"
    self.workdir.mkdir()
    self.enter_context(
      mock.patch.object(
        entrants,
        "Run",
        return_value=types.SimpleNamespace(without_slates=False),
      )
    )

    def run_all(experiment, jobs_):
      runs = {}
      for job in jobs_:
        # The third trial of each agent earns most.
        reward = 9.0 if job.name.endswith("_2") else 1.0
        measure = {"mean": reward, "ci95": [reward, reward]}
        policies = {job.config.agent: {"total_reward": measure}}
        results = {"policies": policies}
        runs[job.name] = types.SimpleNamespace(results=lambda x=results: x)
      return runs

    self.experiment = command.experiment(
      "tune", self.workdir, agents=("random", "td3", "hsrl"), trials=4
    )
    with (
      mock.patch.object(jobs, "run_all", run_all),
      contextlib.redirect_stdout(io.StringIO()) as out,
    ):
      tune.run(self.experiment)
    self.out = out.getvalue()
    self.path = self.workdir / "results.json"
    self.found = json.loads(self.path.read_text())

  def test_the_best_trial_is_kept_beside_all(self):
    # Nothing is to be tuned in what is random.
    self.assertCountEqual(self.found["trials"], ["td3", "hsrl"])
    for name, trials in self.found["trials"].items():
      self.assertLen(trials, 4)
      self.assertEqual(self.found["best"][name], tune.grid(name, 4)[2])
      self.assertRegex(self.out, rf"{name} +4 +1.00 +9.00")

  def test_world_takes_it_and_twins_differ_as_before(self):
    best = self.found["best"]
    config = {"agents": ("td3",), "variants": (), "tuned": (str(self.path),)}
    entered = world.entered(command.experiment("world", **config))
    for name, agent in (("hsrl", "hsrl"), ("td3", "td3")):
      config = entered[name][1]
      for field, value in best[agent].items():
        part = config.train
        if hasattr(config.settings, field):
          part = config.settings
        self.assertEqual(getattr(part, field), value)
    twin = entered["hsrl_gamma_0"][1]
    self.assertEqual(
      entrants.changed(entered["hsrl"][1], twin), {"policy.discount": 0.0}
    )

  def test_benchmark_and_ablation_take_it(self):
    best = self.found["best"]
    with mock.patch.object(compare, "compare") as compared:
      for name, config in (
        ("benchmark", {"agents": ("td3", "hsrl")}),
        ("ablation", {"variants": ("ddpg", "no_residual")}),
      ):
        own = config | {"tuned": (str(self.path),)}
        LAUNCH.known[name].load().run(command.experiment(name, **own))
        for name, found in compared.call_args.args[1].items():
          # Another agent has of HSRL's settings what it reads.
          for field, value in best["td3" if name == "td3" else "hsrl"].items():
            part = found.train
            if hasattr(found.settings, field):
              part = found.settings
            if hasattr(part, field):
              self.assertEqual(getattr(part, field), value, name)
    self.assertFalse(found.settings.has("residual"))

  def test_flags_of_hsrl_may_stand_in_the_flagfile_of_others(self):
    config = Tune(agents=("td3",))
    self.assertCountEqual(tune.compared(config), ["td3", "hsrl"])

  def test_a_file_of_something_else(self):
    self.path.write_text('{"format": 1}')
    with self.assertRaisesRegex(InputError, "lacks 'best'; expected .* tune"):
      _tuned(self.path)
    with self.assertRaisesRegex(InputError, "is missing; expected"):
      _tuned(f"{self.path}x")

  def test_agents_of_two_files(self):
    other = self.path.with_name("other.json")
    other.write_text('{"format": 1, "best": {"planner": {"discount": 0.8}}}')
    best = self.found["best"] | {"planner": {"discount": 0.8}}
    self.assertEqual(_tuned(self.path, other), best)
    with self.assertRaisesRegex(InputError, "other.json has planner again"):
      _tuned(other, self.path, other)

  def test_results_keep_the_trials_and_show_none(self):
    docs = self.workdir.parent / "docs"
    folders = (str(self.workdir),)
    with contextlib.redirect_stdout(io.StringIO()):
      results.run(command.experiment("results", docs, workdirs=folders))
    kept = json.loads((docs / "results" / "tuning" / "bored.json").read_text())
    self.assertEqual(kept["trials"], self.found["trials"])
    self.assertNotIn("bored", (docs / "RESULTS.md").read_text())


if __name__ == "__main__":
  absltest.main()
