"""What agents see of a session, against a session written down by hand."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.sim import observed


class ShownTest(absltest.TestCase):
  def _after(self, *steps, size=5):
    seen = observed.start(jnp.zeros(1), jnp.zeros(3, jnp.int32), size)
    for slate, response in steps:
      seen = observed.after(
        seen, jnp.asarray(slate, jnp.int32), jnp.asarray(response, "f")
      )
    return seen

  def test_a_session_by_hand(self):
    seen = self._after(([7, 8], [1, 0]), ([9, 0], [0, 1]), ([4, 7], [1, 1]))
    np.testing.assert_array_equal(seen.history, [7, 4, 7])
    shown = seen.shown
    # The first item has dropped out; the empty place is of nothing.
    np.testing.assert_array_equal(shown.items, [8, 9, 0, 4, 7])
    np.testing.assert_array_equal(shown.response, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(shown.position, [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(shown.ago, [3, 2, 0, 1, 1])
    self.assertEqual(shown.step, 3)

  def test_padding_does_not_age(self):
    shown = self._after(([7, 8], [1, 0])).shown
    np.testing.assert_array_equal(shown.ago, [0, 0, 0, 1, 1])

  def test_likes_alone(self):
    seen = self._after(([7, 8], [1, 0]), size=0)
    self.assertIsNone(seen.shown)
    np.testing.assert_array_equal(seen.history, [0, 0, 7])


if __name__ == "__main__":
  absltest.main()
