"""Bounds in SARDINE's worlds against what its own code was measured to give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import environments
from hsrl_jax.evaluation import bounds, simulate

USERS = 100


class BoundsTest(parameterized.TestCase):
  # Clicks of 100 or more sessions of the package: random, greedy, farsighted.
  @parameterized.parameters(
    ("SlateTopK-Bored", 44, 150, 417),
    ("SlateTopK-BoredInf", 42, 149, 294),
    ("SlateTopK-Uncertain", 71, 138, 301),
  )
  @pytest.mark.slow
  def test_clicks(self, name, *expected):
    env, users = environments.sardine(name, users=USERS)
    active = jnp.arange(1_001) > 0
    made = bounds.bounds(env, users, active)
    for bound, clicks in zip(
      ("random", "greedy_oracle", "farsighted"), expected, strict=True
    ):
      act, params = made[bound]
      sessions = simulate.simulate(
        act, env, params, users, jax.random.key(0), episodes=USERS
      )
      # Users differ: within four standard errors of the difference of means.
      reward = np.asarray(sessions.total_reward)
      error = 4 * np.sqrt(2) * reward.std() / np.sqrt(USERS)
      self.assertLess(abs(reward.mean() - clicks), error, bound)
      np.testing.assert_array_equal(sessions.depth, 100)
      np.testing.assert_allclose(sessions.positives, reward)


if __name__ == "__main__":
  absltest.main()
