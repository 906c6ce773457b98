"""Tasks in processes of their own: order, failures, and what is stopped."""

import contextlib
import importlib
import io
import os
import pathlib
import sys
import tempfile
import time
from unittest import mock

import pytest
from absl.testing import absltest

from hsrl_jax.errors import InputError
from hsrl_jax.studies import workers

# A new process imports it by its name.
MODULE = "tasks_of_workers_test"
CODE = """
import time
from hsrl_jax.errors import InputError

def write(path, seconds, tell):
  print(f"writing {path.name}")
  time.sleep(seconds)
  path.write_text("done")
  tell()

def refuse(path, tell):
  raise InputError(f"{path.name} is bad")
"""


@pytest.mark.slow
class WorkersTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.enter_context(contextlib.redirect_stderr(io.StringIO()))
    (self.folder / f"{MODULE}.py").write_text(CODE)
    path = [str(self.folder), *sys.path]
    self.enter_context(mock.patch.object(sys, "path", path))
    self.addCleanup(sys.modules.pop, MODULE, None)
    self.code = importlib.import_module(MODULE)

  def _task(self, name, seconds=0.0):
    given = (self.folder / name, seconds)
    return workers.Task(f"a/{name}", self.code.write, given, 1)

  def test_all_are_done_and_have_a_file_of_what_they_print(self):
    tasks = [self._task(str(i)) for i in range(3)]
    done = dict(workers.run(tasks, self.folder / "logs", "file"))
    self.assertCountEqual(done, tasks)
    for i in range(3):
      self.assertEqual((self.folder / str(i)).read_text(), "done")
      log = (self.folder / "logs" / f"a_{i}.log").read_text()
      self.assertIn(f"writing {i}", log)

  def test_after_a_failure_what_runs_is_finished_and_nothing_begins(self):
    bad = workers.Task("bad", self.code.refuse, (self.folder / "b",), 1)
    cores = len(os.sched_getaffinity(0))
    running = [self._task(f"runs_{i}", 6.0) for i in range(cores)]
    late = [self._task(f"late_{i}") for i in range(2 * cores)]
    logs, done = self.folder / "logs", []
    with self.assertRaisesRegex(
      InputError, r"bad ended with status 2 \(error: b is bad\); .*bad.log"
    ):
      for task, _ in workers.run([bad, *running, *late], logs, "file"):
        done.append(task.name)
    for task in running:
      self.assertIn(task.name, done)
    self.assertFalse((self.folder / f"late_{2 * cores - 1}").exists())

  def test_who_leaves_stops_them(self):
    tasks = [self._task("short"), self._task("long", 600.0)]
    begin = time.monotonic()
    running = workers.run(tasks, self.folder / "logs", "file")
    next(running)
    running.close()
    self.assertLess(time.monotonic() - begin, 300.0)
    self.assertFalse((self.folder / "long").exists())


if __name__ == "__main__":
  absltest.main()
