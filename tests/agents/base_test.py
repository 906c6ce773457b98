"""Draws and their log-probabilities against the closed form."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from hsrl_jax.agents import base

LOG_PI = np.array([0.3, -1.0, 2.0, 0.0, 5.0, -2.0])
ALLOWED = np.array([True, True, True, True, False, True])


class DrawTest(parameterized.TestCase):
  @parameterized.parameters(0.2, 0.5, 1.0, 3.0)
  def test_importance_weights_are_those_of_the_normalised_policies(
    self, temperature
  ):
    ranks, log_prob = base.draw(
      jnp.asarray(LOG_PI, jnp.float32),
      jnp.asarray(ALLOWED),
      jnp.zeros(6),
      temperature,
    )
    pi = special.softmax(LOG_PI[ALLOWED])
    mu = special.softmax(LOG_PI[ALLOWED] / temperature)
    got = np.exp(LOG_PI - np.asarray(log_prob))[ALLOWED]
    np.testing.assert_allclose(got, pi / mu, rtol=1e-5)
    self.assertEqual(int(jnp.argmax(ranks)), 2)
    if temperature == 1:
      np.testing.assert_allclose(log_prob, LOG_PI, rtol=1e-5)

  def test_nothing_allowed_is_finite(self):
    nobody = jnp.zeros(6, bool)
    for noise in (None, jnp.ones(6)):
      for x in base.draw(jnp.asarray(LOG_PI), nobody, noise, 0.5):
        self.assertTrue(np.isfinite(x).all())


if __name__ == "__main__":
  absltest.main()
