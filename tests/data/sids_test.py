"""SIDs that are brought: formats, faults and collisions."""

import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data import sids
from hsrl_jax.errors import InputError
from hsrl_jax.sid import index as sid_index
from tests import folders

NAMES = ["b", "a", "7"]
TOKENS = [[0, 2], [1, 0], [0, 9]]


def _read(path, names):
  return sids.of_items(sids.read_file(path), names)


class SidsTest(folders.FolderTest):
  def _json(self, value) -> pathlib.Path:
    path = self.folder / "sids.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path

  def _refused(self, path, what, names=NAMES):
    with self.assertRaisesRegex(InputError, what) as caught:
      _read(path, names)
    self.assertIn(str(path), str(caught.exception))
    self.assertNotIn("\n", str(caught.exception))

  def test_all_formats_give_the_same(self):
    rows = dict(zip(NAMES, TOKENS, strict=True)) | {"other": [5, 5]}
    paths = [self._json(rows)]
    paths.append(self.folder / "sids.npz")
    np.savez(paths[1], item_id=list(rows), tokens=list(rows.values()))
    paths.append(self.folder / "sids.csv")
    lines = [f"{k},{a},{b}" for k, (a, b) in rows.items()]
    paths[2].write_text("\n".join(["item,one,two", *lines]) + "\n")
    for path in paths:
      brought = _read(path, NAMES)
      np.testing.assert_array_equal(brought.tokens, TOKENS)
      self.assertEqual(brought.vocab_size, 10)
      self.assertEmpty(brought.moved)
      np.testing.assert_array_equal(
        sid_index.sid_of(brought.index, np.arange(1, 4)), TOKENS
      )

  def test_ids_may_be_numbers(self):
    path = self._json({"1": [0], "0": [1]})
    np.testing.assert_array_equal(_read(path, [0, 1]).tokens, [[1], [0]])

  @parameterized.parameters(
    ({"b": [0, 1], "7": [1, 1]}, "item a has no SID .1 such items of 3"),
    ({"b": [0, 1], "a": [], "7": [1, 1]}, "item a has no tokens"),
    ({"b": [0, 1], "a": [1], "7": [1, 1]}, "item a has 1 tokens .*expected 2"),
    ({"b": [0, 1], "a": [1, -1], "7": [1, 1]}, "item a has the token -1"),
    ({"b": [0, 1], "a": [1, 0.5], "7": [1, 1]}, "item a has the token 0.5"),
    ({"b": [0, 1], "a": [1, True], "7": [1, 1]}, "item a has the token True"),
    ({"b": [0, 1], "a": [1, "x"], "7": [1, 1]}, "item a has the token 'x'"),
    ({"b": [0, 1], "a": [1, ""], "7": [1, 1]}, "item a has an empty token"),
    ({"b": [0, 1], "a": [1, 1 << 20], "7": [1, 1]}, "item a has the .*1048576"),
    ({"b": [0, 1], "a": 3, "7": [1, 1]}, "item a has 3; expected a list"),
    ([[0, 1]], "cannot be read .a list at the top"),
    ("{", "cannot be read"),
    ('{"a": [0, 1], "a": [1, 1]}', "item a is there 2 times"),
  )
  def test_faults_of_json_are_named(self, value, what):
    self._refused(self._json(value), what)

  def test_faults_of_other_files_are_named(self):
    self._refused(self.folder / "none.json", "is no file")
    text = self.folder / "sids.txt"
    text.write_text("")
    self._refused(text, "expected .json, .npz, .csv")
    damaged = self.folder / "sids.npz"
    damaged.write_bytes(b"PK\x03\x04 and no more")
    self._refused(damaged, "cannot be read")
    np.savez(damaged, item_id=NAMES, tokens=np.ones((3, 2)))
    self._refused(damaged, "tokens are float64")
    np.savez(damaged, item_id=NAMES[:2], tokens=np.ones((3, 2), int))
    self._refused(damaged, "item_id .2., 3 tokens")
    np.savez(damaged, tokens=np.ones((3, 2), int))
    self._refused(damaged, "item_id")
    table = self.folder / "sids.csv"
    table.write_text("item,one,two\nb,0,1\na,1,\n7,1,1\n")
    self._refused(table, "item a has an empty token")
    table.write_text("item,one,two\nb,0,1\nb,1,1\n")
    self._refused(table, "item b is there 2 times")

  def test_more_items_than_sids(self):
    path = self._json({"b": [0, 1], "a": [0, 1], "7": [0, 1], "x": [0, 1]})
    _read(path, ["b", "a", "7", "x"])
    path = self._json({"b": [0], "a": [1], "7": [1]})
    self._refused(path, "2 SIDs for 3 items")

  def test_the_sizes_are_those_of_the_file(self):
    rows = {"b": [0, 2], "a": [0, 2], "other": [7, 3], "odd": [99], "no": ["x"]}
    file = sids.read_file(self._json(rows))
    self.assertEqual((file.levels, file.vocab_size), (2, 8))
    brought = sids.of_items(file, ["b", "a"])
    self.assertEqual(brought.vocab_size, 8)
    np.testing.assert_array_equal(brought.given, [[0, 2], [0, 2]])
    np.testing.assert_array_equal(brought.moved, [2])
    self.assertEqual(brought.origin["moved"], 1)
    config = sids.sized(QuantizerConfig(batch_size=7), file)
    self.assertEqual(
      config, QuantizerConfig(levels=2, vocab_size=8, batch_size=7)
    )
    long = sids.read_file(self._json({"a": [1] * 70}))
    with self.assertRaisesRegex(InputError, "sids.json: levels is 70; exp"):
      sids.sized(config, long)
    self._refused(self._json({"a": [], "b": []}), "no item has a token")

  def test_a_file_that_is_gone(self):
    path = self._json({"b": [0, 1], "a": [1, 1]})
    file = sids.read_file(path)._replace(rows={})
    self.assertLen(sids.of_items(file, ["a"]).tokens, 1)
    path.unlink()
    with self.assertRaisesRegex(InputError, "sids.json is no file"):
      sids.of_items(file, ["a"])
    with self.assertRaisesRegex(InputError, "sids.json is no file"):
      sids.taken_file(str(path), self.folder)


