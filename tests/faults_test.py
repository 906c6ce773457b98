"""What goes wrong outside: each fault in a real process, then equality."""

import json
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time

import chex
import jax
import pytest
from absl.testing import absltest

from hsrl_jax.host import metrics, stop
from hsrl_jax.stages import run as run_lib
from tests import command
from tests.command import SMALL

# A few in every run of the suite; HSRL_TEST_KILLS=20 for a thorough one.
KILLS = int(os.environ.get("HSRL_TEST_KILLS", 8))
# CPU seconds after which a process is killed at the latest. Where two kills in
# a row find the same progress, the machine is slow and the next may be later.
LATEST_KILL = 5.0
KEPT = (
  "flags.txt",
  "sids/sids.npz",
  "simulator/metrics.jsonl",
  "policy/metrics.jsonl",
)
# What the stages leave, with which a stage can be undone.
LEFT = {
  "quantize": ("sids", "flags.txt"),
  "policy": ("policy",),
  "evaluate": ("results.json", "sessions.npz"),
  "report": ("report", run_lib.SUMMARY),
}


@pytest.mark.slow
class FaultsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp())
    cls.processes = command.Processes(cls.folder)
    cls.whole = cls.folder / "whole"
    status, output = cls.processes.run(*SMALL, f"--workdir={cls.whole}")
    assert status == 0, output

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.folder)
    super().tearDownClass()

  def _without(self, name, *stages):
    """A copy of the whole run's workdir without what some stages left."""
    workdir = self.folder / name
    shutil.copytree(self.whole, workdir)
    for stage in stages:
      (workdir / ".done" / stage).unlink()
      for path in LEFT[stage]:
        target = workdir / path
        target.unlink() if target.is_file() else shutil.rmtree(target)
    return workdir

  def _assert_equal_to_whole(self, workdir):
    for name in KEPT:
      self.assertEqual(
        (workdir / name).read_bytes(), (self.whole / name).read_bytes(), name
      )
    self.assertEqual(_results(workdir), _results(self.whole))
    (step, state), (last, expected) = map(
      command.last_state, (workdir, self.whole)
    )
    self.assertEqual((step, last), (120, 120))
    self.assertGreater(len(jax.tree.leaves(expected)), 50)
    chex.assert_trees_all_equal(state, expected)

  def _wait_for(self, process, path, text):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.running():
      if path.exists() and text in path.read_text():
        return
      time.sleep(0.005)
    self.fail(f"no {text} in {path}: {process.output()}")

  def test_killed_at_random_moments_equals_never_stopped(self):
    draw, kills, found = random.Random(0), 0, set()
    workdirs = [self.folder / "killed_0", self.folder / "killed_1"]
    running, latest = {}, dict.fromkeys(workdirs, LATEST_KILL)
    while kills < KILLS or running:
      for workdir in workdirs:
        if workdir not in running and kills < KILLS:
          if not workdir.exists() and workdir == workdirs[1]:
            self._without(workdir.name, "policy", "evaluate", "report")
          process = self.processes.start(*SMALL, f"--workdir={workdir}")
          when, before = draw.uniform(0, latest[workdir]), _progress(workdir)
          running[workdir] = process, when, before
      for workdir, (process, when, before) in list(running.items()):
        if process.running() and process.cpu_seconds() < when:
          time.sleep(0.005)
          continue
        del running[workdir]
        if process.kill() == -signal.SIGKILL:
          kills += 1
          found.add(_progress(workdir))
          latest[workdir] *= 1.4 if _progress(workdir) == before else 1.0
        else:  # It came to its end first.
          self.assertEqual(process.wait(), 0, process.output())
          self._assert_equal_to_whole(workdir)
          shutil.rmtree(workdir)
    self.assertGreater(len(found), 1)  # The moments were not all alike.
    rest = [self.processes.start(*SMALL, f"--workdir={x}") for x in workdirs]
    for workdir, process in zip(workdirs, rest, strict=True):
      self.assertEqual(process.wait(), 0, process.output())
      self._assert_equal_to_whole(workdir)

  def test_sigterm_a_second_run_and_a_clock_that_jumps(self):
    workdir = self._without("terminated", "policy", "evaluate", "report")
    arguments = (*SMALL, f"--workdir={workdir}")
    first = self.processes.start(*arguments, clock_jumps=True, lingers=True)
    lines = workdir / "policy" / metrics.METRICS
    self._wait_for(first, lines, '"step": 10')
    before = {p.name for p in workdir.iterdir()}
    status, _, err = command.run(*arguments)
    self.assertEqual(status, 2)
    self.assertRegex(err, f"error: .* in use by process {first.pid} on .*\n$")
    self.assertEqual({p.name for p in workdir.iterdir()}, before)

    os.kill(first.pid, signal.SIGTERM)
    start = time.monotonic()
    self.assertEqual(first.wait(), 0, first.output())
    self.assertLess(time.monotonic() - start, 30)
    output = first.output()
    self.assertEndsWith(output, f"\n{stop.LINE}\n")
    self.assertNotIn("Traceback", output)
    written = [json.loads(x)["step"] for x in lines.read_text().splitlines()]
    saved = (workdir / "policy" / "checkpoints").iterdir()
    self.assertEqual(max(int(p.name) for p in saved if p.is_dir()), written[-1])

    status, again = self.processes.run(*arguments, clock_jumps=True)
    self.assertEqual(status, 0, again)
    self._assert_equal_to_whole(workdir)
    self.assertNotRegex(output + again, r"\[-|<-|-\S*it/s|Traceback")
    spent = json.loads((workdir / run_lib.SUMMARY).read_text())
    for phases in (spent["stages"], spent["policy"]):
      self.assertBetween(min(phases.values()), 0, 300)

  def test_loss_that_is_not_finite(self):
    workdir = self._without("not_finite", "policy", "evaluate", "report")
    (workdir / "flags.txt").unlink()
    arguments = (
      *SMALL,
      f"--workdir={workdir}",
      "--learning_rate=1e30",
      "--save_every=10",
    )
    for _ in range(2):  # To go on changes nothing.
      status, output = self.processes.run(*arguments)
      self.assertEqual(status, 1, output)
      (line,) = [x for x in output.splitlines() if x.startswith("error:")]
      self.assertRegex(line, "error: params/.* is not finite by iteration 20; ")
      self.assertIn("10 is the last good one: lower --learning_rate", line)
      self.assertNotIn("Traceback", output)
      checkpoints = workdir / "policy" / "checkpoints"
      self.assertEqual([p.name for p in checkpoints.iterdir()], ["10"])

  def test_newest_checkpoint_with_a_bit_that_flipped(self):
    workdir = self._without("flipped", "evaluate", "report")
    newest = workdir / "policy" / "checkpoints" / "120"
    data = max(newest.rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    (workdir / ".done" / "policy").unlink()
    status, output = self.processes.run(*SMALL, f"--workdir={workdir}")
    self.assertEqual(status, 0, output)
    self.assertIn("120 cannot be read", output)
    self.assertIn("falling back", output)
    self._assert_equal_to_whole(workdir)

  def test_full_disk(self):
    stages = ("quantize", "policy", "evaluate", "report")
    workdir = self._without("full", *stages)
    for size, path, goes_on in (
      (500, "flags.txt", None),
      (20_000, "sids", "quantize"),
      (60_000, "policy/checkpoints/20", "policy"),
      (4_000, "sessions.npz", "all"),
    ):
      status, output = self.processes.run(
        *SMALL, f"--workdir={workdir}", file_size=size
      )
      self.assertEqual(status, 1, output)
      (line,) = [x for x in output.splitlines() if x.startswith("error:")]
      self.assertRegex(line, f"^error: {workdir}/.*: File too large")
      self.assertNotIn("Traceback", output)
      self.assertFalse((workdir / path).exists(), output)
      if goes_on:
        status, output = self.processes.run(
          *SMALL, f"--workdir={workdir}", f"--mode={goes_on}"
        )
        self.assertEqual(status, 0, output)
    self._assert_equal_to_whole(workdir)


def _results(workdir):
  """results.json less how long SIDs took."""
  results = json.loads((workdir / "results.json").read_text())
  del results["sids"]["seconds"]
  return results


def _progress(workdir):
  """Stages that are complete, and lines of the one in hand."""
  done = {p.name for p in workdir.glob(".done/*")}
  lines = [p.read_text().count("\n") for p in workdir.glob("*/metrics.jsonl")]
  return len(done), sum(lines)


if __name__ == "__main__":
  absltest.main()
