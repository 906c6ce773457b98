"""What the agents with a latent action have in common."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sklearn_metrics

from hsrl_jax.agents.baselines import latent
from tests.agents.baselines import latent_cases as cases


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


class ActionCriticTest(absltest.TestCase):
  def test_each_critic_equals_plain_numpy(self):
    network = latent.ActionCritic((6,), critics=3)
    state, action = jnp.arange(2.0), jnp.array([1.0, -2.0, 0.5])
    params = network.init(jax.random.key(0), state, action)
    got = network.apply(params, state, action)
    dense = params["params"]["value"]
    x = np.concatenate([state, action])
    for i in range(3):
      hidden = x @ dense["Dense_0"]["kernel"][i] + dense["Dense_0"]["bias"][i]
      want = np.maximum(hidden, 0) @ dense["Dense_1"]["kernel"][i]
      np.testing.assert_allclose(got[i], want[0], rtol=1e-5)
    self.assertLen(set(got.tolist()), 3)


if __name__ == "__main__":
  absltest.main()
