"""Builders that read a folder of the user's: what is asked, told, redone."""

import contextlib
import os

from absl.testing import absltest, parameterized

from hsrl_jax import checked
from hsrl_jax import config as config_lib
from hsrl_jax.data import manifest, prepare
from hsrl_jax.errors import InputError
from tests import folders

# Items are the words of a file, sessions those that are a number.
BUILDER = """
import csv, pathlib
import numpy as np
import tensorflow_datasets as tfds
from hsrl_jax.errors import InputError

class Builder(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = "numbers.txt"
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name) for name in ("sessions", "items")
  ]

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict({"x": np.int32})
    )

  def _split_generators(self, dl_manager):
    lines = (dl_manager.manual_dir / "numbers.txt").read_text().split()
    bad = [(i, x) for i, x in enumerate(lines, 1) if not x.isdigit()]
    if self.builder_config.name == "sessions":
      if len(bad) == len(lines):
        raise InputError("numbers.txt: no number")
      path = pathlib.Path(self.data_dir) / "malformed.csv"
      with path.open("w", newline="") as file:
        rows = [("numbers.txt", i, f"{x}, no number") for i, x in bad]
        csv.writer(file).writerows([("file", "row", "why"), *rows])
      lines = [x for x in lines if x.isdigit()]
    return {"train": self._generate_examples(lines)}

  def _generate_examples(self, lines):
    yield from ((i, {"x": len(x)}) for i, x in enumerate(lines))
"""


class RawDataTest(folders.FolderTest):
  def setUp(self):
    super().setUp()
    self.builder = self.folder / "numbers"
    self.raw = self.folder / "raw"
    self.data = self.folder / "data"
    for path in (self.builder, self.raw):
      path.mkdir()
    (self.builder / "numbers_dataset_builder.py").write_text(BUILDER)

  def _prepare(self, lines):
    (self.raw / "numbers.txt").write_text("\n".join(lines))
    return prepare.prepare(str(self.builder), self.data, str(self.raw))

  def _counts(self):
    """Rows of each config."""
    source = prepare.tfds.builder_from_directory
    return {
      config: len(
        source(self.data / "numbers" / config / "1.0.0").as_data_source("train")
      )
      for config in prepare.CONFIGS
    }

  def test_what_others_have_there_stays(self):
    own = self.data / "numbers" / "items" / "letter"
    own.parent.mkdir(parents=True)
    own.write_text("kept")
    with self.assertRaisesRegex(InputError, "no prepared data of hsrl_jax"):
      self._prepare(["1"])
    self.assertEqual(own.read_text(), "kept")
    self.assertLen(list(self.data.rglob("*")), 3)

  @parameterized.parameters(
    (None, "--raw_data_dir is missing; expected a folder with numbers.txt"),
    ("nowhere", "nowhere is no folder; expected a folder with numbers.txt"),
    ("raw", "raw is empty; expected a folder with numbers.txt"),
    ("a_file", "a_file is no folder"),
  )
  def test_a_folder_is_asked_for(self, name, message):
    (self.folder / "a_file").write_text("1")
    raw = name and str(self.folder / name)
    with self.assertRaisesRegex(InputError, message):
      prepare.prepare(str(self.builder), self.data, raw)
    self.assertFalse(self.data.exists())

  def test_a_folder_that_nobody_reads(self):
    with self.assertRaisesRegex(
      InputError, "toy reads none; expected no --raw"
    ):
      prepare.prepare("toy", self.data, str(self.raw))

  def test_a_package_that_is_missing_is_named(self):
    path = self.builder / "numbers_dataset_builder.py"
    path.write_text("import no_such_package\n" + BUILDER)
    with self.assertRaisesRegex(
      InputError, "builder.py needs the package no_such_package, which is not"
    ):
      self._prepare(["1"])
    self.assertFalse(self.data.exists())

  def test_rows_left_out_are_told(self):
    listed = self._prepare(["1", "two", "3", "four"])
    ((path, rows),) = listed.items()
    self.assertEqual(
      rows,
      [
        ("numbers.txt", "2", "two, no number"),
        ("numbers.txt", "4", "four, no number"),
      ],
    )
    self.assertEqual(
      path.read_text().splitlines()[1], 'numbers.txt,2,"two, no number"'
    )
    manifest.verify(self.data)
    self.assertEqual(self._counts(), {"items": 4, "sessions": 2})
    path.write_text("")
    with self.assertRaisesRegex(InputError, "malformed.csv has 0 bytes"):
      manifest.verify(self.data)

  @parameterized.parameters("", '{"a": [1', "[1, 2]")
  def test_a_damaged_manifest(self, text):
    self._prepare(["1"])
    (self.data / manifest.MANIFEST).write_text(text)
    with self.assertRaisesRegex(InputError, "manifest.json cannot be read .*d"):
      manifest.verify(self.data)

  def test_a_second_attempt_reads_the_source_anew(self):
    with self.assertRaisesRegex(InputError, "no number"):
      self._prepare(["one", "two"])
    # Items were complete, made of a file that has changed since.
    self.assertTrue((self.data / "numbers" / "items").exists())
    self._prepare(["1", "2", "3"])
    self.assertEqual(self._counts(), {"items": 3, "sessions": 3})
    manifest.verify(self.data)

  def test_an_empty_split(self):
    with self.assertRaisesRegex(InputError, '"train" of items has no row'):
      self._prepare([])

  def test_a_relative_folder(self):
    (self.raw / "numbers.txt").write_text("1 2")
    with contextlib.chdir(self.folder):
      prepare.prepare(str(self.builder), self.data, os.path.relpath(self.raw))
    self.assertEqual(self._counts(), {"items": 2, "sessions": 2})

  def test_where_the_source_lies_decides_nothing(self):
    here, there, other = (
      config_lib.Config(data=config_lib.DataConfig(name, raw))
      for name, raw in (("a", None), ("a", "/there"), ("b", None))
    )
    self.assertEqual(here, there)
    names = [checked.fingerprint(x, x.data) for x in (here, there, other)]
    self.assertEqual(names[0], names[1])
    self.assertNotEqual(names[0], names[2])

  def test_what_vectors_are_made_of_decides(self):
    one = config_lib.DataConfig()
    other = config_lib.DataConfig(item_vectors="logs")
    names = {checked.fingerprint(x) for x in (one, other)}
    self.assertLen(names, 2)


if __name__ == "__main__":
  absltest.main()
