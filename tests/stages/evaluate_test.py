"""Stage evaluate: the scores that it ranks by, and what it withholds."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.stages import evaluate
from tests import toy


class RankingTest(parameterized.TestCase):
  @parameterized.parameters("hsrl", "a2c", "ddpg", "popularity")
  def test_the_order_is_that_of_the_agents_slates(self, name):
    config = toy.config(name)
    catalogue = toy.inputs().catalogue
    if name == "popularity":
      rng = np.random.default_rng(0)
      counts = rng.permutation(toy.ITEMS + 1).astype(np.float32)
      catalogue = catalogue._replace(popularity=jnp.asarray(counts))
    parts = types.SimpleNamespace(config=config, catalogue=catalogue)
    agent = toy.agent(config)
    user = toy.env().start(3, toy.inputs().env_params).observation
    params = agent.init(jax.random.key(1), catalogue, user)
    score = evaluate._ranking(parts)
    scores = np.asarray(score((params, catalogue), user))
    self.assertEqual(scores[0], 0)  # Padding comes last.
    self.assertLen(set(scores), toy.ITEMS + 1)
    best = agent.act(
      params, catalogue, user, jnp.zeros(0, jnp.int32), None, 1.0
    ).slate
    np.testing.assert_array_equal(np.argsort(-scores)[: toy.SLATE], best)

  def test_a_sweet_point_does_not_change_the_order(self):
    config = toy.config()
    simulator = dataclasses.replace(config.simulator, sweet_point=0.2)
    composed = dataclasses.replace(config, simulator=simulator)
    catalogue = toy.inputs().catalogue
    user = toy.env().start(3, toy.inputs().env_params).observation
    params = toy.agent(config).init(jax.random.key(1), catalogue, user)
    orders = [
      evaluate._ranking(types.SimpleNamespace(config=x, catalogue=catalogue))(
        (params, catalogue), user
      )
      for x in (config, composed)
    ]
    np.testing.assert_array_equal(*orders)

  def test_random_has_no_order(self):
    parts = types.SimpleNamespace(
      config=toy.config("random"), catalogue=toy.inputs().catalogue
    )
    self.assertIsNone(evaluate._ranking(parts))


class PoliciesTest(absltest.TestCase):
  def test_a_useless_simulator_normalises_nothing(self):
    sessions = {
      name: [
        simulate.Sessions(
          np.float32([reward, 2 * reward]),
          np.float32([2, 2]),
          np.float32([1, 3]),
          np.ones((2, 2, 3), np.int32),
          np.ones((2, 2, 3), np.float32),
        )
      ]
      for name, reward in zip(bounds.BOUNDS, (1, 3, 5), strict=True)
    }
    useless = {"verdict": "useless", "reasons": ["chance"]}
    for quality, shown in (({"verdict": "weak"}, True), (useless, False)):
      policies = evaluate._policies(sessions, quality)
      for policy in policies.values():
        self.assertEqual(policy["normalised"]["mean"] is not None, shown)
        self.assertIsNotNone(policy["total_reward"]["mean"])
    self.assertIn("chance", policies["random"]["normalised"]["withheld"])


if __name__ == "__main__":
  absltest.main()
