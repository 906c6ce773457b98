"""What an export says of the training that its policy had."""

import numpy as np
from absl.testing import absltest

from hsrl_jax.stages import export
from hsrl_jax.types import Sessions
from tests import toy


class RangesTest(absltest.TestCase):
  def test_of_profiles_and_rewards(self):
    logs = Sessions(
      user_id=np.int32([1, 2]),
      profile=np.float32([[0.5, -2.0], [1.0, 1.5]]),
      history=np.ones((2, 1), np.int32),
      exposed=np.ones((2, toy.SLATE), np.int32),
      response=np.zeros((2, toy.SLATE), np.float32),
    )
    # The toy's rewards are at most 1; likes of a slate count as one too.
    ranges = export._ranges(logs, toy.env())
    self.assertEqual(ranges["profile"], (-2.0, 1.5))
    low, high = ranges["reward"]
    self.assertBetween(low, -1.0, 0.0)
    self.assertEqual(high, toy.SLATE)
    logged = np.float32([np.nan, -30.0, 70.0])
    ranges = export._ranges(logs._replace(reward=logged), toy.env())
    self.assertEqual(ranges["reward"], (-30.0, 70.0))
    none = logs._replace(profile=np.zeros((2, 0), np.float32))
    self.assertEqual(export._ranges(none, toy.env())["profile"], (0.0, 0.0))


if __name__ == "__main__":
  absltest.main()
