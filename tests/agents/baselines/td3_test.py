"""What TD3 adds: twins, smoothing, delay."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.agents.baselines import td3
from tests import toy
from tests.agents.baselines import latent_cases as cases


class Td3Test(parameterized.TestCase):
  def test_losses(self):
    case = cases.make("td3")
    step = cases.transition(case)
    drawn = np.linspace(-4.0, 4.0, 8)  # Beyond the clip on both sides.
    with mock.patch.object(
      td3.sampling, "normal", lambda key, shape: jnp.asarray(drawn)
    ):
      _, metrics = cases.loss(case, step)
    next_state = cases.state(
      case.target_params, case.catalogue, cases.next_observation(step)
    )
    noise = [min(max(0.2 * x, -0.5), 0.5) for x in drawn]
    next_action = cases.unit(
      cases.action(case.target_params, next_state) + noise
    )
    both = [
      cases.q(case.target_params, next_state, next_action, c) for c in (0, 1)
    ]
    self.assertGreater(abs(both[0] - both[1]), 0.01)
    target = 0.6 + 0.9 * min(both)
    state = cases.state(case.params, case.catalogue, case.observation)
    critic = sum(
      (cases.q(case.params, state, step.latent, c) - target) ** 2
      for c in (0, 1)
    )
    np.testing.assert_allclose(metrics["target"], target, rtol=1e-3)
    np.testing.assert_allclose(metrics["critic_loss"], critic, rtol=1e-3)

  def test_the_actor_learns_from_the_critic_every_second_iteration(self):
    case = cases.make("td3", behaviour_weight=0.0)
    step = cases.transition(case)

    @jax.jit
    def gradient(params, progress):
      return jax.grad(
        lambda p: cases.loss(case._replace(params=p), step, progress)[0]
      )(params)["params"]

    for iteration in range(toy.BASE.train.iterations):
      progress = jnp.int32(iteration) / toy.BASE.train.iterations
      parts = gradient(case.params, progress)
      moves = float(jnp.abs(parts["actor"]["kernel"]).max()) > 0
      self.assertEqual(moves, iteration % 2 == 0)
      self.assertGreater(
        float(jnp.abs(parts["critic"]["value"]["Dense_0"]["kernel"]).max()), 0
      )


if __name__ == "__main__":
  absltest.main()
