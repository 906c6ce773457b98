"""Compiled programs are kept for the next run."""

import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest

from hsrl_jax.host import compiled
from tests import command

# Compiles the same three times: anew, from the folder, from a torn file.
_PROGRAM = """
import pathlib, sys, warnings
warnings.simplefilter("error")
import jax
from hsrl_jax.host import compiled

hits = []
jax.monitoring.register_event_listener(
  lambda name, **_: hits.append(name.endswith("cache_hits"))
)
compiled._SECONDS = 0.0
compiled.keep()
for torn in (False, False, True):
  if torn:
    for path in compiled.folder().glob("*-cache"):
      path.write_bytes(path.read_bytes()[:20])
  before = sum(hits)
  jax.clear_caches()
  result = jax.jit(lambda x: x * 2 + 1)(3.0)
  print(int(result), sum(hits) - before, end=";")
"""


class CompiledTest(absltest.TestCase):
  def setUp(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.home = pathlib.Path(folder.name)

  def _run(self, **environment):
    known = command.environment() | environment
    return subprocess.run(
      [sys.executable, "-c", _PROGRAM],
      cwd=command.ROOT,
      env={k: v for k, v in known.items() if v},
      capture_output=True,
      text=True,
      check=True,
    ).stdout

  def test_is_read_again_and_a_torn_file_costs_a_compilation(self):
    own = {compiled.ELSEWHERE: "", "XDG_CACHE_HOME": str(self.home)}
    self.assertEqual(self._run(**own), "7 0;7 1;7 0;")
    (folder,) = (self.home / "hsrl_jax" / "compiled").iterdir()
    self.assertNotEmpty(list(folder.glob("*-cache")))

  def test_a_folder_that_cannot_be_written_changes_nothing(self):
    file = self.home / "file"
    file.write_text("")
    with (
      mock.patch.dict(
        os.environ, {"XDG_CACHE_HOME": str(file), compiled.ELSEWHERE: ""}
      ),
      mock.patch.object(compiled.jax.config, "update") as update,
    ):
      compiled.keep()
      update.assert_not_called()
      os.environ |= {"XDG_CACHE_HOME": str(self.home)}
      compiled.keep()
      self.assertEqual(
        update.call_args_list[0],
        mock.call("jax_compilation_cache_dir", str(compiled.folder())),
      )
      update.reset_mock()
      os.environ |= {compiled.ELSEWHERE: "x"}  # Jax knows of it already.
      compiled.keep()
      update.assert_not_called()

  def test_processors_do_not_share(self):
    found = set()
    for text in ("flags : avx2\nbogomips : 1", "flags : avx2\nbogomips : 2"):
      (self.home / "cpu").write_text(text)
      with mock.patch.object(compiled, "_CPU", self.home / "cpu"):
        found.add(compiled.folder().name)
    self.assertLen(found, 1)
    (self.home / "cpu").write_text("flags : avx512f")
    with mock.patch.object(compiled, "_CPU", self.home / "cpu"):
      self.assertNotIn(compiled.folder().name, found)

  def test_the_oldest_go(self):
    for age, name in enumerate("cab"):
      path = self.home / f"{name}-cache"
      path.write_bytes(b"x" * 10)
      os.utime(path, (1000 - age, 1000 - age))
    (self.home / "notes").write_text("another's")
    compiled.trim(self.home, 30)
    self.assertLen(list(self.home.iterdir()), 4)
    compiled.trim(self.home, 15)
    self.assertEqual(
      {x.name for x in self.home.iterdir()}, {"c-cache", "notes"}
    )


if __name__ == "__main__":
  absltest.main()
