"""Random draws uniformly; popularity shows everybody the same."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.evaluation import simulate
from hsrl_jax.stages import policy
from tests import toy
from tests.agents import checks


def _slates(made, count):
  act = jax.jit(
    jax.vmap(
      lambda key, user: (
        made.agent.act({}, made.catalogue, user, checks.NOTHING, key, 1.0).slate
      ),
      in_axes=(0, None),
    )
  )
  keys = jax.random.split(checks.KEY, count)
  return lambda user: np.asarray(act(keys, user))


class RandomTest(absltest.TestCase):
  def test_uniform_over_what_may_be_shown(self):
    made = checks.made("random")
    slates = _slates(made, 20_000)(made.observation)
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
      toy.inputs().env_params,
      checks.KEY,
      episodes=24,
    )
    self.assertGreater(len(np.unique(sessions.slates)), toy.ITEMS / 2)


class PopularityTest(absltest.TestCase):
  def test_the_same_with_a_key_and_for_everybody(self):
    made = checks.made("popularity")
    show = _slates(made, 3)
    other = made.observation._replace(
      history=jnp.zeros_like(made.observation.history)
    )
    slates = show(made.observation)
    np.testing.assert_array_equal(slates, np.tile(slates[:1], (3, 1)))
    np.testing.assert_array_equal(slates, show(other))


if __name__ == "__main__":
  absltest.main()
