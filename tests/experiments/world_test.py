"""Experiment `world`: rows against the sessions they are made of."""

import contextlib
import io
import json
import pathlib
import tempfile
import types
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest

from hsrl_jax import agents
from hsrl_jax import config as config_lib
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import entrants, jobs, results, world
from hsrl_jax.report import experiment_plots, plots
from hsrl_jax.stages.evaluate import SESSIONS
from tests import command

BOUNDS = ("random", "greedy_oracle", "farsighted")
USERS = np.repeat(np.arange(30), 2)


def _experiment(workdir="bored", recipe="on_policy", **config):
  own = {}
  if recipe == "on_policy":  # What variants turn off.
    own = {"leave_penalty": 1.0, "anchor_weight": 0.5}
  base = agents.configure(config_lib.Config(), "hsrl", recipe=recipe, **own)
  return command.experiment("world", workdir, base, **config)


class EnteredTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    run = types.SimpleNamespace(without_slates=False, name="toy")
    self.run = self.enter_context(
      mock.patch.object(entrants, "Run", return_value=run)
    )

  def test_all_unless_some_are_named(self):
    found = world.entered(_experiment())
    kinds = {kind: set() for kind in world.KINDS}
    for name, (kind, _) in found.items():
      kinds[kind].add(name)
    self.assertEqual(kinds["method"], {"hsrl"})
    self.assertEqual(kinds["twin"], {"hsrl_gamma_0", "hsrl_no_actor"})
    self.assertEqual(kinds["rule"], set(agents.RULES))
    trained = set(agents.AGENTS) - {"hsrl", "random", *agents.RULES}
    self.assertEqual(kinds["agent"], trained)
    self.assertEqual(kinds["variant"], set(entrants.FORESIGHT))

  def test_some_are_named(self):
    found = world.entered(
      _experiment(
        recipe="replay", agents=("ddpg",), variants=("ddpg", "one_critic")
      )
    )
    self.assertEqual(
      {name: kind for name, (kind, _) in found.items()},
      {
        "hsrl": "method",
        "hsrl_gamma_0": "twin",
        "hsrl_no_actor": "twin",
        "ddpg": "agent",
        "hsrl_ddpg": "variant",
        "one_critic": "variant",
      },
    )
    # The agent has its own weight of the actor, the variant that of HSRL.
    self.assertNotEqual(found["ddpg"][1], found["hsrl_ddpg"][1])
    self.assertLen(world.entered(_experiment(agents=(), variants=())), 3)

  def test_an_agent_without_the_recipe_has_its_own(self):
    found = world.entered(_experiment(agents=("ddpg", "ppo"), variants=()))
    recipes = {x: config.train.recipe for x, (_, config) in found.items()}
    self.assertEqual(recipes["ppo"], "on_policy")
    self.assertEqual(recipes["ddpg"], "replay")

  def test_twins_differ_in_one_setting(self):
    found = world.entered(_experiment())
    base = found["hsrl"][1]
    for name, field in (
      ("hsrl_gamma_0", "discount"),
      ("hsrl_no_actor", "actor_weight"),
    ):
      twin = found[name][1]
      self.assertGreater(getattr(base.settings, field), 0)
      self.assertEqual(entrants.changed(base, twin), {f"policy.{field}": 0.0})

  def test_variants_change_what_they_say(self):
    experiment = _experiment()
    for name, changes in entrants.FORESIGHT.items():
      if "times" in changes:  # A test of its own.
        continue
      config = entrants.vary(experiment, changes)
      differing = entrants.changed(experiment.base, config)
      self.assertNotEmpty(differing, name)
      for path, value in differing.items():
        self.assertEqual(value, changes[path.split(".")[1]], name)

  def test_twice_as_long(self):
    found = world.entered(_experiment(agents=(), variants=("twice_as_long",)))
    longer = found["twice_as_long"][1]
    self.assertEqual(
      longer.train.iterations, 2 * found["hsrl"][1].train.iterations
    )

  def test_without_logs_nobody_learns_from_them(self):
    self.run.return_value.without_slates = True
    with contextlib.redirect_stdout(io.StringIO()) as out:
      found = world.entered(_experiment(agents=("sasrec", "td3")))
    self.assertNotIn("sasrec", found)
    self.assertIn("td3", found)
    self.assertIn("left out: sasrec", out.getvalue())

  def test_the_rule_that_validation_users_chose(self):
    root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    trials = {
      "spaced": [({"rule_cap": 1}, 3.0), ({"rule_cap": 2}, 5.0)],
      "diverse": [({"rule_cap": 2}, 4.0)],
      # It stands beside whatever rule is chosen.
      "best_playlist": [({"stay_weight": 2.0}, 9.0)],
    }
    found = {
      "format": jobs.FORMAT,
      "trials": {
        name: [{"changes": x, "total_reward": {"mean": y}} for x, y in rows]
        for name, rows in trials.items()
      },
      "best": {name: rows[-1][0] for name, rows in trials.items()},
    }
    path = root / "tune.json"
    path.write_text(json.dumps(found))
    rules = {"agents": agents.RULES, "tuned": (str(path),)}
    alone = world.entered(_experiment(**rules))
    self.assertEqual(list(alone), ["rule", "best_playlist"])
    kind, config = alone["rule"]
    self.assertEqual((kind, config.agent), ("rule", "spaced"))
    self.assertEqual(config.settings.rule_cap, 2)
    self.assertEqual(alone["best_playlist"][1].settings.stay_weight, 2.0)
    rules["agents"] += ("td3",)
    beside = world.entered(_experiment(variants=(), **rules))
    self.assertContainsSubset({"rule", "best_playlist", "hsrl", "td3"}, beside)
    self.assertNoCommonElements({"spaced", "diverse"}, beside)

  def test_names_that_are_unknown(self):
    with self.assertRaisesRegex(InputError, "agents has 'none_such'"):
      world.entered(_experiment(agents=("none_such",)))
    with self.assertRaisesRegex(InputError, "variants has 'none_such'"):
      world.entered(_experiment(variants=("none_such",)))


