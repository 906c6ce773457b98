"""Many processes as one run, with real ones: two of two devices each."""

import contextlib
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock

import chex
import pytest
from absl import flags
from absl.testing import absltest

from hsrl_jax import flags as flags_lib
from hsrl_jax.agents import make_agent
from hsrl_jax.engine import checkpoint, core, loop, parallel, processes
from hsrl_jax.host import metrics, stop
from hsrl_jax.stages import policy
from hsrl_jax.stages import run as run_lib
from tests import command

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
  f"--flagfile={ROOT}/launch/flags/smoke.flags",
  "--simulator_epochs=2",
  "--agent=a2c",
  "--width=8",
  "--critic_hidden=8",
  "--buffer_size=3200",
  "--iterations=100",
  "--iterations_per_call=10",
  "--curve_every=100",
  "--save_every=20",
  "--evaluate_episodes=40",
)
# By path, since other packages may be called `tests` too.
LINGERING = """
import runpy
from hsrl_jax import launch
runpy.run_path("tests/command.py")["linger"]()
launch.entry()
"""
UNMET = """
from hsrl_jax.engine import processes
processes.START_SECONDS = 1
processes.start("127.0.0.1:{port}", 2, 1)
"""


def _free_port() -> int:
  with contextlib.closing(socket.socket()) as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


def _metrics(workdir):
  """The lines of training by step."""
  lines = metrics.read(workdir / policy.FOLDER)
  return {x["step"]: x for x in lines if "loss" in x}


def _state(workdir):
  """The newest state of training."""
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(["hsrl", *SMALL])
  config = flags_lib.config_from_flags()
  flags.FLAGS.mark_as_parsed()
  run = run_lib.Run(config, workdir)
  items = run.catalogue.index.num_items
  agent = make_agent(config, run.env.slate_size, items)
  engine = loop.make(agent, run.env, config.train)
  inputs = core.Inputs(run.catalogue, run.users("train"))
  like = parallel.shapes(engine.init, config.train.seeds, inputs)
  folder = workdir / policy.FOLDER / "checkpoints"
  with checkpoint.open_directory(folder) as checkpointer:
    return checkpoint.restore_latest(checkpointer, like)


class HostsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(tempfile.mkdtemp())
    self.addCleanup(shutil.rmtree, self.folder)

  def _python(self, *arguments, devices=1):
    process = subprocess.Popen(
      [sys.executable, *arguments],
      cwd=ROOT,
      env=command.quick(devices),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.communicate)
    self.addCleanup(process.kill)
    return process

  def _start(self, workdir, devices):
    return self._python(
      *("-m", "hsrl_jax.launch", *SMALL, "--mode=policy"),
      f"--workdir={workdir}",
      devices=devices,
    )

  def _start_two(self, workdir, *arguments):
    given = (f"--coordinator=127.0.0.1:{_free_port()}", "--processes=2")
    return [
      self._python(
        *("-c", LINGERING, *SMALL, f"--workdir={workdir}", *arguments),
        *(*given, f"--process={i}"),
        devices=2,
      )
      for i in range(2)
    ]

  def _finish(self, process, status=0):
    """What a process printed, without what the runtime says of its sockets."""
    out, err = process.communicate(timeout=300)
    self.assertEqual(process.returncode, status, err)
    lines = out.splitlines(keepends=True)
    return "".join(x for x in lines if not x.startswith("[Gloo]")), err

  def _wait_for_step(self, workdir, step, process):
    file = workdir / policy.FOLDER / metrics.METRICS
    while not (file.exists() and f'"step": {step},' in file.read_text()):
      if process.poll() is not None:
        self._finish(process)
      time.sleep(0.01)

  @pytest.mark.slow
  def test_a_life(self):
    # Two processes start from nothing; SIGTERM to one stops both.
    two = self.folder / "two"
    running = self._start_two(two)
    self._wait_for_step(two, 10, running[0])
    running[1].send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 30
    for process in running:
      _, err = self._finish(process)
      self.assertEqual(err.count(stop.LINE), 1, err)
    self.assertLess(time.monotonic(), deadline)
    last = max(_metrics(two))
    self.assertLess(last, 100)
    saved = [x.name for x in (two / policy.FOLDER / "checkpoints").iterdir()]
    self.assertIn(str(last), saved)

    # They go on; one is killed while they train.
    running = self._start_two(two)
    self._wait_for_step(two, max(50, last + 10), running[0])
    running[1].send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 2 * processes.LOST_SECONDS
    _, err = self._finish(running[0], status=1)
    self.assertLess(time.monotonic(), deadline)
    self.assertStartsWith(err.splitlines()[-1], "error: a host was lost; the ")

    # A single process with one device goes on; one with four starts anew.
    one = self.folder / "one"
    shutil.copytree(two, one, ignore=shutil.ignore_patterns("policy"))
    steps = {*_metrics(two)}
    alone = self._start(two, devices=1)
    four = self._start(one, devices=4)
    self._finish(alone)
    self._finish(four)
    self.assertContainsSubset({10, 20, 30, 40, 50}, steps)
    ours, theirs = _metrics(two), _metrics(one)
    self.assertEqual(list(ours), list(theirs))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)
    (ours, rings), (theirs, their_rings) = _state(two), _state(one)
    chex.assert_trees_all_close(
      ours._replace(key=0), theirs._replace(key=0), rtol=1e-4, atol=1e-5
    )
    chex.assert_trees_all_equal(rings.replay.added, their_rings.replay.added)
    chex.assert_trees_all_equal(
      rings.replay.items.slate, their_rings.replay.items.slate
    )

  @pytest.mark.slow
  def test_all_stop_where_the_first_one_fails(self):
    workdir = self.folder / "new"
    first, second = self._start_two(workdir, "--mode=policy")
    _, err = self._finish(first, status=2)
    line = f"{workdir}: stage data is missing; run --mode=data first, or "
    self.assertStartsWith(err, f"error: {line}")
    out, err = self._finish(second, status=2)
    self.assertEqual(out, "")
    self.assertStartsWith(err, f"error: process 0 stopped: {line}")
    self.assertLen(err.splitlines(), 1)

  @pytest.mark.slow
  def test_a_coordinator_that_is_not_there(self):
    code = UNMET.format(port=_free_port())
    _, err = self._finish(self._python("-c", code), status=1)
    self.assertRegex(
      err.splitlines()[-1],
      "error: the processes did not meet at 127.* within 2 s",
    )

  def test_only_the_first_takes_back_what_it_wrote(self):
    # Two that did would remove the same file.
    for first in (True, False):
      workdir = self.folder / f"first_{first}"
      with mock.patch.object(processes, "is_first", return_value=first):
        status, _, err = command.run(
          *SMALL, f"--workdir={workdir}", "--mode=policy"
        )
      self.assertEqual(status, 2)
      self.assertIn("stage data is missing", err)
      self.assertEqual((workdir / "flags.txt").exists(), not first)

  def test_what_has_no_use_for_many_processes(self):
    for arguments in (
      ["--experiment=benchmark", "--distributed"],
      ["--mode=quantize", "--sweep=4x2", "--coordinator=127.0.0.1:9"],
    ):
      status, _, err = command.run(f"--workdir={self.folder}", *arguments)
      self.assertEqual(status, 2)
      self.assertIn("with many processes; expected a single one", err)
    with mock.patch.object(processes, "_on_abort"):
      status, _, err = command.run(f"--workdir={self.folder}", "--distributed")
    self.assertEqual(status, 2)
    self.assertIn("were not found", err)


if __name__ == "__main__":
  absltest.main()
