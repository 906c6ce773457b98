"""Checkpoints: whole states there and back, and damaged ones passed over."""

import itertools
import pathlib
import resource
import tempfile
import time
from typing import NamedTuple
from unittest import mock

import chex
import jax
import jax.numpy as jnp
from absl.testing import absltest

from hsrl_jax.engine import checkpoint


class _State(NamedTuple):
  params: dict
  key: jax.Array
  empty: jax.Array
  step: jax.Array


def _state(step):
  return _State(
    {"w": jnp.arange(5000.0) + step, "b": jnp.full((3,), step, jnp.int32)},
    jax.random.split(jax.random.key(step), 2),
    jnp.zeros((2, 0), jnp.int32),
    jnp.int32(step),
  )


class CheckpointTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(root) / "checkpoints"

  def _saved(self, *steps):
    with checkpoint.open_directory(self.folder) as checkpointer:
      for step in steps:
        checkpoint.save(checkpointer, step, _state(step))

  def _restored(self):
    with checkpoint.open_directory(self.folder) as checkpointer:
      return checkpoint.restore_latest(checkpointer, _state(0))

  def test_nothing_to_restore(self):
    self.assertIsNone(self._restored())

  def test_there_and_back(self):
    self._saved(1, 2, 3)
    got, want = self._restored(), _state(3)
    chex.assert_trees_all_equal(got._replace(key=0), want._replace(key=0))
    chex.assert_trees_all_equal(
      jax.random.key_data(got.key), jax.random.key_data(want.key)
    )
    self.assertEqual(got.empty.shape, (2, 0))
    self.assertLen([p for p in self.folder.iterdir() if p.is_dir()], 2)

  def test_wall_clock_that_jumps_at_each_look(self):
    real, offsets = time.time, itertools.cycle((0, 1e8, -1e8, 3e7))
    self.enter_context(
      mock.patch.object(time, "time", lambda: real() + next(offsets))
    )
    self._saved(*range(1, 9))
    self.assertEqual(int(self._restored().step), 8)

  def test_cut_in_half_falls_back_and_says_so(self):
    self._saved(1, 2)
    for path in (self.folder / "2").rglob("*"):
      if path.is_file():
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    with self.assertLogs(level="WARNING") as logs:
      got = self._restored()
    self.assertEqual(int(got.step), 1)
    self.assertIn("2 cannot be read", "".join(logs.output))
    self._saved(2)  # Training comes by the step again.
    self.assertEqual(int(self._restored().step), 2)

  def test_one_data_file_cut(self):
    self._saved(1, 2)
    largest = max(
      (p for p in (self.folder / "2").rglob("*") if p.is_file()),
      key=lambda p: p.stat().st_size,
    )
    data = largest.read_bytes()
    largest.write_bytes(data[: len(data) // 2])
    with self.assertLogs(level="WARNING"):
      self.assertEqual(int(self._restored().step), 1)

  def test_unfinished_save_is_no_checkpoint(self):
    self._saved(1)
    (self.folder / "2.orbax-checkpoint-tmp-7").mkdir()
    self.assertEqual(int(self._restored().step), 1)

  def test_bit_that_flipped(self):
    self._saved(1, 2)
    largest = max(
      (p for p in (self.folder / "2").rglob("*") if p.is_file()),
      key=lambda p: p.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 16
    largest.write_bytes(data)
    with self.assertLogs(level="WARNING"):
      self.assertEqual(int(self._restored().step), 1)

  def test_reader_leaves_alone_what_is_being_written(self):
    self._saved(1)
    unfinished = self.folder / "2.orbax-checkpoint-tmp-7"
    unfinished.mkdir()
    with checkpoint.open_directory(self.folder, read_only=True) as reader:
      state = checkpoint.restore_latest(reader, _state(0))
    self.assertEqual(int(state.step), 1)
    self.assertTrue(unfinished.exists())
    self._restored()
    self.assertFalse(unfinished.exists())

  def test_full_disk_is_an_os_error_that_says_what_to_do(self):
    with checkpoint.open_directory(self.folder) as checkpointer:
      checkpoint.save(checkpointer, 1, _state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
      with self.assertRaisesRegex(OSError, "File too large.*the same command"):
        self._saved(2)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    self.assertEqual(int(self._restored().step), 1)


if __name__ == "__main__":
  absltest.main()
