"""DDPG's critic loss, by hand."""

import numpy as np
from absl.testing import absltest

from tests.agents.baselines import latent_cases as cases


class DdpgTest(absltest.TestCase):
  def test_losses(self):
    case = cases.make("ddpg")
    step = cases.transition(case)
    _, metrics = cases.loss(case, step)
    state = cases.state(case.params, case.catalogue, case.observation)
    next_state = cases.state(
      case.target_params, case.catalogue, cases.next_observation(step)
    )
    next_action = cases.action(case.target_params, next_state)
    target = 0.6 + 0.9 * cases.q(case.target_params, next_state, next_action)
    value = cases.q(case.params, state, step.latent)
    own = cases.q(case.params, state, cases.action(case.params, state))
    np.testing.assert_allclose(metrics["target"], target, rtol=1e-3)
    np.testing.assert_allclose(
      metrics["critic_loss"], (value - target) ** 2, rtol=1e-3
    )
    np.testing.assert_allclose(metrics["actor_loss"], -own, rtol=1e-3)

  def test_a_logged_slate_stands_for_the_mean_of_its_items(self):
    case = cases.make("ddpg", recipe="logs")
    step = cases.transition(case)
    _, metrics = cases.loss(case, step._replace(latent=np.zeros(0)))
    embedded = cases.embeddings(case.target_params, case.catalogue)
    mean = embedded[[1, 2, 3]].mean(0)
    mean /= np.sqrt((mean**2).mean())
    state = cases.state(case.params, case.catalogue, case.observation)
    value = cases.q(case.params, state, mean)
    np.testing.assert_allclose(
      metrics["critic_loss"], (value - metrics["target"]) ** 2, rtol=1e-3
    )


if __name__ == "__main__":
  absltest.main()
