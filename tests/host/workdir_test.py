"""Folders that change as a whole, and flags that a workdir keeps."""

import contextlib
import errno
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError
from hsrl_jax.host import workdir


class Crash(BaseException):
  """Ends a process at a chosen point."""


KIND = workdir.Kind(
  "a pair", ("a", "b", "more-*"), lambda x: (x / "b").exists()
)


def _write(folder, text):
  with workdir.replace_folder(folder, KIND) as new:
    for name in ("a", "b"):
      (new / name).write_text(text)


class LockTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(root) / "run"

  def test_second_is_refused_and_told_by_whom(self):
    with workdir.locked(self.folder):
      (self.folder / "made").touch()
      expected = f"in use by process {os.getpid()} on "
      with self.assertRaisesRegex(InputError, expected):
        self.enter_context(workdir.locked(self.folder))
      (lock,) = self.folder.glob(".*")
      self.assertStartsWith(lock.read_text(), f"{os.getpid()} on ")
    self.assertEqual([p.name for p in self.folder.iterdir()], ["made"])
    with workdir.locked(self.folder):
      pass

  def test_killed_process_leaves_no_lock(self):
    hold = (
      "import pathlib, sys, time\n"
      "from hsrl_jax.host import workdir\n"
      "with workdir.locked(pathlib.Path(sys.argv[1])):\n"
      "  print('held', flush=True)\n"
      "  time.sleep(600)\n"
    )
    holder = subprocess.Popen(
      (sys.executable, "-c", hold, self.folder),
      stdout=subprocess.PIPE,
      cwd=pathlib.Path(__file__).parents[2],
    )
    with holder:
      self.assertEqual(holder.stdout.readline(), b"held\n")
      with self.assertRaisesRegex(InputError, f"process {holder.pid} on "):
        self.enter_context(workdir.locked(self.folder))
      holder.kill()
    with workdir.locked(self.folder):
      pass

  def test_a_full_disk_is_told_with_the_file(self):
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
      mock.patch("os.write", side_effect=full),
      self.assertRaisesRegex(OSError, f"No space .*: '{self.folder}/.lock'"),
    ):
      self.enter_context(workdir.locked(self.folder))
    self.assertFalse(self.folder.exists())

  def test_unused_folder_goes_again(self):
    with workdir.locked(self.folder):
      pass
    self.assertFalse(self.folder.exists())

  def test_file_system_without_locks(self):
    error = OSError(errno.EOPNOTSUPP, "Operation not supported")
    err = io.StringIO()
    with (
      mock.patch("fcntl.flock", side_effect=error),
      contextlib.redirect_stderr(err),
      workdir.locked(self.folder),
    ):
      pass
    self.assertRegex(err.getvalue(), "^warning: .* cannot be locked .*\n$")


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
      workdir.replace_folder(self.folder, KIND) as new,
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
    workdir.settle(self.folder, KIND)
    self._holds(expected)

  def test_a_crash_while_writing(self):
    _write(self.folder, "old")
    half = self.root / ".sids.new"
    half.mkdir()
    (half / "a").write_text("new")
    workdir.settle(self.folder, KIND)
    self._holds("old")

  def test_a_crash_while_the_old_one_goes(self):
    _write(self.folder, "new")
    left = self.root / ".sids.old"
    left.mkdir()
    (left / "b").write_text("old")
    workdir.settle(self.folder, KIND)
    self._holds("new")

  def test_a_crash_of_the_first_write(self):
    (self.root / ".sids.new").mkdir()
    workdir.settle(self.folder, KIND)
    self.assertEmpty(list(self.root.iterdir()))


