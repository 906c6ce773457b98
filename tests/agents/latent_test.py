"""What the agents with a latent action have in common."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sklearn_metrics

from hsrl_jax.agents import latent
from tests.agents import latent_cases as cases


class ExploreTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 0.3, 1.0)
  def test_the_angle_of_the_noise(self, std):
    action = cases.unit(np.sin(np.arange(64.0)))
    keys = jax.random.split(jax.random.key(0), 500)
    noisy = jax.vmap(latent.explore, in_axes=(None, 0, None))(
      jnp.asarray(action, jnp.float32), keys, std
    )
    cosine = np.asarray(noisy) @ action / 64
    angle = np.degrees(np.arccos(cosine)).mean()
    want = np.degrees(np.arctan(std))
    self.assertAlmostEqual(angle, want, delta=0.05 * want)


class LossTest(parameterized.TestCase):
  def test_behaviour_loss_is_log_loss(self):
    case = cases.make("ddpg")
    step = cases.transition(case)
    state = cases.state(case.params, case.catalogue, case.observation)
    embedded = cases.embeddings(case.params, case.catalogue)
    scores = embedded[[1, 2, 3]] @ cases.action(case.params, state)
    scores = scores + float(case.params["params"]["response_bias"])
    want = sklearn_metrics.log_loss([1, 0, 1], 1 / (1 + np.exp(-scores)))
    got = cases.loss(case, step)[1]["behaviour_loss"]
    np.testing.assert_allclose(got, want, rtol=1e-3)


if __name__ == "__main__":
  absltest.main()
