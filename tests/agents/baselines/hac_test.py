"""HAC's critic of both kinds of action, and the alignment, by hand."""

import numpy as np
from absl.testing import absltest

from hsrl_jax.agents.baselines import hac
from tests.agents.baselines import latent_cases as cases


class HacTest(absltest.TestCase):
  def test_losses(self):
    case = cases.make("hac", critic_weight=0.0, actor_weight=0.0)
    step = cases.transition(case)
    loss, metrics = cases.loss(case, step)
    state = cases.state(case.params, case.catalogue, case.observation)
    next_state = cases.state(
      case.target_params, case.catalogue, cases.next_observation(step)
    )
    next_action = cases.action(case.target_params, next_state)
    target = 0.6 + 0.9 * cases.q(case.target_params, next_state, next_action)
    embedded = cases.embeddings(case.params, case.catalogue)
    pooled = cases.unit((embedded[1] + embedded[2] + embedded[3]) / 3)
    critic = sum(
      (cases.q(case.params, state, action) - target) ** 2
      for action in (step.latent, pooled)
    )
    alignment = np.square(np.asarray(step.latent) - pooled).mean()
    np.testing.assert_allclose(metrics["critic_loss"], critic, rtol=1e-3)
    np.testing.assert_allclose(metrics["alignment_loss"], alignment, rtol=1e-3)
    np.testing.assert_allclose(
      loss - metrics["behaviour_loss"],
      hac.ALIGNMENT_WEIGHT * alignment,
      rtol=1e-3,
    )


if __name__ == "__main__":
  absltest.main()
