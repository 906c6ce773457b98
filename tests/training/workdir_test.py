"""Folders that change as a whole, and flags that a workdir keeps."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError
from hsrl_jax.training import workdir


class Crash(BaseException):
  """Ends a process at a chosen point."""


def _write(folder, text):
  with workdir.replace_folder(folder) as new:
    for name in ("a", "b"):
      (new / name).write_text(text)


class ReplaceFolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(root)
    self.folder = self.root / "sids"

  def _holds(self, text):
    self.assertEqual([x.name for x in self.root.iterdir()], ["sids"])
    found = {x.name: x.read_text() for x in self.folder.iterdir()}
    self.assertEqual(found, {"a": text, "b": text})

  def test_makes_and_replaces(self):
    _write(self.folder, "old")
    self._holds("old")
    _write(self.folder, "new")
    self._holds("new")

  def test_an_error_changes_nothing(self):
    _write(self.folder, "old")
    with (
      self.assertRaises(OSError),
      workdir.replace_folder(self.folder) as new,
    ):
      (new / "a").write_text("new")
      raise OSError("disk full")
    self._holds("old")

  @parameterized.parameters((0, "old"), (1, "new"))
  def test_a_crash_at_a_rename(self, crash_at, expected):
    """The process dies before its first or its second rename."""
    _write(self.folder, "old")
    rename, calls = pathlib.Path.rename, []

    def dying(path, target):
      calls.append(path)
      if len(calls) > crash_at:
        raise Crash
      return rename(path, target)

    with (
      mock.patch.object(pathlib.Path, "rename", dying),
      self.assertRaises(Crash),
    ):
      _write(self.folder, "new")
    workdir.settle(self.folder)
    self._holds(expected)

  def test_a_crash_while_writing(self):
    _write(self.folder, "old")
    half = self.root / ".sids.new"
    half.mkdir()
    (half / "a").write_text("new")
    workdir.settle(self.folder)
    self._holds("old")

  def test_a_crash_while_the_old_one_goes(self):
    _write(self.folder, "new")
    left = self.root / ".sids.old"
    left.mkdir()
    (left / "b").write_text("old")
    workdir.settle(self.folder)
    self._holds("new")

  def test_a_crash_of_the_first_write(self):
    (self.root / ".sids.new").mkdir()
    workdir.settle(self.folder)
    self.assertEmpty(list(self.root.iterdir()))


class FlagsTest(absltest.TestCase):
  def test_given_flags_agree_with_kept_ones(self):
    with tempfile.TemporaryDirectory() as folder:
      root = pathlib.Path(folder)
      self.assertEqual(workdir.kept_flags(root), {})
      workdir.claim(root, {"a": "1", "b": "x=y"})
      self.assertEqual(workdir.kept_flags(root), {"a": "1", "b": "x=y"})
      workdir.agree(root, {})
      workdir.agree(root, {"b": "x=y"})
      with self.assertRaisesRegex(InputError, "--a was 1, now 2"):
        workdir.agree(root, {"a": "2"})


if __name__ == "__main__":
  absltest.main()
