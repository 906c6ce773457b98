"""Blocks on disk: all of the stream, and the transitions of the same logs."""

from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.data import blocks, transitions
from hsrl_jax.engine import windows
from hsrl_jax.errors import InputError
from hsrl_jax.sim.reward import Reward
from hsrl_jax.stages import logged
from hsrl_jax.types import Sessions
from tests import folders

_ITEMS = 12


def _logs(seed=0, sessions=40, first_user=0):
  """Sessions of one to seven slates, of two users each five, rows mixed up."""
  rng = np.random.default_rng(seed)
  length = rng.integers(1, 8, sessions)
  session = np.repeat(np.arange(sessions), length)
  step = np.concatenate([np.arange(x) for x in length])
  rows = rng.permutation(len(session))
  count = len(rows)
  reward = rng.normal(size=count).astype(np.float32)
  shown = np.argsort(rng.random((count, _ITEMS)), 1)[:, :3] + 1
  logs = Sessions(
    user_id=first_user + session * 2 // 5,
    profile=rng.normal(size=(count, 2)).astype(np.float32),
    history=np.sort(rng.integers(0, _ITEMS, (count, 4)), 1),
    exposed=shown.astype(np.int32),
    response=rng.integers(0, 2, (count, 3)).astype(np.float32),
    timestamp=1e6 * session + 60.0 * step,
    propensity=rng.uniform(0.1, 1, (count, 3)).astype(np.float32),
    session=session,
    step=step,
    reward=np.where(step % 3 == 1, np.float32(np.nan), reward),
    terminated=((step == length[session] - 1) & (session % 3 > 0)) * 1.0,
  )
  return Sessions(*(None if x is None else x[rows] for x in logs))


def _joined(parts):
  def join(*leaves):
    return None if leaves[0] is None else np.concatenate(leaves)

  return Sessions(*map(join, *parts))


class StreamTest(parameterized.TestCase):
  @parameterized.parameters(7, 100, 1_000)
  def test_each_epoch_has_each_row_once(self, window):
    rows = np.random.default_rng(0).integers(1, 9, 60)
    total = int(rows.sum())
    read = []
    for start in range(0, 4 * total, window):
      own = [
        (block, row)
        for block, first, stop in blocks.pieces(rows, start, window)
        for row in range(first, stop)
      ]
      self.assertLen(own, window)
      read += own
    every = {(b, r) for b in range(60) for r in range(rows[b])}
    epochs = [read[x * total : (x + 1) * total] for x in range(4)]
    for epoch in epochs:
      self.assertEqual(set(epoch), every)
    for one, other in zip(epochs, epochs[1:], strict=False):
      self.assertNotEqual(one, other)

  def test_a_block_is_whole_but_at_the_ends_of_a_window(self):
    rows = np.full(50, 10)
    found = list(blocks.pieces(rows, 33, 100))
    self.assertEqual([x[1:] for x in found], [(3, 10), *[(0, 10)] * 9, (0, 3)])


class BlocksTest(folders.FolderTest):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(blocks, "BLOCK", 16))

  def _write(self, parts):
    written = [blocks.write(self.folder, i, x) for i, x in enumerate(parts)]
    blocks.write_index(self.folder, written, _ITEMS)
    return blocks.load(self.folder)

  @parameterized.product(
    missing=(
      (),
      ("propensity", "reward"),
      ("session", "step", "terminated"),
      ("session", "step"),
    ),
    observed=(0, 5),
  )
  def test_the_transitions_of_the_same_logs_in_memory(self, missing, observed):
    parts = [_logs(0), _logs(1, 3, 50), _logs(2, first_user=60)]
    parts = [x._replace(**dict.fromkeys(missing)) for x in parts]
    reward, joined = Reward(-0.2), _joined(parts)
    if "session" not in missing:
      number = np.repeat([0, 100, 200], [len(x.user_id) for x in parts])
      joined = joined._replace(session=joined.session + number)
    expected = logged.learned(joined, reward, _ITEMS, observed)
    stored = self._write(parts)
    self.assertGreater(len(stored.rows), 8)
    self.assertEqual(stored.counts, transitions.counts(joined))
    read, _ = windows.reader(stored, reward, observed)
    total = len(joined.user_id)
    found = read(total, total)  # The second epoch.
    order = [
      np.arange(stop)[first:] + stored.rows[:block].sum()
      for block, first, stop in blocks.pieces(stored.rows, total, total)
    ]
    place = np.argsort(np.concatenate(order))
    found = jax.tree.map(lambda x: x[place], found)
    chex.assert_trees_all_equal(found, jax.device_get(expected))
    chex.assert_trees_all_equal_dtypes(found, expected)

  def test_a_session_is_in_one_block(self):
    stored = self._write([_logs()])
    self.assertEqual(stored.rows.sum(), len(_logs().user_id))
    sessions = []

    def make(slates):
      sessions.append(set(slates.session.tolist()))
      return slates.user_id

    blocks.read(stored, 0, int(stored.rows.sum()), make)
    self.assertLen(set.union(*sessions), sum(map(len, sessions)))
    self.assertBetween(stored.rows[:-1].min(), 16, 16 + 6)
    self.assertLess(stored.rows[:-1].max(), 16 + 7)

  def test_files_that_are_not_whole(self):
    stored = self._write([_logs()])
    (path,) = stored.paths
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with self.assertRaisesRegex(InputError, f"{path} has .* bytes; expected"):
      blocks.load(self.folder)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    path.write_bytes(flipped)
    total = int(stored.rows.sum())
    read, _ = windows.reader(blocks.load(self.folder), Reward(0.0), 0)
    with self.assertRaisesRegex(InputError, f"{path} cannot be read") as found:
      read(0, total)
    self.assertNotIn("\n", str(found.exception))
    path.unlink()
    with self.assertRaisesRegex(InputError, f"{path} is missing; expected"):
      blocks.load(self.folder)
    (self.folder / blocks.INDEX).write_text(f'{{"format": {blocks.FORMAT}}}')
    with self.assertRaisesRegex(InputError, "index.json lacks 'files'"):
      blocks.load(self.folder)


if __name__ == "__main__":
  absltest.main()
