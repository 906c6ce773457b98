"""Jobs: what is run in which order, errors that name the job, kept values."""

import contextlib
import dataclasses
import io
import pathlib
import tempfile
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import agents
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import entrants, jobs
from hsrl_jax.studies.registry import FRONT
from tests import command, toy


class _Run:
  """Notes its stages; agent `td3` cannot be trained."""

  stages = []

  def __init__(self, config, workdir, shared):
    self.config, self.workdir, self.shared = config, workdir, shared
    self.fingerprints = {"data": "d", "policy": config.agent}
    self.dataset = object()

  def stage(self, name):
    self.stages.append((self.workdir.name, name))
    if name == "policy" and self.config.agent == "td3":
      raise InputError("no such thing")


class JobsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(root)
    self.experiment = command.experiment("benchmark", root, toy.config())
    self.enter_context(mock.patch.object(jobs, "Run", _Run))
    self.enter_context(mock.patch.object(_Run, "stages", []))

  def run_all(self, *agents):
    todo = [jobs.Job(x, entrants.agent(self.experiment, x)) for x in agents]
    with contextlib.redirect_stdout(io.StringIO()) as out:
      return jobs.run_all(self.experiment, todo), out.getvalue()

  def test_each_job_has_all_stages_and_data_is_loaded_once(self):
    runs, out = self.run_all("hsrl", "ddpg")
    stages = ("data", "quantize", "simulator", "policy", "evaluate")
    self.assertEqual(
      _Run.stages, [(job, x) for job in ("hsrl", "ddpg") for x in stages]
    )
    self.assertIs(runs["hsrl"].dataset, runs["ddpg"].dataset)
    self.assertEqual(runs["ddpg"].shared, self.workdir / "shared")
    self.assertIn("job 2 of 2: ddpg", out)

  @pytest.mark.slow
  def test_an_error_names_its_job(self):
    with self.assertRaisesRegex(InputError, "^job td3: no such thing$"):
      self.run_all("hsrl", "td3")

  def test_the_seconds_of_all_attempts_add_up(self):
    clock = iter((0.0, 5.0, 100.0, 107.0, 200.0, 200.001))
    with mock.patch.object(jobs.time, "monotonic", lambda: next(clock)):
      for _ in range(3):  # The last has nothing to do.
        with jobs.timed(self.experiment, "hsrl", "policy"):
          pass
    self.assertEqual(jobs.seconds(self.experiment), {"hsrl": {"policy": 12.0}})

  def test_a_value_is_made_again_where_it_is_outdated(self):
    path = self.workdir / "value.json"
    self.assertEqual(jobs.kept(path, lambda: 1), 1)
    self.assertEqual(jobs.kept(path, lambda: 2), 1)
    self.assertEqual(jobs.kept(path, lambda: 3, lambda x: x > 1), 1)
    self.assertEqual(jobs.kept(path, lambda: 4, lambda x: x == 1), 4)

  def test_every_experiment_is_there(self):
    for name, entry in FRONT.known.items():
      self.assertTrue(callable(entry.load().run), name)
      trained = entry.compared(entry.settings()) or ()
      self.assertContainsSubset(trained, agents.AGENTS, name)
      self.assertEqual(bool(entry.title), bool(entry.question), name)
    titles = [x.title for x in FRONT.known.values() if x.title]
    self.assertLen(set(titles), len(titles))

  def test_a_setting_means_the_same_to_all_experiments(self):
    first = {}
    for entry in FRONT.entries:
      for field in dataclasses.fields(entry.settings):
        other = first.setdefault((entry.flag, field.name), field)
        self.assertEqual(
          (other.default, other.type, other.metadata),
          (field.default, field.type, field.metadata),
          f"{field.name} of {entry}",
        )


if __name__ == "__main__":
  absltest.main()
