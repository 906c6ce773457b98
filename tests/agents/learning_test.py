"""Agents learn on the toy, and what has not learned does not pass."""

import functools

import jax
from absl.testing import absltest, parameterized

from hsrl_jax.training import evaluate, policy
from tests.training import toy

FLOOR = 0.8  # 0: random, 1: greedy oracle; a constant slate is below 0.5.


class LearningTest(parameterized.TestCase):
  @parameterized.parameters("ddpg", "td3", "wolpertinger", "hac")
  def test_learns(self, name):
    config = toy.config(
      agent=name,
      iterations=300,
      iterations_per_call=20,
      curve_every=300,
      save_every=300,
      learning_rate=1e-2,
      seeds=(0,),
    )
    engine, inputs = toy.engine(config), toy.inputs()
    learner, stream = jax.jit(engine.init, static_argnums=2)(0, inputs, 1)
    stream = jax.tree.map(lambda x: x[0], stream)
    run = jax.jit(engine.run)
    act = policy.greedy(toy.agent(config))
    measure = functools.partial(
      evaluate.simulate,
      env=toy.env(),
      env_params=inputs.env_params,
      key=jax.random.key(0),
      episodes=96,
    )
    totals = {
      name: float(measure(bound, params=params).total_reward.mean())
      for name, (bound, params) in evaluate.bounds(
        toy.env(), inputs.env_params, num_items=toy.ITEMS
      ).items()
    }
    low, high = totals["random"], totals["greedy_oracle"]

    def reached(learner):
      sessions = measure(act, params=(learner.target_params, inputs.catalogue))
      return (float(sessions.total_reward.mean()) - low) / (high - low)

    untrained = reached(learner)
    for _ in range(15):
      learner, stream, _ = run(learner, stream, inputs)
    self.assertGreater(reached(learner), FLOOR)
    self.assertLess(untrained, FLOOR)


if __name__ == "__main__":
  absltest.main()
