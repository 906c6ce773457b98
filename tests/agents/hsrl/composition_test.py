"""Composed slates against all mixes, each by all of its responses."""

import itertools

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.agents.hsrl import composition
from hsrl_jax.sim.reward import Reward

COUNT = 4


def _expected(chances, point):
  total = 0.0
  for response in itertools.product((0, 1), repeat=COUNT):
    hit = np.array(response) == 1
    mean = np.where(hit, 1, -0.1).mean()
    chance = np.where(hit, chances, 1 - chances).prod()
    total += chance * (1 - abs(mean - point))
  return total


class ComposeTest(parameterized.TestCase):
  @parameterized.product(point=[0.1, 0.5, 0.7, 0.9], seed=[0, 1, 2])
  def test_is_the_best_mix(self, point, seed):
    logits = np.sort(3 * np.random.default_rng(seed).normal(size=2 * COUNT))
    best, worst = logits[::-1][:COUNT], logits[:COUNT]
    chances = 1 / (1 + np.exp(-np.concatenate([best, worst])))
    mixes = [
      [*range(COUNT - n), *range(COUNT + n - 1, COUNT - 1, -1)]
      for n in range(COUNT + 1)
    ]
    want = max(mixes, key=lambda mix: _expected(chances[mix], point))
    found = composition.compose_slate(
      jnp.asarray(best), jnp.asarray(worst), Reward(-0.1, point)
    )
    self.assertEqual(found.tolist(), want)

  def test_sure_hits_leave_room_for_one_sure_miss(self):
    found = composition.compose_slate(
      jnp.full(9, 20.0), jnp.full(9, -20.0), Reward(-0.1, 0.9)
    )
    self.assertEqual(found.tolist(), [*range(8), 9])


if __name__ == "__main__":
  absltest.main()
