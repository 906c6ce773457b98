"""Sequences and their packing, against plain Python."""

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.data import sequences
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
    found = sequences.from_lists([[1, 2, 3], [], [2]])
    np.testing.assert_array_equal(
      found.items, [[1, 2, 3], [0, 0, 0], [0, 0, 2]]
    )
    np.testing.assert_array_equal(found.lengths, [3, 0, 1])
    self.assertEqual(found.user_id.tolist(), [0, 1, 2])

  def test_what_users_of_prepared_sessions_liked(self):
    sessions = Sessions(
      np.asarray([4, 2, 4, 9]),
      np.zeros((4, 0), "f"),
      np.asarray([[0, 6], [0, 0], [1, 3], [0, 0]]),
      np.asarray([[1, 2, 3], [4, 5, 6], [7, 2, 5], [1, 2, 3]]),
      np.asarray([[1, 0, 1], [0, 1, 0], [0, 1, 0], [0, 0, 0]], "f"),
    )
    made = sequences.from_sessions(sessions)
    self.assertEqual(made.user_id.tolist(), [2, 4, 9])
    # User 4: the history of the first row, then the likes of both rows; what
    # the second row's history repeats counts once.
    self.assertEqual(
      [_strip(row) for row in made.items], [[5], [6, 1, 3, 2], []]
    )

  @parameterized.parameters(5, 40)
  def test_packed_rows_hold_each_sequence_once(self, length):
    lists = _lists()
    packed = sequences.pack(sequences.from_lists(lists), length)
    expected = []
    for row in lists:
      stop = len(row) - 1
      while stop > 0:
        start = max(stop - length, 0)
        expected.append((row[start:stop], row[start + 1 : stop + 1]))
        stop = start
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
