"""Logs that memory does not hold, by the command: killed, resumed, shared."""

import contextlib
import json
import pathlib
import shutil
import socket
import tempfile
import time

import chex
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from absl.testing import absltest

from hsrl_jax.data import blocks
from hsrl_jax.engine import checkpoint
from hsrl_jax.host import metrics
from hsrl_jax.stages import policy
from tests import command

# So that a few slates are many.
FEW = {
  "hsrl_jax.shipped.datasets.logs.sessions.IN_MEMORY": 500,
  "hsrl_jax.shipped.datasets.logs.sessions.SAMPLE": 300,
  "hsrl_jax.data.blocks.BLOCK": 20,
  "hsrl_jax.engine.windows.BYTES": 60_000,
}
FLAGS = (
  "--dataset=logs",
  "--recipe=logs",
  "--agent=sasrec",
  "--sid_levels=2",
  "--sid_vocab_size=8",
  "--simulator_epochs=1",
  "--width=8",
  "--layers=0",
  "--users=8",
  "--batch_size=16",
  "--iterations=100",
  "--iterations_per_call=5",
  "--save_every=10",
  "--seeds=0",
  "--evaluate_episodes=20",
)


def write(raw, users=80, steps=12, items=20):
  """Files of as many users each."""
  rng = np.random.default_rng(0)
  (raw / "sessions").mkdir(parents=True)
  catalogue = {"item_id": range(items), "feature": np.eye(items).tolist()}
  pyarrow.parquet.write_table(pa.table(catalogue), raw / "items.parquet")
  for number, own in enumerate(np.array_split(np.arange(users), 3)):
    user = np.repeat(own, steps)
    shown = np.argsort(rng.random((len(user), items)), 1)[:, :3]
    table = {
      "user_id": user,
      "session_id": user,
      "step": np.tile(np.arange(steps), len(own)),
      "exposed": shown.tolist(),
      "response": rng.integers(0, 2, shown.shape).tolist(),
      "timestamp": np.arange(len(user)),
    }
    path = raw / "sessions" / f"{number}.parquet"
    pyarrow.parquet.write_table(pa.table(table), path)


@pytest.mark.slow
class LargeLogsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(tempfile.mkdtemp())
    self.addCleanup(shutil.rmtree, self.folder)
    self.processes = command.Processes(self.folder)
    write(self.folder / "raw")

  def _start(self, workdir, *arguments):
    raw = f"--raw_data_dir={self.folder / 'raw'}"
    return self.processes.start(
      *(*FLAGS, raw, f"--workdir={workdir}", *arguments), constants=FEW
    )

  def _start_two(self, workdir):
    with contextlib.closing(socket.socket()) as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    given = (f"--coordinator={address}", "--processes=2", "--mode=policy")
    return [self._start(workdir, *given, f"--process={i}") for i in range(2)]

  def _kill(self, workdir, step, *running):
    """Kills processes at a step of training."""
    lines = workdir / policy.FOLDER / metrics.METRICS
    while all(x.running() for x in running) and not (
      lines.exists() and f'"step": {step},' in lines.read_text()
    ):
      time.sleep(0.001)
    for process in running:
      process.kill()
    self.assertNotIn(100, self._saved(workdir))

  def _saved(self, workdir):
    """Steps of which there is a checkpoint."""
    folder = workdir / policy.FOLDER / "checkpoints"
    return [int(x.name) for x in folder.iterdir() if x.name.isdecimal()]

  def _assert_same_policy(self, workdirs):
    folders = [x / policy.FOLDER / "checkpoints" for x in workdirs]
    digest, expected = map(checkpoint.latest_digest, folders)
    self.assertEqual(digest, expected)
    for workdir in workdirs:
      self.assertIn(100, self._saved(workdir))
    lines, all_lines = (
      (x / policy.FOLDER / metrics.METRICS).read_bytes() for x in workdirs
    )
    self.assertEqual(lines, all_lines)

  def _finish(self, workdir):
    process = self._start(workdir)
    self.assertEqual(process.wait(), 0, process.output())
    return process.output()

  def test_killed_and_resumed_equals_never_stopped(self):
    whole, killed = self.folder / "whole", self.folder / "killed"
    output = self._finish(whole)
    self.assertIn("960 slates, more than 500: the", output)
    stored = blocks.load(whole / "data" / blocks.FOLDER)
    self.assertIn(f"from logs: {int(stored.rows.sum())} slates in", output)
    results = json.loads((whole / "results.json").read_text())
    self.assertEqual(results["learned_from"]["slates"], stored.rows.sum())

    shutil.copytree(whole, killed, ignore=shutil.ignore_patterns("policy"))
    self._kill(killed, 55, self._start(killed))
    self._finish(killed)
    self._assert_same_policy((killed, whole))
    (_, state), (_, expected) = map(command.last_state, (killed, whole))
    chex.assert_trees_all_equal(state, expected)

    # Two processes, and two that are killed.
    workdirs = [self.folder / name for name in ("two", "two_killed")]
    for workdir in workdirs:
      shutil.copytree(whole, workdir, ignore=shutil.ignore_patterns("policy"))
    self._kill(workdirs[1], 25, *self._start_two(workdirs[1]))
    for workdir in workdirs:
      for process in self._start_two(workdir):
        self.assertEqual(process.wait(), 0, process.output())
    self._assert_same_policy(workdirs)


if __name__ == "__main__":
  absltest.main()
