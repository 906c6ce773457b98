import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from tests.agents import checks
from tests.training import toy


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
