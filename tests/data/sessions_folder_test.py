"""A folder of tables: as one table, in blocks, and refused where it is bad."""

import pathlib
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from absl.testing import absltest, parameterized

from hsrl_jax.api import frames
from hsrl_jax.data import blocks, prepare, source, transitions
from hsrl_jax.engine import windows
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.logs import sessions
from hsrl_jax.shipped.datasets.logs.slates import cuts_of
from hsrl_jax.sim.reward import Reward
from hsrl_jax.stages import logged

_ITEMS, _USERS, _STEPS = 9, 30, 4


def _rows():
  """Slates of users in turn, all at times of which many are the same."""
  rng = np.random.default_rng(0)
  user = np.repeat(np.arange(_USERS), 2 * _STEPS)
  count = len(user)
  step = np.tile(np.arange(_STEPS), 2 * _USERS)
  shown = np.argsort(rng.random((count, _ITEMS)), 1)[:, :3]
  start = rng.integers(0, 9, _USERS * 2).repeat(_STEPS)
  rows = {
    "user_id": [f"u{x}" for x in user],
    "session_id": (np.arange(count) // _STEPS).tolist(),
    "step": step.tolist(),
    "exposed": [[f"i{x}" for x in row] for row in shown],
    "response": rng.integers(0, 2, (count, 3)).tolist(),
    "propensity": rng.uniform(0.1, 1, (count, 3)).tolist(),
    "reward": [None] * count,
    "terminated": (step == _STEPS - 1).astype(int).tolist(),
    "timestamp": (start + step).tolist(),
  }
  rows["reward"][40:] = np.mean(rows["response"], 1)[40:].tolist()
  mixed = np.concatenate([rng.permutation(80) + x for x in (0, 80, 160)])
  return {name: [cells[i] for i in mixed] for name, cells in rows.items()}


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.folder, self.rows = pathlib.Path(folder), _rows()

  def _raw(self, name):
    raw = self.folder / name
    raw.mkdir()
    items = {
      "item_id": [f"i{x}" for x in range(_ITEMS)],
      "feature": np.eye(_ITEMS).tolist(),
    }
    pyarrow.parquet.write_table(pa.table(items), raw / "items.parquet")
    return raw

  def _shards(self, raw, rows, count=3):
    """The rows in files of as many each."""
    (raw / "sessions").mkdir()
    size = len(rows["user_id"]) // count
    paths = [raw / "sessions" / f"{x}.parquet" for x in range(count)]
    for number, path in enumerate(paths):
      own = slice(number * size, (number + 1) * size)
      table = pa.table({name: cells[own] for name, cells in rows.items()})
      pyarrow.parquet.write_table(table, path)
    return paths

  def _prepare(self, raw, **given):
    data = self.folder / f"data_{raw.name}"
    prepare.prepare("logs", data, str(raw), **given)
    return source.load(data), data

  def _both(self, **given):
    """The logs as one table, and as a folder."""
    table, shards = self._raw("table"), self._raw("shards")
    pyarrow.parquet.write_table(pa.table(self.rows), table / "sessions.parquet")
    self._shards(shards, self.rows)
    return self._prepare(table, **given)[0], *self._prepare(shards, **given)

  def test_a_small_folder_is_one_table(self):
    expected, found, data = self._both()
    for split, slates in expected.splits.items():
      own = found.splits[split]
      # Sessions are numbered in each file.
      chex.assert_trees_all_equal(
        transitions.order(own), transitions.order(slates)
      )
      chex.assert_trees_all_equal(
        own._replace(session=None), slates._replace(session=None)
      )
    chex.assert_trees_all_equal(found.items, expected.items)
    self.assertIsNone(blocks.load(data / blocks.FOLDER))
    self.assertTrue(frames.in_folder(self.folder / "shards"))
    self.assertEqual(
      source.user_names(data), source.user_names(self.folder / "data_table")
    )

  @parameterized.parameters(
    ((), "time"), (("session_id", "step", "propensity"), "user")
  )
  def test_a_large_folder_has_the_transitions_of_one_table(self, without, by):
    for name in without:
      del self.rows[name]
    with (
      mock.patch.object(sessions, "IN_MEMORY", 239),
      mock.patch.object(sessions, "SAMPLE", 100),
      mock.patch.object(blocks, "BLOCK", 10),
    ):
      # The table is read as always.
      whole, sample, data = self._both(split_by=by)
    train, reward = whole.splits["train"], Reward(-0.1)
    expected = logged.learned(train, reward, _ITEMS, 5)
    stored = blocks.load(data / blocks.FOLDER)
    total = int(stored.rows.sum())
    self.assertGreater(len(stored.rows), 9)
    read, _ = windows.reader(stored, reward, 5)
    order = [
      stored.rows[:block].sum() + np.arange(first, stop)
      for block, first, stop in blocks.pieces(stored.rows, 0, total)
    ]
    place = np.argsort(np.concatenate(order))
    found = jax.tree.map(lambda x: x[place], read(0, total))
    chex.assert_trees_all_equal(found, jax.device_get(expected))

    # Of the sample all is as it is of the same users among all.
    names = source.user_names(self.folder / "data_table")
    some = source.user_names(data)
    self.assertBetween(len(some) * 2 * _STEPS, 100, 107)
    self.assertNotEqual(some, names[: len(some)])
    for split, own in sample.splits.items():
      of_all = whole.splits[split]
      rows = np.isin(np.array(names)[of_all.user_id - 1], some)
      for name in ("history", "exposed", "response", "reward", "timestamp"):
        np.testing.assert_array_equal(
          getattr(own, name), getattr(of_all, name)[rows]
        )
    self.assertIn("240 slates, more than 239: the", prepare.notes(data)[-1])

  def test_a_file_without_propensities_beside_others(self):
    self.rows["propensity"][:80] = [None] * 80
    whole, sample, _ = self._both()
    for split, own in sample.splits.items():
      np.testing.assert_array_equal(
        own.propensity, whole.splits[split].propensity
      )
    known = np.isfinite(whole.splits["train"].propensity).all(1)
    self.assertBetween(known.mean(), 0.01, 0.99)

  def test_numbers_by_rank(self):
    rng = np.random.default_rng(0)
    numbers = np.concatenate(
      [rng.normal(size=500) * 1e5, rng.integers(-3, 3, 500), [-0.0, 0.0, 1e300]]
    )
    for count in (1, 2, 7, 500, 1_003):
      some = rng.permutation(numbers)[:count]
      order, held_out = np.sort(some), max(1, round(count / 10))
      for x, (number, ties) in zip((2, 1), cuts_of(some.copy()), strict=True):
        rank = max(count - x * held_out, 0)
        self.assertEqual(number, order[rank])
        self.assertEqual(ties, rank - np.sum(some < number))

  def _refused(self, message, change):
    """What is said where the shards were changed, in one line."""
    raw = self._raw("bad")
    paths = self._shards(raw, self.rows)
    change(paths)
    with self.assertRaisesRegex(InputError, message) as caught:
      self._prepare(raw)
    self.assertNotIn("\n", str(caught.exception))

  def _change(self, path, **columns):
    table = pyarrow.parquet.read_table(path).to_pydict() | columns
    table = {k: x for k, x in table.items() if x is not None}
    pyarrow.parquet.write_table(pa.table(table), path)

  def test_a_user_in_two_files(self):
    self.rows["user_id"][100] = "u3"
    self._refused(
      "1.parquet: user 'u3' is in 0.parquet too; expected all rows of a user",
      lambda paths: None,
    )

  def test_a_truncated_file(self):
    self._refused(
      "1.parquet cannot be read .*; expected a complete .parquet file",
      lambda paths: paths[1].write_bytes(paths[1].read_bytes()[:-100]),
    )

  def test_an_empty_file(self):
    self._refused(
      "2.parquet cannot be read .*; expected a complete .parquet file",
      lambda paths: paths[2].write_bytes(b""),
    )

  def test_a_file_without_rows(self):
    def empty(paths):
      table = pyarrow.parquet.read_table(paths[2])
      pyarrow.parquet.write_table(table[:0], paths[2])

    self._refused("2.parquet has no rows; expected at least one", empty)

  def test_columns_that_differ(self):
    self._refused(
      "2.parquet has the columns user_id, .*; expected .*, reward, .*, as in 0",
      lambda paths: self._change(paths[2], reward=None),
    )

  def test_a_column_that_is_needed(self):
    del self.rows["response"]
    self._refused(
      "0.parquet has the columns .*; expected response too", lambda paths: None
    )

  def test_no_slate_to_train_on(self):
    self.rows["split"] = ["val"] * len(self.rows["user_id"])
    with mock.patch.multiple(sessions, IN_MEMORY=100, SAMPLE=50):
      self._refused(
        "sessions: no slate is in the train split; expected at least one",
        lambda paths: None,
      )

  def test_slates_of_another_size(self):
    two = {"exposed": [["i1", "i2"]] * 80, "response": [[0, 1]] * 80}
    self._refused(
      "2.parquet: exposed has 2 entries; expected 3, as in 0.parquet",
      lambda paths: self._change(paths[2], **two, propensity=[[0.5] * 2] * 80),
    )

  def test_a_bad_cell(self):
    self.rows["exposed"][83] = ["i1", "nothing", "i2"]
    self._refused(
      "1.parquet: row 4, column exposed: found item 'nothing'",
      lambda paths: None,
    )

  def test_what_is_no_table(self):
    self._refused(
      "sessions has x.csv; expected .parquet files alone",
      lambda paths: (paths[0].parent / "x.csv").touch(),
    )

  def test_two_kinds_of_logs(self):
    self._refused(
      "has sessions and a folder sessions; expected interactions.csv",
      lambda paths: (paths[0].parents[1] / "sessions.csv").touch(),
    )


if __name__ == "__main__":
  absltest.main()
