"""A dataset of one file through `prepare`, and what builders share."""

import contextlib
import tempfile
from unittest import mock

import chex
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.data import prepare, source
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets import movielens, schema
from tests import folders

# Three items that a file names; two slates of two items in each split.
BUILDER = '''
"""Names from a file, with a slate at each full hour."""

import tensorflow_datasets as tfds

from hsrl_jax.shipped.datasets import schema


class Builder(schema.SlateBuilder):
  VERSION = tfds.core.Version("2.1.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = "names.txt"

  def read_items(self, folder):
    names = (folder / "names.txt").read_text().split()
    return {
      "feature": [[i / 4, FEATURE] for i in range(len(names))],
      "external_id": names,
      "title": [name.title() for name in names],
      "genres": [""] * len(names),
    }

  def read_sessions(self, folder):
    times = range(6)
    return {
      "user_id": [7 + t % 2 for t in times],
      "profile": [[t / 8, 1, -1] for t in times],
      "history": [schema.left_padded([3, 1][:t], 4) for t in times],
      "exposed": [[1 + t % 3, 1 + (t + 1) % 3] for t in times],
      "response": [[t % 2, 1] for t in times],
      "timestamp": [3600 * t for t in times],
      "split": ["train", "val", "test"] * 2,
    }
'''


class OneFileTest(folders.DataTest):
  """What CONTRIBUTING says: a new dataset is one file."""

  def setUp(self):
    super().setUp()
    (self.raw / "names.txt").write_text("ann bob\ncyd\n")

  def _prepare(self, feature="0.5"):
    own = self.folder / "hours"
    own.mkdir()
    text = BUILDER.replace("FEATURE", feature)
    (own / "hours_dataset_builder.py").write_text(text)
    return self.prepared(str(own))

  def test_rows_come_back(self):
    items, splits = self._prepare()
    self.assertEqual(items.external_ids, ["", "ann", "bob", "cyd"])
    self.assertEqual(items.titles, ["", "Ann", "Bob", "Cyd"])
    np.testing.assert_array_equal(
      items.features, [[0, 0], [0, 0.5], [0.25, 0.5], [0.5, 0.5]]
    )
    train, val, test = splits["train"], splits["val"], splits["test"]
    np.testing.assert_array_equal(train.user_id, [7, 8])
    np.testing.assert_array_equal(train.profile, [[0, 1, -1], [0.375, 1, -1]])
    np.testing.assert_array_equal(train.history, [[0] * 4, [0, 0, 3, 1]])
    np.testing.assert_array_equal(val.history, [[0, 0, 0, 3], [0, 0, 3, 1]])
    np.testing.assert_array_equal(val.exposed, [[2, 3], [2, 3]])
    np.testing.assert_array_equal(test.response, [[0, 1], [1, 1]])
    dtypes = [x.dtype for x in train[:5]]
    self.assertEqual(dtypes, ["int32", "float32", "int32", "int32", "float32"])

  def test_what_is_derived_and_described(self):
    self._prepare()
    folder = self.folder / "data" / "hours" / "sessions" / "2.1.0"
    builder = prepare.tfds.builder_from_directory(folder)
    self.assertIn("a slate at each full hour", builder.info.description)
    (block,) = builder.as_data_source("val")
    np.testing.assert_array_equal(block["timestamp"], [3600, 14400])

  def test_blocks_of_any_size_and_single_rows_are_read_alike(self):
    def rows(builder, columns, own):
      del builder
      for row in own:
        yield int(row), {name: column[row] for name, column in columns.items()}

    whole = self._prepare()
    small = (mock.patch.object(schema, "BLOCK", 1),)
    single = (  # As of a builder that is no SlateBuilder.
      mock.patch.object(schema, "_block", lambda feature: feature),
      mock.patch.object(schema.SlateBuilder, "_generate_examples", rows),
    )
    for number, changes in enumerate((small, single)):
      data = self.folder / f"data_{number}"
      with contextlib.ExitStack() as changed:
        for change in changes:
          changed.enter_context(change)
        prepare.prepare(str(self.folder / "hours"), data, str(self.raw))
      chex.assert_trees_all_equal(source.load(data), whole)

  def test_nothing_is_left_beside_the_data(self):
    temporary = self.folder / "temporary"
    temporary.mkdir()
    with mock.patch.object(tempfile, "tempdir", str(temporary)):
      self._prepare()
    self.assertEmpty(list(temporary.iterdir()))

  def test_its_rows_are_checked(self):
    with self.assertRaisesRegex(InputError, "feature 1 of item 1 is nan"):
      self._prepare("float('nan')")


class SharedTest(parameterized.TestCase):
  @parameterized.parameters(
    ([], [0, 0, 0]), ([5, 6], [0, 5, 6]), ([1, 2, 3, 4], [2, 3, 4])
  )
  def test_left_padded_by_hand(self, items, row):
    np.testing.assert_array_equal(schema.left_padded(items, 3), row)

  def test_a_column_that_does_not_vary_is_zero(self):
    block = np.array([[2.0, 1.0], [2.0, 3.0], [2.0, 5.0], [2.0, 7.0]])
    np.testing.assert_allclose(
      movielens.scaled(block, each_column=True),
      np.stack([np.zeros(4), [-3, -1, 1, 3] / np.sqrt(5)], 1),
    )
    # The mean square of the block is 20 / 8.
    np.testing.assert_allclose(
      movielens.scaled(block)[:, 1], [-3, -1, 1, 3] / np.sqrt(2.5)
    )
    np.testing.assert_array_equal(movielens.scaled(np.ones((3, 2))), 0)


if __name__ == "__main__":
  absltest.main()
