"""Leave rules: patience by its law, and a rule of another kind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.sim.leave import Patience
from tests import toy


@dataclasses.dataclass(frozen=True)
class ByChance:
  """A user leaves after a slate with this chance, after `most` in any case."""

  chance: float
  most: int

  def start(self):
    return {"slates": jnp.int32(0)}

  def step(self, state, slate, response, reward, draw):
    del slate, response, reward
    slates = state["slates"] + 1
    return {"slates": slates}, (draw < self.chance) | (slates >= self.most)


class LeaveTest(absltest.TestCase):
  def test_patience_by_hand(self):
    """Falls by (1 - R) K + 1; at 1 the user stays, below 1 not."""
    rule, slate, nothing = Patience(4.0), jnp.arange(1, 3), jnp.float32(0.5)
    state, expected = rule.start(), [(2.0, False), (1.0, False), (-1.2, True)]
    for reward, (left, leaves) in zip((0.5, 1.0, 0.4), expected, strict=True):
      state, found = rule.step(
        state, slate, jnp.zeros(2), jnp.float32(reward), nothing
      )
      self.assertAlmostEqual(float(state), left, places=5)
      self.assertEqual(bool(found), leaves)

  def test_sessions_with_another_rule(self):
    env = toy.env()._replace(leave=ByChance(0.3, 4), max_steps=10)
    active = toy.inputs().catalogue.index.active
    sessions = simulate.simulate(
      bounds.random_policy(toy.SLATE),
      env,
      active,
      toy.inputs().env_params,
      jax.random.key(0),
      episodes=2000,
    )
    share = np.bincount(np.asarray(sessions.depth, int)) / 2000
    expected = [0.0, 0.3, 0.7 * 0.3, 0.7**2 * 0.3, 0.7**3]
    np.testing.assert_allclose(share, expected, atol=0.04)

  def test_a_new_user_starts_anew(self):
    env, users = toy.env()._replace(leave=ByChance(0.0, 2)), toy.inputs()
    state, slates = env.start(1, users.env_params), []
    for step in range(5):
      state, result = env.step_or_reset(
        jax.random.key(step), state, jnp.arange(1, 4), users.env_params
      )
      slates.append(int(state.patience["slates"]))
      self.assertEqual(bool(result.terminated), step % 2 == 1)
    self.assertEqual(slates, [1, 0, 1, 0, 1])


if __name__ == "__main__":
  absltest.main()
