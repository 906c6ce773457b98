"""Each check of prepared data names the row, what is wrong and what is due."""

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.data import source
from hsrl_jax.errors import InputError

NUM_ITEMS = 9


def _rows():
  return {
    "user_id": np.asarray([11, 22, 33, 44]),
    "profile": np.zeros((4, 2), "f"),
    "history": np.asarray([[0, 0, 9], [0, 1, 1], [7, 8, 9], [0, 0, 0]]),
    "exposed": np.asarray([[1, 2, 9], [3, 4, 5], [1, 2, 9], [9, 8, 7]]),
    "response": np.asarray([[0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]], "f"),
  }


class CheckItemsTest(parameterized.TestCase):
  def test_good_items_pass(self):
    source.check_items(np.arange(1, 4), np.zeros((3, 2)), "here")

  @parameterized.parameters(
    ([0, 1, 2], 0, 0, 1),
    ([1, 3, 2], 1, 3, 2),
    ([1, 2, 2], 2, 2, 3),
  )
  def test_ids_are_1_to_n_in_order(self, ids, row, found, expected):
    with self.assertRaisesRegex(
      InputError, rf"here: item row {row} has item_id {found}; .*{expected}:"
    ):
      source.check_items(np.asarray(ids), np.zeros((3, 2)), "here")

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_features_are_finite(self, value):
    feature = np.zeros((4, 3))
    feature[2, 1] = feature[3, 0] = value
    with self.assertRaisesRegex(
      InputError,
      rf"here: feature 1 of item 3 is {value} \(2 such .*expected finite",
    ):
      source.check_items(np.arange(1, 5), feature, "here")

  def test_features_are_there(self):
    with self.assertRaisesRegex(InputError, "here: items have no features;"):
      source.check_items(np.arange(1, 5), np.zeros((4, 0)), "here")


class CheckSessionsTest(parameterized.TestCase):
  def test_good_sessions_pass(self):
    source.check_sessions(_rows(), NUM_ITEMS, "here")

  def test_a_history_may_be_empty(self):
    rows = _rows()
    rows["history"][2] = 0
    source.check_sessions(rows, NUM_ITEMS, "here")

  @parameterized.parameters(
    ("history", [0, 0, 10], "an unknown item", "ids 1..9, and 0"),
    ("history", [0, -1, 3], "an unknown item", "ids 1..9, and 0"),
    ("history", [4, 0, 5], "a gap", "zeros on the left"),
    ("history", [4, 5, 0], "a gap", "zeros on the left"),
    ("exposed", [1, 2, 10], "a slate with an unknown item", "ids 1..9"),
    ("exposed", [0, 1, 2], "a slate with an unknown item", "ids 1..9"),
    ("exposed", [4, 5, 4], "shows an item twice", "distinct"),
    ("response", [0, 1, 0.5], "an odd response", "0 or 1"),
    ("response", [0, 1, -1], "an odd response", "0 or 1"),
    ("response", [0, 1, np.nan], "an odd response", "0 or 1"),
    ("profile", [0.0, np.nan], "a profile that is not finite", "finite"),
    ("profile", [np.inf, 0.0], "a profile that is not finite", "finite"),
  )
  def test_each_fault_is_named(self, column, value, what, expected):
    rows = _rows()
    rows[column][1] = rows[column][3] = value
    with self.assertRaisesRegex(
      InputError,
      rf"here: session row 1 \(user 22\) has .*{what} \(2 such rows\); "
      rf"expected .*{expected}",
    ):
      source.check_sessions(rows, NUM_ITEMS, "here")


if __name__ == "__main__":
  absltest.main()
