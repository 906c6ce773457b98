"""Sequences, their split and their packing, against plain Python."""

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.data import sequences, source
from hsrl_jax.errors import InputError
from hsrl_jax.types import Sessions


def _lists(seed=0, users=40, longest=17, num_items=30):
  rng = np.random.default_rng(seed)
  return [
    rng.integers(1, num_items + 1, rng.integers(1, longest)).tolist()
    for _ in range(users)
  ]


def _strip(row):
  return [int(i) for i in row if i]


class SequencesTest(parameterized.TestCase):
  def test_lists_are_right_aligned(self):
    found = sequences.from_lists({"x": [1, 2, 3], "y": [], "z": [2]}, 3)
    np.testing.assert_array_equal(
      found.items, [[1, 2, 3], [0, 0, 0], [0, 0, 2]]
    )
    np.testing.assert_array_equal(found.lengths, [3, 0, 1])
    self.assertEqual(found.user_id.tolist(), ["x", "y", "z"])

  @parameterized.parameters(0, 4, -1, 2.5, "2")
  def test_an_unknown_item_is_named(self, item):
    lists = {"x": [1], "y": [2, item, 3], "z": [item]}
    with self.assertRaisesRegex(
      InputError, rf"file: user y has item {item!r} \(2 such .*ids 1\.\.3"
    ):
      sequences.from_lists(lists, 3, "file")

  def test_no_user(self):
    with self.assertRaisesRegex(InputError, "there is no user"):
      sequences.from_lists([], 3)

  def test_prepared_sessions(self):
    def rows(user, history, exposed, response):
      return Sessions(
        np.asarray(user),
        np.zeros((len(user), 0), "f"),
        np.asarray(history),
        np.asarray(exposed),
        np.asarray(response, "f"),
      )

    dataset = source.Dataset(
      source.Items(np.zeros((8, 1), "f"), [""] * 8, [""] * 8, [""] * 8),
      {
        "train": rows(
          [4, 2, 4],
          [[0, 6], [0, 0], [1, 3]],
          [[1, 2, 3], [4, 5, 6], [7, 2, 5]],
          [[1, 0, 1], [0, 0, 0], [0, 1, 0]],
        ),
        "val": rows([2], [[0, 0]], [[3, 1, 2]], [[0, 1, 1]]),
        "test": rows([4], [[3, 2]], [[7, 5, 4]], [[1, 0, 0]]),
      },
    )
    found = sequences.from_dataset(dataset)
    self.assertEqual(found.user_id.tolist(), [2, 4])
    self.assertEqual(
      [_strip(row) for row in found.items], [[1, 2], [6, 1, 3, 2, 7]]
    )

  def test_leave_one_out(self):
    lists = _lists()
    split = sequences.leave_one_out(sequences.from_lists(lists, 30))
    held = [u for u, row in enumerate(lists) if len(row) >= 3]
    self.assertBetween(len(held), 1, len(lists) - 1)
    for u, row in enumerate(lists):
      expected = row[:-2] if u in held else row
      self.assertEqual(_strip(split.train.items[u]), expected)
      self.assertEqual(split.train.lengths[u], len(expected))
    for part, last in ((split.validation, 2), (split.test, 1)):
      np.testing.assert_array_equal(part.user, held)
      for u, history, target in zip(*part, strict=True):
        self.assertEqual(_strip(history), lists[u][:-last])
        self.assertEqual(_strip(history[-1:]), lists[u][-last - 1 :][:1])
        self.assertEqual(target, lists[u][-last])

  def test_short_sequences_only(self):
    split = sequences.leave_one_out(sequences.from_lists([[1, 2], [3]], 3))
    self.assertEqual([_strip(x) for x in split.train.items], [[1, 2], [3]])
    self.assertEmpty(split.test.target)
    self.assertEmpty(split.validation.target)

  @parameterized.parameters((5, True), (5, False), (40, True))
  def test_packed_rows_hold_each_sequence_once(self, length, windows):
    lists = _lists()
    packed = sequences.pack(sequences.from_lists(lists, 30), length, windows)
    expected = []
    for row in lists:
      stop = len(row) - 1
      while stop > 0:
        start = max(stop - length, 0)
        expected.append((row[start:stop], row[start + 1 : stop + 1]))
        stop = start if windows else 0
    found = []
    for item, target, position, segment in zip(*packed, strict=True):
      np.testing.assert_array_equal(segment > 0, item > 0)
      for number in range(1, segment.max() + 1):
        at = segment == number
        np.testing.assert_array_equal(np.diff(np.flatnonzero(at)), 1)
        size = int(at.sum())
        np.testing.assert_array_equal(
          position[at], np.arange(length - size, length)
        )
        found.append((item[at].tolist(), target[at].tolist()))
    self.assertCountEqual(found, expected)
    used = sum(len(x) for x, _ in expected)
    self.assertLess(len(packed.item) * length, 1.25 * used + length)


if __name__ == "__main__":
  absltest.main()
