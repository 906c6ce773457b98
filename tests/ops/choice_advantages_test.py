"""Advantages of the choices of slates, against sums written out."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.ops import returns

STEPS, PLACES, CHOICES = 4, 3, 2
HOW = {"discount": 0.8, "trace": 0.7, "place_trace": 0.6}
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(STEPS, PLACES, CHOICES))
REWARDS = RNG.normal(size=(STEPS, PLACES))
OVER = np.array([0.0, 1.0, 0.0, 0.0])
LAST = 0.3


def _advantages(**how):
  arrays = [jnp.asarray(x, jnp.float32) for x in (VALUES, REWARDS, OVER)]
  return returns.choice_advantages(*arrays, jnp.float32(LAST), **(HOW | how))


def _brute_force():
  """GAE over the chain of places: every later error, weighed by its way."""
  places = [(t, k) for t in range(STEPS) for k in range(PLACES)]
  value = [VALUES[t, k, 0] for t, k in places] + [LAST]
  errors, ahead = [], []  # Of each place; what the way to the next keeps.
  for i, (t, k) in enumerate(places):
    last = k == PLACES - 1
    discount = HOW["discount"] * (1 - OVER[t]) if last else 1.0
    errors.append(REWARDS[t, k] + discount * value[i + 1] - value[i])
    ahead.append(discount * (HOW["trace"] if last else HOW["place_trace"]))
  result = np.zeros((STEPS, PLACES))
  for i, (t, k) in enumerate(places):
    way = 1.0
    for j in range(i, len(places)):
      result[t, k] += way * errors[j]
      way *= ahead[j]
  return result


class ChoiceAdvantagesTest(absltest.TestCase):
  def test_against_every_later_error(self):
    advantages, targets = _advantages()
    target = _brute_force() + VALUES[..., 0]
    np.testing.assert_allclose(targets[..., 1], target, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
      advantages, target[..., None] - VALUES, rtol=1e-4, atol=1e-5
    )

  def test_with_full_traces_they_are_the_rewards_to_come(self):
    advantages, _ = _advantages(trace=1.0, place_trace=1.0)
    # The session ends after the second slate.
    to_come = REWARDS[0, 1:].sum() + 0.8 * REWARDS[1].sum()
    np.testing.assert_allclose(
      advantages[0, 1], to_come - VALUES[0, 1], rtol=1e-4
    )

  def test_one_advantage_for_a_slate(self):
    advantages, targets = _advantages(by_choice=False, trace=1.0)
    to_come = REWARDS[2].sum() + 0.8 * (REWARDS[3].sum() + 0.8 * LAST)
    np.testing.assert_allclose(targets[2], np.full((3, 2), to_come), rtol=1e-4)
    np.testing.assert_allclose(
      advantages[2], np.full((3, 2), to_come - VALUES[2, 0, 0]), rtol=1e-4
    )


if __name__ == "__main__":
  absltest.main()
