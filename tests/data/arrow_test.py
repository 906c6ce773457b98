"""Lists that are read at once against the same lists, cell by cell."""

from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.logs import sessions, tables
from tests import folders

ITEMS = [f"i{x}" for x in range(30)]


def _columns(seed, rows=40, width=3):
  rng = np.random.default_rng(seed)
  names = [f"i{x}" for x in range(30)]
  return {
    "user_id": [f"u{x}" for x in rng.integers(0, 6, rows)],
    "timestamp": [0.5] * rows,
    "exposed": [list(rng.permutation(names)[:width]) for _ in range(rows)],
    "response": rng.integers(0, 2, (rows, width)).tolist(),
    "propensity": rng.uniform(0.01, 1, (rows, width)).tolist(),
    "profile": rng.normal(size=(rows, 2)).tolist(),
    "history": [list(rng.choice(names, x)) for x in rng.integers(0, 70, rows)],
    "session_id": rng.integers(8, 12, rows).tolist(),
    "step": rng.permutation(rows).tolist(),
  }


class ArrowTest(folders.FolderTest):
  def _read(self, columns, suffix):
    """The columns of sessions, of a file."""
    path = self.folder / f"sessions{suffix}"
    if suffix == ".parquet":
      pyarrow.parquet.write_table(pa.table(columns), path)
    else:
      lines = [",".join(columns)]
      for row in zip(*columns.values(), strict=True):
        cells = [";".join(map(str, x)) if type(x) is list else x for x in row]
        lines.append(",".join(map(str, cells)))
      path.write_text("\n".join(lines))
    try:
      table = tables.read_table(self.folder, "sessions", sessions.NEEDED)
      return sessions.read(table, tables.Items(ITEMS), by_user=False)
    finally:
      path.unlink()

  def test_users_without_profiles(self):
    """As a server writes them whose export has no profiles."""
    columns = _columns(0) | {"profile": [[]] * 40}
    found = self._read(columns, ".parquet")[0]["profile"]
    self.assertEqual(found.shape, (40, 0))

  @parameterized.parameters(0, 1)
  def test_as_a_csv_file(self, seed):
    columns = _columns(seed)
    found, expected = (self._read(columns, x) for x in (".parquet", ".csv"))
    self.assertEqual(found.columns.keys(), expected.columns.keys())
    for name in expected.columns:
      ours, theirs = (np.asarray(x.columns[name]) for x in (found, expected))
      np.testing.assert_array_equal(ours, theirs, name)
      self.assertEqual(ours.dtype, theirs.dtype, name)
    self.assertEqual(found[1:], expected[1:])

  def test_all_of_it_is_read_at_once(self):
    self._read(_columns(0), ".parquet")
    with mock.patch.object(tables.Table, "cells") as cells:
      self._read(_columns(0), ".parquet")
      columns = _columns(0)
      self._read({k: columns[k] for k in columns if k != "split"}, ".csv")
    cells.assert_not_called()

  def test_dates_as_a_csv_file(self):
    columns = _columns(0, rows=3)
    del columns["step"]
    dates = ["2025-01-31 12:00:00.25", "1969-12-31 23:59:59", "2025-02-01"]
    columns["timestamp"] = dates
    expected = self._read(columns, ".csv").columns["timestamp"]
    for unit in ("ms", "us"):
      for zone in (None, "Asia/Tokyo"):
        columns["timestamp"] = pa.array(
          np.array(dates, f"datetime64[{unit}]"), pa.timestamp(unit, zone)
        )
        found = self._read(columns, ".parquet").columns["timestamp"]
        np.testing.assert_array_equal(found, expected)

  def test_days_as_a_csv_file(self):
    columns = _columns(0, rows=2)
    del columns["step"]
    columns["timestamp"] = ["2025-01-31", "1969-12-31"]
    expected = self._read(columns, ".csv").columns["timestamp"]
    columns["timestamp"] = pa.array(
      np.array(columns["timestamp"], "datetime64[D]"), pa.date32()
    )
    found = self._read(columns, ".parquet").columns["timestamp"]
    np.testing.assert_array_equal(found, expected)
    self.assertCountEqual(found, [20_119 * 86_400, -86_400])

  def test_what_was_liked_before(self):
    """Against a walk through the rows by time."""
    columns = _columns(0, rows=300)
    del columns["history"], columns["step"]
    columns["timestamp"] = np.arange(300)[::-1] // 3  # With ties.
    read = self._read(columns, ".parquet").columns
    history = np.asarray(read["history"])
    liked = {user: [0] * 50 for user in columns["user_id"]}
    for row in np.argsort(columns["timestamp"], kind="stable"):
      own = liked[columns["user_id"][row]]
      self.assertEqual(history[row].tolist(), own[-50:])
      own += read["exposed"][row][read["response"][row] > 0].tolist()
    self.assertGreater(min(map(len, liked.values())), 100)

  def test_ids_of_bytes(self):
    columns = _columns(0)
    columns["user_id"] = [x.encode() for x in columns["user_id"]]
    with self.assertRaisesRegex(InputError, "found b'u.*expected an integer"):
      self._read(columns, ".parquet")

  @parameterized.parameters(
    ("step", -1, "found -1; expected a whole number from 0"),
    ("step", None, "found None; expected a finite number"),
    ("timestamp", float("nan"), "found nan; expected a finite number"),
    ("user_id", None, "found None; expected an integer or a string"),
    ("user_id", "", "found ''; expected an integer or a string"),
    ("response", [0, 2, 1], "expected 0 or 1"),
    ("response", [0, 1], "found 2 entries; expected 3"),
    ("response", None, "expected a list"),
    ("propensity", [0.5, 0.0, 0.5], r"a probability in \(0, 1\]"),
    ("propensity", [0.5, float("nan"), 0.5], r"a probability in \(0, 1\]"),
    ("profile", [float("inf"), 0.0], "expected a finite number"),
    ("exposed", ["i1", "i1", "i2"], "expected different items"),
    ("exposed", ["i1", "ix", "i2"], "item 'ix'; expected an item_id of"),
    ("history", ["i1", None], "row 8, column history"),
  )
  def test_what_is_wrong_is_named(self, name, cell, message):
    columns = _columns(0)
    columns[name][7] = cell
    with self.assertRaisesRegex(InputError, message) as caught:
      self._read(columns, ".parquet")
    self.assertIn(f"row 8, column {name}", str(caught.exception))


if __name__ == "__main__":
  absltest.main()
