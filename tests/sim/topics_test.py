"""Topics of items, by hand."""

import numpy as np
from absl.testing import absltest

from hsrl_jax.sim import topics


class TopicsTest(absltest.TestCase):
  def test_the_rarest_category_by_hand(self):
    found = topics.of_categories(
      [
        "",  # Padding.
        "Action|Comedy",
        "Comedy|Drama",
        "Comedy",
        "Action|Drama",  # Both twice: the first by name.
        "",
        "(no genres listed)",
        "War",
        "Drama|War|War",  # A category counts once for an item.
        "Comedy|Western|Thriller",  # Once each: the first by name.
      ]
    )
    # Action 2, Comedy 4, Drama 3, Thriller 1, War 2, Western 1.
    self.assertEqual(
      found.names, ("Action", "Comedy", "Drama", "Thriller", "War")
    )
    self.assertEqual(found.of_items.dtype, np.int32)
    np.testing.assert_array_equal(
      found.of_items, [0, 1, 3, 2, 1, 0, 0, 5, 5, 4]
    )
    # Action, Comedy, Drama, Thriller, War, Western.
    np.testing.assert_array_equal(
      found.categories[[0, 1, 5, 8, 9]],
      [[0] * 6, [1, 1, 0, 0, 0, 0], [0] * 6, [0, 0, 1, 0, 1, 0]]
      + [[0, 1, 0, 1, 0, 1]],
    )

  def test_no_categories(self):
    found = topics.of_categories(["", "", ""])
    self.assertEqual(found.names, ())
    np.testing.assert_array_equal(found.of_items, [0, 0, 0])


if __name__ == "__main__":
  absltest.main()
