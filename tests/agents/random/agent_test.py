import numpy as np
from absl.testing import absltest

from hsrl_jax.training import evaluate, policy
from tests.agents import checks
from tests.training import toy


class RandomTest(absltest.TestCase):
  def test_uniform_over_what_may_be_shown(self):
    made = checks.made("random")
    slates = np.asarray(checks.sampled_slates(*made, count=20_000).slate)
    counts = np.bincount(slates.ravel(), minlength=toy.ITEMS + 1)
    expected = slates.size / (toy.ITEMS - 2)
    np.testing.assert_array_equal(counts[[0, 5, 12]], 0)
    shown = np.delete(counts, [0, 5, 12])
    # Four standard deviations and some.
    np.testing.assert_allclose(shown, expected, atol=4.5 * expected**0.5)

  def test_draws_in_evaluation_too(self):
    agent, _, catalogue, _ = checks.made("random")
    sessions = evaluate.simulate(
      policy.greedy(agent),
      toy.env(),
      ({}, catalogue),
      toy.inputs().env_params,
      checks.KEY,
      episodes=24,
    )
    self.assertGreater(len(np.unique(sessions.slates)), toy.ITEMS / 2)


if __name__ == "__main__":
  absltest.main()
