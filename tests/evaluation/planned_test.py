"""The bound `planned` against rollouts by hand, where nothing is by chance."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.evaluation import simulate
from hsrl_jax.evaluation.planned import planned
from hsrl_jax.sim.leave import Boredom
from tests import toy

# Items 1..6; which are liked, and the category of each.
LIKED = (0, 1, 1, 0, 0, 1, 0)
CATEGORY = (None, 0, 0, 0, 1, 1, 2)
WINDOW, STEPS = 2, 6


def _leaves(shown, item):
  return any(CATEGORY[x] == CATEGORY[item] for x in shown[-WINDOW:])


def _rule(shown):
  """What farsighted shows: liked and harmless, then harmless, then liked."""
  left = [item for item in range(1, 7) if item not in shown]
  return min(
    left, key=lambda item: (_leaves(shown, item), 1 - LIKED[item], item)
  )


def _value(shown, item):
  """The total reward from here on of showing an item, then by the rule."""
  total = 0.0
  while True:
    total += 1.0 if LIKED[item] else -0.1
    left, shown = _leaves(shown, item), [*shown, item]
    if left or len(shown) == STEPS:
      return total
    item = _rule(shown)


class PlannedTest(absltest.TestCase):
  def test_equals_rollouts_by_hand(self):
    env = toy.env(no_repeat=True)._replace(
      response_fn=lambda params, profile, history, items: jnp.float32(LIKED)[
        items
      ],
      leave=Boredom(WINDOW, 0),
      slate_size=1,
      max_steps=STEPS,
    )
    table = np.array([[x == c for c in range(3)] for x in CATEGORY])
    users = toy.users()._replace(
      categories=jnp.asarray(table), num_items=jnp.int32(6)
    )
    active = jnp.arange(7) > 0
    sessions = simulate.simulate(
      planned(env, candidates=64, rollouts=2, noise=20.0),
      env,
      (users, active),
      users,
      jax.random.key(0),
      episodes=1,
    )
    shown, total = [], 0.0
    for item in np.asarray(sessions.slates)[0, :, 0].tolist():
      if not item:
        break
      left = [x for x in range(1, 7) if x not in shown]
      best = max(_value(shown, x) for x in left)
      self.assertAlmostEqual(_value(shown, item), best, places=5)
      total += 1.0 if LIKED[item] else -0.1
      shown.append(item)
    self.assertAlmostEqual(float(sessions.total_reward[0]), total, places=5)
    self.assertAlmostEqual(total, 2.9)
    self.assertAlmostEqual(_value([], _rule([])), 2.7)  # The rule alone.
    self.assertEqual(float(sessions.depth[0]), len(shown))


if __name__ == "__main__":
  absltest.main()
