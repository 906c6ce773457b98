"""Files: whole, readable as the umask says, looked at before they are read."""

import os
import pathlib
import stat
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import files
from hsrl_jax.data import embeddings, sids
from hsrl_jax.errors import InputError
from hsrl_jax.sim import response_file, truth

_READERS = {
  "embeddings": embeddings.read,
  "sids": sids.read_file,
  "response": response_file.read,
  "truth": lambda path: truth.read(path, 2, 3),
}


class WriteTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir()) / "x" / "file"

  @parameterized.parameters((0o077, 0o600), (0o022, 0o644), (0o002, 0o664))
  def test_the_umask_says_who_may_read(self, mask, want):
    self.addCleanup(os.umask, os.umask(mask))
    for text in ("a", "b"):
      files.write_atomic(self.path, text)
      self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), want)
      self.assertEqual(self.path.read_text(), text)

  def test_what_fails_leaves_the_old_file_alone(self):
    files.write_atomic(self.path, "old")
    error = OSError(28, "No space left on device")
    with (
      mock.patch.object(files.os, "fsync", side_effect=error),
      self.assertRaisesRegex(OSError, str(self.path)),
    ):
      files.write_atomic(self.path, "new")
    self.assertEqual(self.path.read_text(), "old")
    self.assertEqual(list(self.path.parent.iterdir()), [self.path])


class HeadersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / "x.npz"
    # Whatever is refused, none of it was inflated.
    loaded = mock.patch("numpy.load", side_effect=AssertionError("loaded"))
    self.loaded = self.enter_context(loaded)

  def _refused(self, reader, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      _READERS[reader](self.path)
    self.assertNotIn("\n", str(caught.exception))
    self.loaded.assert_not_called()

  def test_headers_are_those_of_the_arrays(self):
    arrays = {
      "a": np.zeros((3, 2), np.float32),
      "b": np.array(["x", "yz"]),
      "c": np.asfortranarray(np.ones((2, 4), np.int8)),
    }
    np.savez_compressed(self.path, **arrays)
    found = files.npz_headers(self.path)
    self.assertEqual([*found], [*arrays])
    for name, array in arrays.items():
      self.assertEqual(found[name][:2], (array.shape, array.dtype))

  @parameterized.parameters("embeddings", "sids", "response")
  def test_arrays_that_are_far_larger_than_the_file(self, reader):
    np.savez_compressed(
      self.path,
      embeddings=np.zeros((2**20, 2), np.float32),
      item_id=np.arange(9),
      tokens=np.zeros((9, 2), np.int32),
    )
    with mock.patch.object(files, "_INFLATED", 2**20):
      self._refused(
        reader,
        r"x.npz has [\d,]{5,6} bytes, and its arrays 8,[\d,]*; expected at "
        "most 50 times as many",
      )

  @parameterized.parameters(
    ("embeddings", "has other; expected 'embeddings'"),
    ("sids", "lacks 'item_id'|cannot be read"),
    ("response", "x.npz lacks cross_attention.key.bias; expected it"),
    ("truth", "x.npz cannot be read .*; expected a matrix of numbers"),
  )
  def test_arrays_of_other_names(self, reader, message):
    np.savez_compressed(self.path, other=np.zeros(9))
    self._refused(reader, message)

  @parameterized.parameters(
    ("embeddings", {"embeddings": np.zeros((3, 2), int)}, "are int64 of shape"),
    (
      "sids",
      {"item_id": np.arange(2), "tokens": np.zeros((3, 2), int)},
      r"item_id \[2\], 3 tokens",
    ),
  )
  def test_arrays_of_other_shapes(self, reader, arrays, message):
    np.savez_compressed(self.path, **arrays)
    self._refused(reader, message)

  def test_a_matrix_of_another_shape(self):
    with self.path.open("wb") as file:
      np.save(file, np.zeros((2, 4)))
    self._refused("truth", r"x.npz is float64 \[2, 4\]; expected a matrix")


if __name__ == "__main__":
  absltest.main()
