"""Random draws uniformly; popularity shows everybody the same."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.evaluation import simulate
from hsrl_jax.stages import policy
from tests import toy
from tests.agents import checks


class RandomTest(absltest.TestCase):
  def test_uniform_over_what_may_be_shown(self):
    made = checks.made("random")
    slates = np.asarray(checks.sample(made, []).slate)
    counts = np.bincount(slates.ravel(), minlength=toy.ITEMS + 1)
    expected = slates.size / toy.ITEMS
    self.assertEqual(counts[0], 0)
    # Four standard deviations and some.
    np.testing.assert_allclose(counts[1:], expected, atol=4.5 * expected**0.5)

  def test_draws_in_evaluation_too(self):
    _, agent, _, catalogue, _ = checks.made("random")
    sessions = simulate.simulate(
      policy.greedy(agent),
      toy.env(),
      ({}, catalogue),
      toy.users(),
      checks.KEY,
      episodes=24,
    )
    self.assertGreater(len(np.unique(sessions.slates)), toy.ITEMS / 2)


class PopularityTest(absltest.TestCase):
  def test_the_same_with_a_key_and_for_everybody(self):
    made = checks.made("popularity")
    other = made.observation._replace(
      history=jnp.zeros_like(made.observation.history)
    )
    shown = [
      np.asarray(checks.sample(made._replace(observation=user), []).slate)
      for user in (made.observation, other)
    ]
    self.assertLen(np.unique(np.concatenate(shown), axis=0), 1)


if __name__ == "__main__":
  absltest.main()
