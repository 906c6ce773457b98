"""Agents learn; what has not learned does not pass."""

import pytest
from absl.testing import absltest, parameterized

from tests import toy

FLOOR = 0.6  # 0: random, 1: greedy oracle; a constant slate is below 0.5.


@pytest.mark.slow  # A loop is compiled for each; HSRL's is in loop_test.
class LearningTest(parameterized.TestCase):
  @parameterized.parameters(
    ("a2c", {}),
    ("pgra", {"actor_weight": 0.1}),
    ("ddpg", {}),
    ("td3", {}),
    ("wolpertinger", {}),
    ("hac", {}),
    ("planner", {}),
  )
  def test_learns(self, name, values):
    untrained, trained = toy.learning(name, **values)
    self.assertLess(untrained, FLOOR)
    self.assertGreater(trained, FLOOR)

  def test_learns_from_logs(self):
    untrained, trained = toy.learning("sasrec", data=toy.logs())
    self.assertLess(untrained, 0.5)
    self.assertGreater(trained, 0.8)


if __name__ == "__main__":
  absltest.main()
