"""Rows of a .npy file against numpy.load, and files that are no good."""

import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.data import embeddings


class RowsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir()) / "x.npy"
    self.x = np.random.default_rng(0).normal(size=(11, 3))

  @parameterized.parameters("<f2", "<f4", ">f4", "<f8")
  def test_slices_are_those_of_numpy(self, dtype):
    np.save(self.path, self.x.astype(dtype))
    x = embeddings.open_npy(self.path)
    expected = np.load(self.path).astype(np.float32)
    self.assertEqual((x.shape, len(x)), ((11, 3), 11))
    self.assertEqual(x.dtype, np.dtype(dtype))
    for part in (
      slice(None),
      slice(0, 4),
      slice(4, 11),
      slice(9, 99),
      slice(-2, None),
      slice(5, 5),
      slice(7, 3),
    ):
      self.assertEqual(x[part].dtype, np.float32)
      np.testing.assert_array_equal(x[part], expected[part])

  def test_values_beyond_float32_are_infinite(self):
    self.x[4, 1], self.x[7, 2] = 1e39, -1e300
    np.save(self.path, self.x)
    large = embeddings.open_npy(self.path)[
      :
    ]  # A warning would be an error here.
    self.assertEqual(np.argwhere(np.isinf(large)).tolist(), [[4, 1], [7, 2]])
    self.assertLess(large[7, 2], 0)

  def test_only_slices(self):
    np.save(self.path, self.x)
    x = embeddings.open_npy(self.path)
    for bad in (3, slice(0, 4, 2), [1, 2]):
      with self.assertRaisesRegex(TypeError, r"x\[a:b\]"):
        x[bad]

  @parameterized.named_parameters(
    ("integers", np.ones((3, 2), int), "holds int64 of shape"),
    ("one_axis", np.ones(3), r"shape \(3,\); expected a float matrix"),
    ("three_axes", np.ones((3, 2, 2)), "expected a float matrix"),
    ("no_rows", np.ones((0, 2)), "is empty"),
    ("no_columns", np.ones((3, 0)), "is empty"),
    ("fortran", np.asfortranarray(np.eye(3, 4)), "Fortran order"),
  )
  def test_other_arrays(self, array, message):
    np.save(self.path, array)
    self._assert_refused(message)

  @parameterized.parameters(
    b"", b"PK\x03\x04 not this one", b"\x93NUMPY\x09\x00"
  )
  def test_other_files(self, content):
    self.path.write_bytes(content)
    self._assert_refused("is not a .npy file")

  @parameterized.parameters(1, 8, 200)
  def test_truncated(self, missing):
    np.save(self.path, self.x)
    content = self.path.read_bytes()
    self.path.write_bytes(content[:-missing])
    self._assert_refused(f"has {len(content) - missing} bytes.*truncated")

  def test_truncated_in_the_header(self):
    np.save(self.path, self.x)
    self.path.write_bytes(self.path.read_bytes()[:40])
    self._assert_refused("is not a .npy file")

  def test_truncated_after_it_was_opened(self):
    np.save(self.path, self.x)
    x = embeddings.open_npy(self.path)
    self.path.write_bytes(self.path.read_bytes()[:-1])
    x[:10]
    with self.assertRaisesRegex(ValueError, "ends before row 11"):
      x[:11]

  def _assert_refused(self, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      embeddings.open_npy(self.path)
    self.assertIn(str(self.path), str(caught.exception))
    self.assertNotIn("\n", str(caught.exception))


if __name__ == "__main__":
  absltest.main()
