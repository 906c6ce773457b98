"""Benchmark and ablation, small, by the command; and what they print."""

import contextlib
import copy
import io
import json
import pathlib
import tempfile
import types
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import agents
from hsrl_jax import config as config_lib
from hsrl_jax.experiments import ablation, benchmark, comparison, jobs
from hsrl_jax.report import plots
from tests import command

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
  f"--flagfile={ROOT}/launch/flags/smoke.flags",
  "--simulator_epochs=2",
  "--sid_iterations=5",
  "--sid_restarts=1",
  "--sid_vocab_size=10",
  "--iterations=40",
  "--iterations_per_call=20",
  "--curve_every=40",
  "--save_every=40",
  "--curve_episodes=4",
  "--evaluate_episodes=60",
  "--experiment_protocols=no_repeat",
  "--experiment_resamples=200",
)


class SmallTest(absltest.TestCase):
  """Both experiments in one folder, so that they share the job of HSRL."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.workdir = pathlib.Path(root) / "run"
    cls.ran, cls.results = {}, {}
    for mode, entrants in (
      ("benchmark", "--experiment_agents=popularity,hsrl"),
      ("ablation", "--experiment_variants=collided_sids"),
    ):
      cls.ran[mode] = cls._run(mode, entrants)
      path = cls.workdir / "results.json"
      cls.results[mode] = json.loads(path.read_text())

  @classmethod
  def _run(cls, mode, *arguments):
    return command.run(
      *SMALL, f"--mode={mode}", f"--workdir={cls.workdir}", *arguments
    )

  def test_they_end_well_and_share(self):
    for status, _, err in self.ran.values():
      self.assertEqual(status, 0, err)
    self.assertIn("job 2 of 2: no_repeat/hsrl", self.ran["benchmark"][1])
    found = [x.name.split("-")[0] for x in (self.workdir / "shared").iterdir()]
    # Other SIDs are others; the rest is made once, HSRL is trained once.
    self.assertCountEqual(found, ["data", "quantize", "quantize", "simulator"])
    self.assertEqual(self.ran["ablation"][1].count("policy ..."), 1)

  def test_rows_are_what_the_sessions_say(self):
    for mode, other in (("benchmark", "popularity"), ("ablation", "hsrl")):
      found = self.results[mode]["protocols"]["no_repeat"]
      name = {"ablation": "collided_sids"}.get(mode, other)
      rewards = [
        np.load(self.workdir / "no_repeat" / folder / "sessions.npz")[
          f"{agent}/total_reward"
        ].astype(float)
        for folder, agent in (("hsrl", "hsrl"), (name, other))
      ]
      row = found["entrants"][name]
      self.assertAlmostEqual(
        row["total_reward"]["mean"], rewards[1].mean(), places=5
      )
      self.assertEqual(rewards[0].shape, (2, 60))
      more = row["difference"]
      self.assertAlmostEqual(
        more["mean"], rewards[0].mean() - rewards[1].mean(), places=5
      )
      self.assertLess(more["ci95"][0], more["ci95"][1])
      self.assertGreater(row["seconds"], 0)
      self.assertIsNone(found["entrants"]["hsrl"]["difference"])
      self.assertGreater(
        found["bounds"]["greedy_oracle"]["total_reward"]["mean"],
        found["bounds"]["random"]["total_reward"]["mean"],
      )
    self.assertEqual(row["changed"], {"quantizer.assignment": "plain"})
    self.assertGreater(row["iterations_per_second"], 0)

  def test_results_say_how_they_came_about(self):
    results = self.results["benchmark"]
    self.assertStartsWith(results["command"], "python -m hsrl_jax.launch --fl")
    self.assertNotIn(str(ROOT), results["command"])
    self.assertNotIn("workdir", results["command"])
    self.assertEqual(results["seeds"], [0, 1])
    self.assertTrue(results["commit"])
    spent = json.loads((self.workdir / "seconds.json").read_text())
    self.assertGreater(spent["no_repeat/hsrl"]["policy"], 0)

  def test_a_second_time_there_is_nothing_to_do(self):
    def written():
      names = ("checkpoints", "sessions.npz", "seconds.json")
      return {
        x: x.stat().st_mtime_ns
        for name in names
        for x in self.workdir.rglob(name)
      }

    before = written()
    status, out, err = self._run(
      "ablation", "--experiment_variants=collided_sids"
    )
    self.assertEqual(status, 0, err)
    self.assertNotIn("policy ...", out)
    self.assertEqual(before, written())
    self.assertEqual((self.workdir / "table.txt").read_text() in out, True)
    again = json.loads((self.workdir / "results.json").read_text())
    self.assertEqual(again, self.results["ablation"])

  def test_another_configuration_is_refused(self):
    status, _, err = self._run(
      "ablation", "--experiment_variants=collided_sids", "--iterations=80"
    )
    self.assertEqual(status, 2)
    self.assertLen(err.splitlines(), 1)
    self.assertIn("error: job no_repeat/hsrl: ", err)
    self.assertIn("use a new --workdir", err)

  def test_agents_without_hsrl(self):
    status, _, err = self._run("benchmark", "--experiment_agents=popularity")
    self.assertEqual(status, 2)
    self.assertIn("expected hsrl among them", err)


def _experiment(name):
  """With all at its defaults."""
  return jobs.Experiment(
    name,
    agents.configure(config_lib.Config(), "hsrl"),
    config_lib.ExperimentConfig(),
    pathlib.Path(),
    "",
  )


class EntrantsTest(parameterized.TestCase):
  def test_without_logs_there_is_nobody_who_learns_from_them(self):
    for own_users in (True, False):
      run = types.SimpleNamespace(own_users=own_users, name="urm.npz")
      with (
        mock.patch.object(benchmark, "Run", return_value=run),
        mock.patch.object(comparison, "run") as compare,
        contextlib.redirect_stdout(io.StringIO()) as out,
      ):
        benchmark.run(_experiment("benchmark"))
      absent = {"popularity", "sasrec"} if own_users else set()
      self.assertEqual(
        set(compare.call_args.args[1]), set(agents.AGENTS) - absent
      )
      self.assertEqual("popularity, sasrec" in out.getvalue(), own_users)

  @parameterized.parameters(*agents.AGENTS)
  def test_the_budget_is_the_same(self, agent):
    experiment = _experiment("benchmark")
    base, config = experiment.base, benchmark.entrant(experiment, agent)
    self.assertEqual(config.agent, agent)
    self.assertEqual(config.network, base.network)
    for name in ("iterations", "users", "batch_size"):
      self.assertEqual(getattr(config.train, name), getattr(base.train, name))

  @parameterized.parameters(*config_lib.VARIANTS)
  def test_a_variant_changes_what_it_says(self, name):
    experiment = _experiment("ablation")
    found = comparison.changed(
      experiment.base, ablation.variant(experiment, name)
    )
    names = {x.split(".")[1].replace("assig", "sid_assig") for x in found}
    self.assertNotEmpty(names)
    # What the flags' defaults are is said all the same.
    self.assertContainsSubset(names, ablation.CHANGES[name])

  def test_paper_is_its_flagfile(self):
    text = (ROOT / "launch" / "flags" / "paper.flags").read_text()
    given = dict(
      x.removeprefix("--").split("=") for x in text.split() if "=" in x
    )
    for name, value in ablation.CHANGES["paper"].items():
      self.assertEqual(json.loads(given.pop(name)), value, name)
    # The rest is the published code's, in every job alike.
    self.assertEqual(
      set(given),
      {
        "workdir",
        "iterations",
        "seeds",
        "layers",
        "learning_rate",
        "curve_every",
      },
    )


def _measure(mean):
  return {"mean": mean, "ci95": [mean - 10, mean + 10], "per_seed": [mean]}


class TableTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    names = {*agents.AGENTS, *config_lib.VARIANTS}
    rows = {
      name: {
        "total_reward": _measure(-99.0 + i),
        "normalised": _measure(-9.0 + i),
        "difference": _measure(-99.0) if name != "hsrl" else None,
      }
      for i, name in enumerate(sorted(names))
    }
    bounds = {"best_constant": rows["a2c"]}
    found = {"bounds": bounds, "entrants": rows}
    self.results = {
      "dataset": "a_dataset_with_a_long_name",
      "split": "test",
      "episodes": 123_456,
      "iterations": 123_456,
      "reference": "hsrl",
      "protocols": {"paper": found, "no_repeat": copy.deepcopy(found)},
    }

  def test_the_table_fits_a_terminal(self):
    lines = comparison.table(self.results).splitlines()
    self.assertLessEqual(max(map(len, lines)), 80)
    # Sorted by reward, which rises with the name here; the reference has no
    # difference to itself.
    first = lines.index(next(x for x in lines if x.startswith("---"))) + 1
    shown = [x.split()[0] for x in lines[first : lines.index("", first)]]
    entrants = self.results["protocols"]["paper"]["entrants"]
    self.assertEqual([x for x in shown if x in entrants], sorted(entrants))
    for line in lines:
      if line.startswith(("hsrl ", "a2c ")):
        self.assertEqual(line.count("["), 1 if line[0] == "h" else 2)

  def test_the_plot_draws_every_entrant(self):
    figure = comparison.plot(self.results)
    self.assertLen(figure.axes, 2)
    labels = [x.get_text() for x in figure.axes[0].get_yticklabels()]
    shown = [
      x.replace("_", " ")
      for x in self.results["protocols"]["paper"]["entrants"]
    ]
    self.assertCountEqual(labels, shown)
    self.assertStartsWith(plots.png(figure)[1:4].decode(), "PNG")


class CommandLineTest(absltest.TestCase):
  def test_folders_of_this_machine_do_not_show(self):
    found = jobs.command_line(
      ["--flagfile=launch/x.flags", "--raw_data_dir=/a/b/ml", "--workdir=/w"]
    )
    self.assertEqual(
      found,
      "python -m hsrl_jax.launch --flagfile=launch/x.flags "
      "--raw_data_dir=.../ml",
    )


if __name__ == "__main__":
  absltest.main()
