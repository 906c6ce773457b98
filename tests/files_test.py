"""Files are whole, and as readable as the umask says."""

import os
import pathlib
import stat
from unittest import mock

from absl.testing import absltest, parameterized

from hsrl_jax import files


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


if __name__ == "__main__":
  absltest.main()