class CodebooksTest(absltest.TestCase):
  def test_least_squares_level_by_level(self):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 3)).astype(np.float32) + 5
    tokens = rng.integers(0, [4, 6], (50, 2))
    made = sids.codebooks(rows, tokens, 7)
    self.assertEqual(made.shape, (2, 7, 3))
    rest = np.float64(rows)
    for level in range(2):
      design = np.eye(7)[tokens[:, level]]
      codes = np.linalg.lstsq(design, rest, rcond=None)[0]
      np.testing.assert_allclose(made[level], codes, atol=1e-5)
      rest = rest - design @ codes
    np.testing.assert_array_equal(made[0, 4:], 0)
    np.testing.assert_array_equal(made[1, 6], 0)

  def test_by_hand(self):
    made = sids.codebooks(
      np.array([[1], [3], [8]], np.float32),
      np.array([[0, 0], [0, 1], [1, 1]]),
      2,
    )
    # The means 2 and 8 leave -1, 1 and 0.
    np.testing.assert_allclose(made[..., 0], [[2, 8], [-1, 0.5]])


class UniqueTest(absltest.TestCase):
  def test_only_collisions_move_and_stay_close(self):
    tokens = np.asarray([[0, 4], [0, 5], [0, 4], [0, 4], [1, 4], [9, 9]])
    brought = sids.unique_sids(tokens)
    np.testing.assert_array_equal(brought.moved, [3, 4])
    kept = [0, 1, 4, 5]
    np.testing.assert_array_equal(brought.tokens[kept], tokens[kept])
    # 3 is free beside 4, and 5 is taken; the other goes to 2 or 6.
    np.testing.assert_array_equal(brought.tokens[2:4, 0], 0)
    self.assertIn(set(brought.tokens[2:4, 1].tolist()), ({3, 2}, {3, 6}))

  def test_a_full_prefix_overflows_into_another(self):
    tokens = np.asarray([[0, 0], [0, 1], [0, 2], [0, 1], [2, 2]])
    brought = sids.unique_sids(tokens)
    np.testing.assert_array_equal(brought.moved, [4])
    self.assertEqual(brought.tokens[3].tolist(), [1, 1])

  def test_many_collisions(self):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, [3, 5, 7], (300, 3))
    brought, again = (sids.unique_sids(tokens) for _ in range(2))
    np.testing.assert_array_equal(brought.tokens, again.tokens)
    self.assertLen(np.unique(brought.tokens, axis=0), 300)
    self.assertLess(brought.tokens.max(), brought.vocab_size)
    self.assertEqual(brought.vocab_size, 7)
    distinct = len(np.unique(tokens, axis=0))
    self.assertLen(brought.moved, 300 - distinct)


if __name__ == "__main__":
  absltest.main()
