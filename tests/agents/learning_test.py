"""Agents with a latent action learn; what has not learned does not pass."""

from absl.testing import absltest, parameterized

from tests import toy

FLOOR = 0.6  # 0: random, 1: greedy oracle; a constant slate is below 0.5.


class LearningTest(parameterized.TestCase):
  @parameterized.parameters("ddpg", "td3", "wolpertinger", "hac")
  def test_learns(self, name):
    untrained, trained = toy.learning(
      name, iterations=200, curve_every=200, save_every=200
    )
    self.assertLess(untrained, FLOOR)
    self.assertGreater(trained, FLOOR)


if __name__ == "__main__":
  absltest.main()