class _Evaluated(types.SimpleNamespace):
  """A run as its stage evaluate leaves it."""

  def results(self):
    policies = {
      name: {
        "total_reward": _measure(self.rewards[name].mean()),
        "normalised": _measure(0.5),
        "depth": _measure(20.0),
      }
      for name in (self.config.agent, *BOUNDS)
    }
    facts = {"dataset": "toy", "split": "test", "episodes": 60}
    return facts | {"protocol": "paper", "simulator": {}, "policies": policies}


def _measure(mean):
  return {"mean": mean, "ci95": [mean - 1, mean + 1], "per_seed": [mean]}


class RowsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.workdir = root / "bored"
    rng = np.random.default_rng(0)
    bounds = {x: rng.normal(size=(1, 60)) for x in BOUNDS}
    self.rewards = {}

    def run_all(experiment, jobs_):
      runs = {}
      for i, job in enumerate(jobs_):
        folder = self.workdir / job.name
        folder.mkdir(parents=True)
        own = rng.normal(size=(2, 60)) + i
        self.rewards[job.name] = own
        rewards = bounds | {job.config.agent: own}
        np.savez(
          folder / SESSIONS,
          format=1,
          user=USERS,
          **{f"{k}/total_reward": x for k, x in rewards.items()},
        )
        runs[job.name] = _Evaluated(
          config=job.config, workdir=folder, rewards=rewards
        )
      return runs

    self.rewards |= bounds
    run = types.SimpleNamespace(without_slates=False, name="toy")
    with (
      mock.patch.object(jobs, "run_all", run_all),
      mock.patch.object(entrants, "Run", return_value=run),
      contextlib.redirect_stdout(io.StringIO()) as out,
    ):
      world.run(
        _experiment(
          self.workdir, "replay", agents=("td3",), variants=("one_critic",)
        )
      )
    self.out = out.getvalue()
    self.found = json.loads((self.workdir / "results.json").read_text())

  def test_differences_are_those_of_the_sessions(self):
    rows = self.found["rows"]
    names = ("hsrl", "hsrl_gamma_0", "hsrl_no_actor", "td3", "one_critic")
    self.assertCountEqual(rows, [*names, *BOUNDS])
    mean = {k: x.mean() for k, x in self.rewards.items()}
    self.assertIsNone(rows["hsrl"]["difference"])
    self.assertIsNone(rows["greedy_oracle"]["above_greedy"])
    for name, row in rows.items():
      self.assertAlmostEqual(row["total_reward"]["mean"], mean[name])
      if name != "hsrl":
        more = row["difference"]
        self.assertAlmostEqual(more["mean"], mean["hsrl"] - mean[name])
        self.assertBetween(more["mean"], *more["ci95"])
      if name != "greedy_oracle":
        more = row["above_greedy"]
        self.assertAlmostEqual(more["mean"], mean[name] - mean["greedy_oracle"])
        self.assertBetween(more["mean"], *more["ci95"])

  def test_the_table_has_each_row_twice_and_fits(self):
    lines = world.table(self.found).splitlines()
    self.assertLessEqual(max(map(len, lines)), 80)
    self.assertStartsWith(lines[0], "bored: toy, protocol paper")
    for name in self.found["rows"]:
      self.assertLen([x for x in lines if x.startswith(f"{name} ")], 2)
    self.assertIn("\n".join(lines), self.out)

  def test_the_plot_has_whoever_was_trained(self):
    figure = experiment_plots.world(self.found)
    (axes,) = figure.axes
    shown = [x.get_text() for x in axes.get_yticklabels()]
    # From below, by reward, which rises with the number of the job.
    self.assertEqual(
      shown,
      ["hsrl", "hsrl gamma 0", "hsrl no actor", "td3", "one critic"],
    )
    self.assertEqual(axes.get_title("left"), "bored")
    self.assertStartsWith(plots.png(figure)[1:4].decode(), "PNG")

  def test_the_page_has_the_world_under_its_name(self):
    docs = self.workdir.parent / "docs"
    folders = (str(self.workdir),)
    with contextlib.redirect_stdout(io.StringIO()):
      results.run(command.experiment("results", docs, workdirs=folders))
    kept = json.loads((docs / "results" / "bored.json").read_text())
    self.assertEqual(kept["rows"], self.found["rows"])
    page = (docs / "RESULTS.md").read_text()
    self.assertIn("## Worlds\n", page)
    self.assertIn("### bored\n", page)


@pytest.mark.slow
class WholeTest(absltest.TestCase):
  def test_a_world_of_a_flagfile(self):
    root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    status, out, err = command.run(
      *command.JOBS,
      "--simulator_boredom=all",
      "--simulator_boredom_threshold=2",
      "--simulator_leave=length",
      "--experiment_agents=popularity",
      "--experiment_variants=no_residual",
      "--experiment=world",
      f"--workdir={root}/bored",
    )
    self.assertEqual(status, 0, err)
    results = json.loads((root / "bored" / "results.json").read_text())
    trained = ("hsrl", "hsrl_gamma_0", "hsrl_no_actor", "popularity")
    for name in (*trained, "no_residual", "best_constant", *BOUNDS):
      self.assertIn(name, results["rows"])
      self.assertIn(name, out)
    for name in trained:
      self.assertEqual(results["rows"][name]["depth"]["mean"], 20)
      self.assertLen(results["rows"][name]["total_reward"]["per_seed"], 2)


if __name__ == "__main__":
  absltest.main()
