"""Logs that memory does not hold, by the command: killed, resumed, shared."""

import json
import pathlib
import shutil
import tempfile
import time

import chex
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from absl.testing import absltest

from hsrl_jax.data.logged import blocks
from hsrl_jax.host import metrics
from hsrl_jax.stages import policy
from tests import command

# So that a few slates are many.
FEW = {
  "hsrl_jax.shipped.datasets.logs.sessions.IN_MEMORY": 500,
  "hsrl_jax.shipped.datasets.logs.sessions.SAMPLE": 300,
  "hsrl_jax.data.logged.blocks.BLOCK": 20,
  "hsrl_jax.engine.windows.BYTES": 60_000,
}
FLAGS = (
  "--dataset=logs",
  "--learn_from=logs",
  "--agent=sasrec",
  "--sid_levels=2",
  "--sid_vocab_size=8",
  "--sid_restarts=1",
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


def _write(raw, users=80, steps=12, items=20):
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
    _write(self.folder / "raw")

  def _start(self, workdir):
    raw = f"--raw_data_dir={self.folder / 'raw'}"
    return self.processes.start(
      *(*FLAGS, raw, f"--workdir={workdir}"), constants=FEW
    )

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
    lines = killed / policy.FOLDER / metrics.METRICS
    for step in (25, 60):
      process = self._start(killed)
      while process.running() and not (
        lines.exists() and f'"step": {step},' in lines.read_text()
      ):
        time.sleep(0.001)
      process.kill()
      self.assertLess(command.last_state(killed)[0], 100)
    self._finish(killed)
    (step, state), (last, expected) = map(command.last_state, (killed, whole))
    self.assertEqual((step, last), (100, 100))
    chex.assert_trees_all_equal(state, expected)
    self.assertEqual(
      lines.read_bytes(), (whole / "policy/metrics.jsonl").read_bytes()
    )


if __name__ == "__main__":
  absltest.main()
