"""The objective of agents that learn on-policy, against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.agents import base
from hsrl_jax.engine import on_policy
from tests import toy

ADVANTAGES = np.array([[1.0], [-2.0], [0.5], [-0.25]], "f")


def _gradient(agent, moved):
  """Of the objective by log-probabilities that have moved since acting."""
  learning = toy.agent(toy.config(agent, actor_weight=1.0)).on_policy
  before = jnp.full((4, 1), -1.5)
  one = on_policy.Judged(None, before, jnp.asarray(ADVANTAGES), before)

  def choices(params, *_):
    zero = jnp.float32(0)
    return base.Choices(params, before, zero, zero, {})

  learning = learning._replace(choices=choices)

  def loss(log_probs):
    return on_policy.objective(learning, log_probs, None, one, 0.0, None)[0]

  return jax.grad(loss)(before + jnp.asarray(moved, "f")[:, None])


class ObjectiveTest(parameterized.TestCase):
  @parameterized.parameters("ppo", "a2c_sequential")
  def test_where_nothing_moved_it_is_the_policy_gradient(self, agent):
    # Of -A log pi, the mean over four choices.
    np.testing.assert_allclose(
      _gradient(agent, np.zeros(4)), -ADVANTAGES / 4, rtol=1e-5
    )

  @parameterized.parameters(
    # PPO stops where a choice moved as its advantage says, by a fifth.
    ("ppo", [0, 0, 1, 1]),
    ("a2c_sequential", [1, 1, 1, 1]),
  )
  def test_what_moved_far(self, agent, counts):
    moved = np.array([0.5, -0.5, -0.5, 0.5])
    weight = np.array(counts) * np.exp(moved)
    np.testing.assert_allclose(
      _gradient(agent, moved), -ADVANTAGES * weight[:, None] / 4, rtol=1e-5
    )

  @parameterized.parameters(("hsrl", 3), ("ppo", 3), ("a2c_sequential", 1))
  def test_steps_of_a_training(self, agent, epochs):
    config = toy.config(
      agent, recipe="on_policy", iterations=40, segment=4, minibatches=2
    )
    made = toy.agent(config).on_policy
    self.assertEqual(
      on_policy.steps(config.train, made.epochs), 10 * epochs * 2
    )


if __name__ == "__main__":
  absltest.main()
