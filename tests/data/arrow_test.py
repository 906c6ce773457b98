"""Lists that are read at once against the same lists, cell by cell."""

import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.logs import (
  arrow,
  logs_dataset_builder,
  options,
  tables,
)

ITEMS = [f"i{x}" for x in range(30)]


def _columns(seed, rows=40, width=3):
  rng = np.random.default_rng(seed)
  names = [f"i{x}" for x in range(30)]
  return {
    "user_id": [f"u{x}" for x in rng.integers(0, 6, rows)],
    "timestamp": rng.permutation(rows).astype(float).tolist(),
    "exposed": [list(rng.permutation(names)[:width]) for _ in range(rows)],
    "response": rng.integers(0, 2, (rows, width)).tolist(),
    "propensity": rng.uniform(0.01, 1, (rows, width)).tolist(),
    "profile": rng.normal(size=(rows, 2)).tolist(),
    "history": [list(rng.choice(names, x)) for x in rng.integers(0, 70, rows)],
  }


class ArrowTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)

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
      chosen = options.Options()
      return logs_dataset_builder.read_sessions(self.folder, ITEMS, chosen)
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
    self.assertEqual(found[0].keys(), expected[0].keys())
    for name, value in expected[0].items():
      np.testing.assert_array_equal(found[0][name], value, name)
      self.assertEqual(found[0][name].dtype, value.dtype, name)
    self.assertEqual(found[1:], expected[1:])

  def test_all_of_it_is_read_at_once(self):
    cells = arrow.Cells(pa.table(_columns(0)))
    for name, good in (
      ("response", tables.responses),
      ("profile", tables.numbers),
    ):
      self.assertIsNotNone(arrow.numbers(cells, name, tables._GOOD[good], None))
    self.assertIsNotNone(arrow.slates(cells, "exposed", ITEMS))
    self.assertIsNotNone(arrow.histories(cells, "history", ITEMS))

  @parameterized.parameters(
    ("response", [0, 2, 1], "expected 0 or 1"),
    ("response", [0, 1], "found 2 entries; expected 3"),
    ("response", None, "expected a list"),
    ("propensity", [0.5, 0.0, 0.5], r"a probability in \(0, 1\]"),
    ("propensity", [0.5, float("nan"), 0.5], r"a probability in \(0, 1\]"),
    ("profile", [float("inf"), 0.0], "expected a finite number"),
    ("exposed", ["i1", "i1", "i2"], "expected different items"),
    ("exposed", ["i1", "ix", "i2"], "item 'ix'; expected item_ids"),
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
