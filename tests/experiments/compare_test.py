"""Benchmark and ablation, small, by the command; and what they print."""

import contextlib
import copy
import dataclasses
import io
import json
import pathlib
import tempfile
import types
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import agents
from hsrl_jax import config as config_lib
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds, held_out
from hsrl_jax.experiments import (
  ablation,
  benchmark,
  compare,
  entrants,
  held_out_rows,
  jobs,
)
from hsrl_jax.experiments.registry import Ablation
from hsrl_jax.report import experiment_plots, plots
from hsrl_jax.stages.evaluate import SESSIONS
from tests import command

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (*command.JOBS, "--experiment_protocols=no_repeat")


@pytest.mark.slow
class WholeTest(absltest.TestCase):
  """Both experiments in one folder, so that they share the job of HSRL."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.workdir = pathlib.Path(root) / "run"
    cls.ran, cls.results = {}, {}
    for mode, chosen in (
      ("benchmark", "--experiment_agents=popularity,hsrl"),
      ("ablation", "--experiment_variants=collided_sids"),
    ):
      cls.ran[mode] = cls._run(mode, chosen)
      path = cls.workdir / "results.json"
      cls.results[mode] = json.loads(path.read_text())

  @classmethod
  def _run(cls, mode, *arguments):
    return command.run(
      *SMALL, f"--experiment={mode}", f"--workdir={cls.workdir}", *arguments
    )

  def test_they_end_well_and_share(self):
    for status, _, err in self.ran.values():
      self.assertEqual(status, 0, err)
    self.assertIn("job 2 of 2: no_repeat/hsrl", self.ran["benchmark"][1])
    found = [x.name.split("-")[0] for x in (self.workdir / "shared").iterdir()]
    # Other SIDs are others; the rest is made once, HSRL is trained once.
    self.assertCountEqual(
      found, ["data", "quantize", "quantize", "simulator", "bounds"]
    )
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
    self.assertIn("--iterations was 40, now 80", err)
    self.assertIn("use a new workdir", err)

  def test_agents_without_hsrl(self):
    status, _, err = self._run("benchmark", "--experiment_agents=popularity")
    self.assertEqual(status, 2)
    self.assertIn("expected hsrl among them", err)


class EntrantsTest(parameterized.TestCase):
  def test_without_logs_there_is_nobody_who_learns_from_them(self):
    for without_slates in (True, False):
      run = types.SimpleNamespace(without_slates=without_slates, name="urm.npz")
      with (
        mock.patch.object(entrants, "Run", return_value=run),
        mock.patch.object(compare, "compare") as compared,
        contextlib.redirect_stdout(io.StringIO()) as out,
      ):
        benchmark.run(command.experiment("benchmark"))
      absent = {"popularity", "sasrec"} if without_slates else set()
      self.assertEqual(
        set(compared.call_args.args[1]), set(agents.AGENTS) - absent
      )
      self.assertEqual("popularity, sasrec" in out.getvalue(), without_slates)

  @parameterized.parameters(*agents.AGENTS)
  def test_the_budget_is_the_same(self, agent):
    experiment = command.experiment("benchmark")
    base, config = experiment.base, entrants.agent(experiment, agent)
    self.assertEqual(config.agent, agent)
    self.assertEqual(config.network, base.network)
    for name in ("iterations", "users", "batch_size"):
      self.assertEqual(getattr(config.train, name), getattr(base.train, name))

  @parameterized.parameters(*entrants.VARIANTS)
  def test_a_variant_changes_what_it_says(self, name):
    experiment, changes = (
      command.experiment("ablation"),
      entrants.VARIANTS[name],
    )
    config = entrants.vary(experiment, changes)
    differing = entrants.changed(experiment.base, config)
    self.assertNotEmpty(differing)
    for path, value in differing.items():
      self.assertEqual(value, changes[path.split(".")[1]])

  def test_a_world_with_a_protocol_of_its_own(self):
    config = command.experiment("benchmark").base
    simulator = config_lib.SimulatorConfig(world="SlateTopK-Bored")
    config = dataclasses.replace(config, simulator=simulator)
    self.assertEqual(entrants.under(config, "paper"), config)
    line = "protocol 'no_repeat' of the experiment: .*SlateTopK-Bored"
    with self.assertRaisesRegex(InputError, line):
      entrants.under(config, "no_repeat")

  def test_all_variants_unless_some_are_named(self):
    for names, expected in (((), entrants.VARIANTS), (("ddpg",), ["ddpg"])):
      experiment = command.experiment("ablation", variants=names)
      with mock.patch.object(compare, "compare") as compared:
        ablation.run(experiment)
      self.assertEqual(list(compared.call_args.args[1]), ["hsrl", *expected])
    config = Ablation(variants=("ddpg", "none_such"))
    with self.assertRaisesRegex(InputError, "'none_such'; expected .*ddpg"):
      ablation.run(experiment._replace(config=config))


class _Evaluated(types.SimpleNamespace):
  """A run as its stage evaluate leaves it."""

  def results(self):
    policies = {
      name: {"total_reward": _measure(1.0), "normalised": _measure(0.5)}
      for name in (self.config.agent, *bounds.BOUNDS, bounds.FARSIGHTED)
    }
    facts = {"dataset": "toy", "split": "test", "episodes": 60}
    return facts | {"simulator": {}, "policies": policies}


class RowsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(root)
    rng = np.random.default_rng(0)
    self.rewards = {}

    def run_all(experiment, jobs_):
      runs = {}
      for job in jobs_:
        folder = self.workdir / job.name
        folder.mkdir(parents=True)
        names = (job.config.agent, *bounds.BOUNDS, bounds.FARSIGHTED)
        for name in names:
          self.rewards[job.name, name] = rng.normal(size=(2, 60))
        sessions = {
          f"{x}/total_reward": self.rewards[job.name, x] for x in names
        }
        user = np.repeat(np.arange(30), 2)
        np.savez(folder / SESSIONS, format=1, user=user, **sessions)
        runs[job.name] = _Evaluated(config=job.config, workdir=folder)
      return runs

    experiment = command.experiment(
      "ablation",
      self.workdir,
      protocols=("no_repeat",),
      variants=("collided_sids", "ddpg"),
    )
    # Two seeds; half of the rows have a measure.
    user = np.arange(8) // 2
    self.ranked = {
      name: [
        dict.fromkeys(
          held_out_rows.MEASURES,
          held_out.Measured(
            np.where(user % 2, rng.normal(size=8), np.nan), user
          ),
        )
        for _ in range(2)
      ]
      for name in ("hsrl", "collided_sids", "item_mean")
    }

    def of_policy(run):
      return self.ranked.get(run.workdir.name, [])

    def of_lists(run):
      return {"item_mean": self.ranked["item_mean"][:1]}

    with (
      mock.patch.object(jobs, "run_all", run_all),
      mock.patch.object(held_out_rows, "of_policy", of_policy),
      mock.patch.object(held_out_rows, "of_lists", of_lists),
      contextlib.redirect_stdout(io.StringIO()) as out,
    ):
      ablation.run(experiment)
    self.out = out.getvalue()
    self.found = json.loads((self.workdir / "results.json").read_text())
    self.policies = self.found["protocols"]["no_repeat"]

  def test_differences_are_those_of_the_sessions(self):
    hsrl = self.rewards["no_repeat/hsrl", "hsrl"]
    rows = self.policies["entrants"] | self.policies["bounds"]
    self.assertIsNone(rows["hsrl"]["difference"])
    for name, job, agent in (
      ("collided_sids", "collided_sids", "hsrl"),
      ("ddpg", "ddpg", "ddpg"),
      ("random", "hsrl", "random"),
      ("farsighted", "hsrl", "farsighted"),
    ):
      more = rows[name]["difference"]
      other = self.rewards[f"no_repeat/{job}", agent]
      self.assertAlmostEqual(more["mean"], hsrl.mean() - other.mean())
      self.assertBetween(more["mean"], *more["ci95"])

  def test_the_scale_is_that_of_the_best_bound(self):
    self.assertIn("0 random, 1 best bound.", compare.table(self.found))
    del self.policies["bounds"]["farsighted"]
    self.assertIn("0 random, 1 greedy oracle.", compare.table(self.found))

  def test_held_out_logs_stand_beside(self):
    found = self.policies["held_out"]
    # What ranks nothing has no row.
    self.assertCountEqual(found, self.ranked)
    self.assertIsNone(found["hsrl"]["difference"])
    values = {
      name: np.array([x["recall@10"].value for x in seeds])[:, [2, 3, 6, 7]]
      for name, seeds in self.ranked.items()
    }
    values["item_mean"] = values["item_mean"][:1]
    for name, row in found.items():
      self.assertAlmostEqual(row["recall@10"]["mean"], values[name].mean())
      if row["difference"]:
        self.assertAlmostEqual(
          row["difference"]["recall@10"]["mean"],
          (values["hsrl"] - values[name]).mean(),
        )
    mean = values["collided_sids"].mean()
    self.assertRegex(self.out, rf"collided_sids +{mean:z.4f} +\[")
    self.assertIn("no_repeat: recall@10", self.out)
    # Results of earlier versions have none.
    del self.policies["held_out"]
    self.assertNotIn("recall", compare.table(self.found))

  def test_rows_say_what_was_changed(self):
    changed = {k: x["changed"] for k, x in self.policies["entrants"].items()}
    self.assertEqual(
      changed,
      {
        "hsrl": {},
        "collided_sids": {"quantizer.assignment": "plain"},
        "ddpg": {"policy.agent": "ddpg"},
      },
    )


def _measure(mean):
  return {"mean": mean, "ci95": [mean - 10, mean + 10], "per_seed": [mean]}


class TableTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    names = {*agents.AGENTS, *entrants.VARIANTS}
    rows = {
      name: {
        "total_reward": _measure(-99.0 + i),
        "normalised": _measure(-9.0 + i),
        "difference": _measure(-99.0) if name != "hsrl" else None,
      }
      for i, name in enumerate(sorted(names))
    }
    bounds = {"best_constant": rows["a2c"]}
    share = dict.fromkeys(held_out_rows.MEASURES, _measure(-0.1))
    found = {
      **{"bounds": bounds, "entrants": rows},
      "held_out": {
        name: share | {"difference": share if name != "hsrl" else None}
        for name in names
      },
    }
    self.results = {
      "dataset": "a_dataset_with_a_long_name",
      "split": "test",
      "episodes": 123_456,
      "iterations": 123_456,
      "reference": "hsrl",
      "protocols": {"paper": found, "no_repeat": copy.deepcopy(found)},
    }

  def test_the_table_fits_a_terminal(self):
    lines = compare.table(self.results).splitlines()
    self.assertLessEqual(max(map(len, lines)), 80)
    # Sorted by reward, which rises with the name here; the reference has no
    # difference to itself.
    head = next(
      i for i, x in enumerate(lines) if x.split()[:2] == ["paper", "reward"]
    )
    first = head + 2
    shown = [x.split()[0] for x in lines[first : lines.index("", first)]]
    entrants = self.results["protocols"]["paper"]["entrants"]
    self.assertEqual([x for x in shown if x in entrants], sorted(entrants))
    for line in lines:
      if line.startswith(("hsrl ", "a2c ")):
        self.assertEqual(line.count("["), 1 if line[0] == "h" else 2)

  def test_the_plot_draws_every_entrant(self):
    figure = experiment_plots.compare(self.results)
    self.assertLen(figure.axes, 4)
    labels = [x.get_text() for x in figure.axes[0].get_yticklabels()]
    shown = [
      x.replace("_", " ")
      for x in self.results["protocols"]["paper"]["entrants"]
    ]
    self.assertCountEqual(labels, shown)
    dots = [x for x in figure.axes[1].lines if x.get_marker() in ("o", "D")]
    self.assertLen(dots, len(shown))
    self.assertEqual({float(x.get_xdata()[0]) for x in dots}, {-0.1})
    self.assertStartsWith(plots.png(figure)[1:4].decode(), "PNG")


class CommandLineTest(absltest.TestCase):
  def test_folders_of_this_machine_do_not_show(self):
    found = jobs.command_line(
      "hsrl_jax.launch",
      ["--flagfile=launch/x.flags", "--raw_data_dir=/a/b/ml", "--workdir=/w"],
    )
    self.assertEqual(
      found,
      "python -m hsrl_jax.launch --flagfile=launch/x.flags "
      "--raw_data_dir=.../ml",
    )


if __name__ == "__main__":
  absltest.main()
