"""Embeddings of one's own: the three kinds of files, and bad ones."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from absl.testing import absltest, parameterized

from hsrl_jax.data import embeddings
from hsrl_jax.errors import InputError
from tests import folders

_X = np.arange(12, dtype=np.float32).reshape(4, 3) / 8


def _parquet(path, **columns):
  pa.parquet.write_table(pa.table(columns), path)


class EmbeddingsTest(folders.FolderTest):
  def _npz(self, **arrays):
    path = self.folder / "x.npz"
    np.savez(path, **arrays)
    return path

  def _refused(self, path, message):
    with self.assertRaisesRegex(InputError, message) as raised:
      embeddings.read(path)
    self.assertNotIn("\n", str(raised.exception))

  @parameterized.parameters("<f2", "<f4", ">f4", "<f8")
  def test_npy(self, dtype):
    np.save(self.folder / "x.npy", _X.astype(dtype))
    found = embeddings.read(self.folder / "x.npy")
    np.testing.assert_array_equal(found.rows[0:4], _X)
    self.assertEqual(found.rows[1:3].dtype, np.float32)
    self.assertIsNone(found.item_ids)
    self.assertIsNone(found.titles)

  @parameterized.parameters(
    (np.array([7, 3, 9, 1], np.uint16), [7, 3, 9, 1]),
    (np.array(["b", "a", "d", "é"]), ["b", "a", "d", "é"]),
    (np.array([b"b", b"a", b"d", b"e"]), ["b", "a", "d", "e"]),
  )
  def test_npz(self, ids, expected):
    path = self._npz(embeddings=_X.astype(np.float64), item_id=ids)
    found = embeddings.read(path)
    np.testing.assert_array_equal(found.rows, _X)
    self.assertEqual(found.item_ids.tolist(), expected)

  @parameterized.parameters(
    pa.list_(pa.float32()),
    pa.list_(pa.float64()),
    pa.large_list(pa.float16()),
    pa.list_(pa.float32(), 3),
  )
  def test_parquet(self, kind):
    path = self.folder / "x.parquet"
    rows = [row.astype(kind.value_type.to_pandas_dtype()) for row in _X]
    _parquet(
      path,
      embedding=pa.array(rows, kind),
      item_id=[5, 6, 7, 8],
      title=["A", None, "C", "D"],
      other=[1, 2, 3, 4],
    )
    found = embeddings.read(path)
    np.testing.assert_array_equal(found.rows, _X)
    self.assertEqual(found.item_ids.tolist(), [5, 6, 7, 8])
    self.assertEqual(found.titles.tolist(), ["A", "", "C", "D"])

  def test_parquet_with_text_ids_in_pieces(self):
    path = self.folder / "x.parquet"
    table = pa.table({"embedding": list(_X), "item_id": pa.array(list("wxyz"))})
    pa.parquet.write_table(table, path, row_group_size=3)
    found = embeddings.read(path)
    np.testing.assert_array_equal(found.rows, _X)
    self.assertEqual(found.item_ids.tolist(), list("wxyz"))

  @parameterized.parameters(
    ({"embeddings": _X[:0]}, "shape \\(0, 3\\); expected at least one item"),
    ({"embeddings": _X[0]}, "of shape \\(3,\\); expected floating"),
    ({"embeddings": _X.astype(int)}, "are int64 of shape .* floating point"),
    ({"vectors": _X}, "has vectors; expected 'embeddings'"),
    ({"embeddings": _X, "item_id": [1, 2]}, "item_id has 2 .*expected 4"),
    ({"embeddings": _X, "title": ["a"]}, "title has 1 entries; expected 4"),
    ({"embeddings": _X, "item_id": [1, 2, 2, 3]}, "such as 2 \\(2 times\\)"),
    ({"embeddings": _X, "item_id": [1.0, 2, 3, 4]}, "item ids are float64"),
  )
  def test_bad_npz(self, arrays, message):
    self._refused(self._npz(**arrays), message)

  @parameterized.parameters(
    ({"vector": list(_X)}, "has vector; expected 'embedding'"),
    ({"embedding": [1.0, 2.0]}, "type double; expected a list of floats"),
    ({"embedding": [[1, 2], [3, 4]]}, "are int64 of shape"),
    ({"embedding": [["a"], ["b"]]}, "x.parquet: embeddings are object"),
    (
      {"embedding": [[1.0, 2.0], [3.0]]},
      "row 1 has 1 values; expected 2, as in the first",
    ),
    ({"embedding": [[1.0], None]}, "1 rows have no embedding"),
    (
      {"embedding": [[1.0], [2.0]], "item_id": [1, None]},
      "1 rows have no item_id",
    ),
    (
      {"embedding": [[1.0], [2.0]], "item_id": [0.5, 1.5]},
      "item ids are float64",
    ),
    (
      {"embedding": pa.array([], pa.list_(pa.float32()))},
      "expected at least one item",
    ),
  )
  def test_bad_parquet(self, columns, message):
    path = self.folder / "x.parquet"
    _parquet(path, **columns)
    self._refused(path, message)

  def test_a_missing_value_in_parquet_is_not_finite(self):
    path = self.folder / "x.parquet"
    _parquet(path, embedding=[[1.0, 2.0], [None, 4.0]])
    with self.assertRaisesRegex(InputError, "1 row has NaN"):
      embeddings.check_finite(
        embeddings.read(path).rows, np.array([4, 5]), path
      )

  @parameterized.parameters(".npy", ".npz", ".parquet")
  def test_missing_empty_truncated(self, suffix):
    path = self.folder / f"x{suffix}"
    self._refused(path, "is missing")
    path.write_bytes(b"")
    self._refused(path, f"x{suffix}")
    if suffix == ".npy":
      np.save(path, _X)
    elif suffix == ".npz":
      np.savez(path, embeddings=_X)
    else:
      _parquet(path, embedding=list(_X))
    path.write_bytes(path.read_bytes()[:-10])
    self._refused(path, f"x{suffix}")

  def test_unknown_suffix(self):
    self._refused(
      self.folder / "x.csv", "'.csv'; expected one of .npy, .npz, .parquet"
    )

  def test_rows_that_are_not_finite_are_named_and_counted(self):
    x = np.ones((embeddings.BLOCK + 9, 2), np.float32)
    x[5, 1] = np.nan
    x[embeddings.BLOCK + 1 :, 0] = np.inf
    seen = []
    block = embeddings.BLOCK
    with self.assertRaisesRegex(
      InputError,
      r"f: 9 rows have NaN or infinite values: item 6 \(row 5\), "
      rf"{block + 2} \(row {block + 1}\), {block + 3} \(.*\), \.\.\.; ",
    ):
      embeddings.check_finite(x, np.arange(1, len(x) + 1), "f", seen.append)
    self.assertEqual(sum(seen), len(x))

  def test_too_large_for_float32_is_not_finite(self):
    found = embeddings.read(self._npz(embeddings=_X * np.float64(1e200)))
    message = r"4 rows .*item 0 \(row 0\), 1 .*finite in float32"
    with self.assertRaisesRegex(InputError, message):
      embeddings.check_finite(found.rows, np.arange(4), "x")

  def test_ids_from_text_and_npy(self):
    path = self.folder / "ids.txt"
    path.write_text("12\n\n  7 \n")
    found = embeddings.read_ids(path)
    self.assertEqual(found.tolist(), ["12", "7"])
    as_known = embeddings.like(found, np.array([1, 2]), path)
    self.assertEqual(as_known.tolist(), [12, 7])
    np.save(self.folder / "ids.npy", np.array([3, 4]))
    found = embeddings.read_ids(self.folder / "ids.npy")
    self.assertEqual(found.tolist(), [3, 4])
    as_known = embeddings.like(found, np.array(["3", "x"]), path)
    self.assertEqual(as_known.tolist(), ["3", "4"])

  @parameterized.parameters(
    ("ids.txt", "", "is empty"),
    ("ids.txt", "a\nb\na\n", "such as a \\(2 times\\)"),
    ("ids.csv", "a", "expected one of .txt, .npy"),
    ("ids.npy", "what", "cannot be read"),
  )
  def test_bad_ids(self, name, text, message):
    (self.folder / name).write_text(text)
    with self.assertRaisesRegex(InputError, message):
      embeddings.read_ids(self.folder / name)

  def test_ids_that_should_be_integers(self):
    with self.assertRaisesRegex(InputError, "no integer"):
      embeddings.like(np.array(["12", "b"]), np.array([1]), "ids.txt")
    with self.assertRaisesRegex(InputError, r"such as 7 \(2 times\)"):
      embeddings.like(np.array(["7", "07"]), np.array([1]), "ids.txt")


if __name__ == "__main__":
  absltest.main()
