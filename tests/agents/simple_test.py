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
    slates = np.asarray(checks.sampled_slates(*made, count=20_000).slate)
    counts = np.bincount(slates.ravel(), minlength=toy.ITEMS + 1)
    expected = slates.size / (toy.ITEMS - 2)
    np.testing.assert_array_equal(counts[[0, 5, 12]], 0)
    shown = np.delete(counts, [0, 5, 12])
    # Four standard deviations and some.
    np.testing.assert_allclose(shown, expected, atol=4.5 * expected**0.5)

  def test_draws_in_evaluation_too(self):
    agent, _, catalogue, _ = checks.made("random")
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
  def setUp(self):
    super().setUp()
    self.agent, _, catalogue, self.observation = checks.made("popularity")
    # A new item has nothing; padding may not win.
    counts = (7 * np.arange(toy.ITEMS + 1)) % 41
    counts[0], counts[-1] = 99, 0
    self.counts = counts
    self.catalogue = catalogue._replace(
      popularity=jnp.asarray(counts, jnp.float32)
    )

  def test_most_popular_first(self):
    checks.shows_the_top(
      self.agent, {}, self.catalogue, self.observation, self.counts
    )

  def test_the_same_with_a_key_and_for_everybody(self):
    slates = np.asarray(
      checks.sampled_slates(
        self.agent, {}, self.catalogue, self.observation, count=5
      ).slate
    )
    other = self.observation._replace(
      history=jnp.zeros_like(self.observation.history)
    )
    again = checks.sampled_slates(
      self.agent, {}, self.catalogue, other, count=1
    ).slate
    np.testing.assert_array_equal(slates, np.tile(again, (5, 1)))


if __name__ == "__main__":
  absltest.main()