class OthersFoldersTest(parameterized.TestCase):
  """Where something else lies nothing is written, and nothing is lost."""

  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(root)
    self.folder = self.root / "sids"

  def _refused(self, message):
    before = self._all()
    with self.assertRaisesRegex(InputError, message) as caught:
      _write(self.folder, "new")
    self.assertNotIn("\n", str(caught.exception))
    self.assertEqual(self._all(), before)

  def _all(self):
    return {
      str(path): (path.is_symlink(), path.is_file() and path.read_text())
      for path in self.root.rglob("*")
    }

  @parameterized.parameters(
    (("letter",), "holds 'letter', which is not of a pair"),
    (("a", "b", "letter"), "holds 'letter', which is not of a pair"),
    (("a", "b", "c/letter"), "holds 'c', which is not of a pair"),
    (("a", "b", "more-x/letter"), "holds 'more-x', which is not of a pair"),
    (("a",), "is not a pair of hsrl_jax"),
  )
  def test_a_folder_of_others(self, names, message):
    for name in names:
      path = self.folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text("kept")
    self._refused(message)

  def test_a_file(self):
    self.folder.write_text("kept")
    self._refused("is no folder; expected a folder that is missing")

  def test_a_link(self):
    _write(self.root / "there", "old")
    for target in ("there", "nowhere"):
      self.folder.symlink_to(target)
      self._refused("is a symbolic link; expected a folder that is missing")
      self.folder.unlink()

  def test_a_link_inside(self):
    _write(self.folder, "old")
    (self.folder / "more-1").symlink_to("a")
    self._refused("holds 'more-1'")

  def test_a_device(self):
    device = pathlib.Path("/dev/null")
    with self.assertRaisesRegex(InputError, "/dev/null is no folder"):
      _write(device, "new")
    self.assertTrue(device.is_char_device())

  def test_the_root_and_the_current_folder(self):
    (self.root / "letter").write_text("kept")
    with contextlib.chdir(self.root):
      for folder in ("/", ".", "..", "x/.."):
        with self.assertRaisesRegex(InputError, "expected a folder that is mi"):
          _write(pathlib.Path(folder), "new")
    self.assertEqual([x.name for x in self.root.iterdir()], ["letter"])

  @parameterized.parameters(".sids.new", ".sids.old")
  def test_where_folders_step_aside(self, name):
    other = self.root / name
    other.mkdir()
    (other / "letter").write_text("kept")
    self._refused("is not what an interrupted write of sids leaves")
    with self.assertRaisesRegex(InputError, "is not what an interrupted"):
      workdir.settle(self.folder, KIND)
    other.rename(self.root / "elsewhere")
    other.symlink_to("elsewhere")
    self._refused("is not what an interrupted write of sids leaves")

  def test_what_comes_meanwhile_is_kept(self):
    with (
      self.assertRaisesRegex(InputError, "holds 'letter'"),
      workdir.replace_folder(self.folder, KIND),
    ):
      self.folder.mkdir()
      (self.folder / "letter").write_text("kept")
    self.assertEqual((self.folder / "letter").read_text(), "kept")

  def test_an_empty_folder_and_a_half_written_file_of_ours(self):
    self.folder.mkdir()
    _write(self.folder, "old")
    (self.folder / ".more-1.a8x").write_text("cut")
    _write(self.folder, "new")
    self.assertCountEqual([x.name for x in self.folder.iterdir()], ["a", "b"])

  def test_the_old_one_is_removed_last(self):
    _write(self.folder, "old")
    seen = []

    def rmtree(path, **_):
      seen.append((path.name, (self.folder / "a").read_text()))

    with mock.patch("shutil.rmtree", rmtree):
      _write(self.folder, "new")
    self.assertEqual(seen[-1], (".sids.old", "new"))


class FlagsTest(absltest.TestCase):
  def test_given_flags_agree_with_kept_ones(self):
    with tempfile.TemporaryDirectory() as folder:
      root = pathlib.Path(folder)
      self.assertEqual(workdir.kept_flags(root), {})
      workdir.claim(root, {"a": "1", "b": "x=y"})
      self.assertEqual(workdir.kept_flags(root), {"a": "1", "b": "x=y"})
      flags = {"a": "2", "b": "x=y"}
      workdir.agree(root, flags, ())
      workdir.agree(root, flags, {"b"})
      with self.assertRaisesRegex(InputError, "--a was 1, now 2"):
        workdir.agree(root, flags, {"a"})


if __name__ == "__main__":
  absltest.main()
