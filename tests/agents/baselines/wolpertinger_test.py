"""Wolpertinger's choice and its critic of items, by brute force."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.agents.baselines import wolpertinger
from tests.agents.baselines import latent_cases as cases


def _choose(params, catalogue, observation, candidates, excluded=()):
  """The slate and its values, one item at a time."""
  state = cases.state(params, catalogue, observation)
  action = cases.action(params, state)
  embedded = cases.unit(cases.embeddings(params, catalogue))
  items = cases.ranking(params, catalogue, action, excluded)[:candidates]
  values = {i: cases.q(params, state, embedded[i]) for i in items}
  best = sorted(items, key=lambda i: -values[i])[:3]
  return best, [values[i] for i in best]


class WolpertingerTest(parameterized.TestCase):
  @parameterized.parameters(1, 5, 99)
  def test_the_best_candidates_are_shown(self, slates):
    case = cases.make("wolpertinger")
    with mock.patch.object(wolpertinger, "CANDIDATES", slates):
      act = jax.jit(lambda *x: case.agent.act(*x, None, 1.0))
      for excluded in ([0] * 5, [1, 0, 5, 9, 13]):
        got = act(
          case.params,
          case.catalogue,
          case.observation,
          jnp.array(excluded, jnp.int32),
        ).slate
        want, _ = _choose(
          case.params, case.catalogue, case.observation, 3 * slates, excluded
        )
        np.testing.assert_array_equal(got, want)

  @parameterized.parameters(True, False)
  def test_critic_loss(self, item_credit):
    case = cases.make("wolpertinger", item_credit=item_credit)
    step = cases.transition(case)
    _, metrics = cases.loss(case, step)
    _, next_values = _choose(
      case.target_params, case.catalogue, cases.next_observation(step), 15
    )
    target = 0.6 + 0.9 * sum(next_values) / 3
    shares = [1.0, -0.1, 1.0] if item_credit else [0.6] * 3
    mean = sum(shares) / 3
    state = cases.state(case.params, case.catalogue, case.observation)
    embedded = cases.unit(cases.embeddings(case.params, case.catalogue))
    errors = [
      cases.q(case.params, state, embedded[i]) - (target + share - mean)
      for i, share in zip((1, 2, 3), shares, strict=True)
    ]
    np.testing.assert_allclose(metrics["target"], target, rtol=1e-3)
    np.testing.assert_allclose(
      metrics["critic_loss"], np.square(errors).mean(), rtol=1e-3
    )


if __name__ == "__main__":
  absltest.main()
