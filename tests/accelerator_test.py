"""The script of accelerators, on the devices of a CPU."""

import json
import pathlib
import subprocess
import sys
import tempfile

import pytest
from absl.testing import absltest

from tests import command

SCRIPT = "tests/benchmarks/accelerator.py"


@pytest.mark.slow
class AcceleratorTest(absltest.TestCase):
  def _run(self, *arguments):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    out = pathlib.Path(folder) / "found.json"
    subprocess.run(
      [sys.executable, SCRIPT, "--small", f"--out={out}", *arguments],
      cwd=command.ROOT,
      env=command.quick(),
      stdout=subprocess.DEVNULL,
      check=True,
    )
    return json.loads(out.read_text())

  def test_every_section_has_its_figures(self):
    found = self._run("--minutes=20")
    self.assertEqual(found["platform"], "cpu")
    for name in ("training", "sardine", "codebooks", "search", "served"):
      self.assertNotEmpty(found[name])
      for figure in found[name].values():
        self.assertGreater(figure, 0)
    self.assertRegex(found["tests"]["pytest"], r"^\d+ passed")
    # A CPU agrees with itself.
    for said in found["agreement"].values():
      self.assertStartsWith(said, "0, within")

  def test_what_there_is_no_time_for_is_said(self):
    found = self._run("--minutes=0")
    figures = [x for x in found.values() if isinstance(x, dict)]
    self.assertLen(figures, 7)
    for section in figures:
      self.assertEqual(set(section.values()), {"out of time"})


if __name__ == "__main__":
  absltest.main()
