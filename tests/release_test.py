"""What a release rests on: ranges of versions, shipped files, the audit."""

import ast
import importlib
import importlib.util
import json
import pathlib
import re
import shutil
import sys
from unittest import mock

from absl.testing import absltest, parameterized
from packaging import requirements
from packaging.version import Version

from hsrl_jax import files, launch
from hsrl_jax.data import prepare

ROOT = pathlib.Path(__file__).parents[1]


def _pins(name, python="3.11"):
  """Package to version of a requirements file on a Python."""
  lines = (ROOT / name).read_text().splitlines()
  pins = {}
  for line in lines:
    if not line.startswith(("#", "-r ")):
      pin = requirements.Requirement(line)
      if not pin.marker or pin.marker.evaluate({"python_version": python}):
        (version,) = pin.specifier
        assert version.operator == "==", line
        assert pin.name.lower() not in pins, line
        pins[pin.name.lower()] = version.version
  return pins


def _ranges():
  """Package to the versions that setup.py allows."""
  text = (ROOT / "setup.py").read_text()
  ranges = map(
    requirements.Requirement, re.findall(r'"(\w[\w\-\[\]]*>=[\d.,<]+)"', text)
  )
  return {x.name.lower(): x.specifier for x in ranges}


def _audit():
  path = ROOT / ".ci" / "audit.py"
  spec = importlib.util.spec_from_file_location("audit", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class VersionsTest(parameterized.TestCase):
  def test_minimum_is_what_the_ranges_allow(self):
    ranges, pins = _ranges(), _pins("requirements-min.txt")
    # Those that the tests of .ci/run do without.
    for name in set(ranges) - set(pins):
      self.assertIn(
        name, ("setuptools", "faiss-cpu", *_pins("requirements-dev.txt"))
      )
    self.assertGreater(len(pins), 15)
    for name, version in pins.items():
      (lowest,) = (x.version for x in ranges[name] if x.operator == ">=")
      self.assertEqual(Version(version), Version(lowest), name)

  @parameterized.parameters(
    ("3.11", "0.10"), ("3.12", "0.12"), ("3.13", "0.12")
  )
  def test_pins_are_in_the_ranges(self, python, jax):
    pins = _pins("requirements.txt", python) | _pins("requirements-dev.txt")
    self.assertStartsWith(pins["jax"], f"{jax}.")
    self.assertEqual(pins["jax"], pins["jaxlib"])
    for name, versions in _ranges().items():
      if name in pins:
        self.assertTrue(versions.contains(pins[name]), (name, pins[name]))


class ShippedTest(absltest.TestCase):
  """An installed package has datasets and flagfiles inside."""

  def setUp(self):
    super().setUp()
    package = pathlib.Path(self.create_tempdir()) / "hsrl_jax"
    self.shipped = package / "shipped"
    shutil.copytree(ROOT / "launch", self.shipped / "launch")
    shutil.copytree(ROOT / "datasets", self.shipped / "datasets")
    file = str(package / "files.py")
    self.enter_context(mock.patch.object(files, "__file__", file))

  def test_builders_are_found(self):
    folder = prepare.builder_folder("toy")
    self.assertEqual(folder, self.shipped / "datasets" / "toy")

  def test_all_of_datasets_is_shipped(self):
    text = (ROOT / "setup.py").read_text()
    table = re.search(r"^SHIPPED = (\{.*?^\})", text, re.M | re.S)[1]
    patterns = ast.literal_eval(table)["datasets"]
    folder = ROOT / "datasets"
    shipped = {path for pattern in patterns for path in folder.glob(pattern)}
    there = {x for x in folder.rglob("*") if x.is_file()}
    self.assertEqual(shipped, {x for x in there if x.suffix != ".pyc"})
    self.assertTrue((folder / "sardine" / "item_vectors.npy") in shipped)

  def test_what_builders_share_is_imported_from_the_package(self):
    installed = self.shipped.rename(self.shipped.parent / "as_installed")
    shutil.copy(ROOT / "hsrl_jax" / "shipped" / "__init__.py", installed)
    path = [str(installed.parent), *sys.path]
    self.enter_context(mock.patch.object(sys, "path", path))
    schema = importlib.import_module("as_installed.datasets.schema")
    self.assertEqual(
      pathlib.Path(schema.__file__), installed / "datasets" / "schema.py"
    )

  def test_flagfiles_are_found_from_anywhere(self):
    name = "launch/flags/no_such_place/../smoke.flags"
    for dashes in ("-", "--"):
      self.assertEqual(
        launch._shipped(f"{dashes}flagfile={name}"),
        f"{dashes}flagfile={self.shipped}/{name}",
      )

  def test_other_arguments_stay(self):
    here = ROOT / "launch" / "flags" / "smoke.flags"
    for argument in ("--workdir=launch/x", f"--flagfile={here}", "launch/x"):
      self.assertEqual(launch._shipped(argument), argument)


class AuditTest(parameterized.TestCase):
  @parameterized.parameters(
    ("", 0, "nothing looked at"),
    (
      [{"name": "a", "skip_reason": "not found"}],
      0,
      "0 of 1 packages looked up",
    ),
    ([{"name": "a", "version": "1", "vulns": []}], 0, "1 of 1 packages"),
    (
      [
        {
          "name": "a",
          "version": "1",
          "vulns": [{"id": "CVE-7", "fix_versions": ["2"]}],
        },
        {"name": "b", "version": "1", "vulns": []},
      ],
      1,
      "a 1 has CVE-7, fixed in 2\n",
    ),
  )
  def test_findings_alone_fail(self, found, status, text):
    report = json.dumps({"dependencies": found}) if found else ""
    got = _audit().verdict(report)
    self.assertEqual(got[0], status)
    self.assertIn(text, got[1])


if __name__ == "__main__":
  absltest.main()
