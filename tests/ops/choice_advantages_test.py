"""Advantages of the choices of slates, against sums written out."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.ops import returns

STEPS, PLACES, CHOICES = 4, 3, 2
HOW = {"discount": 0.8, "trace": 0.7, "credit": "token"}
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(STEPS, PLACES, CHOICES))
REWARDS = RNG.normal(size=(STEPS, PLACES))
TERMINATED = np.array([0.0, 1.0, 0.0, 0.0])
TRUNCATED = np.array([0.0, 0.0, 1.0, 0.0])
CUT = RNG.normal(size=STEPS)
LAST = 0.3


def _advantages(**how):
  values, rewards, *ends = (
    jnp.asarray(x, jnp.float32)
    for x in (VALUES, REWARDS, TERMINATED, TRUNCATED, CUT)
  )
  return returns.choice_advantages(
    values, rewards, returns.Ends(*ends), jnp.float32(LAST), **(HOW | how)
  )


def _brute_force():
  """GAE over the chain of places: every later error, weighed by its way.

  After a slate where the user left nothing is worth anything; where the session
  was cut the error has the value of the state that was cut, and ends the way.
  """
  places = [(t, k) for t in range(STEPS) for k in range(PLACES)]
  value = [VALUES[t, k, 0] for t, k in places] + [LAST]
  errors, ahead = [], []  # Of each place; what the way to the next keeps.
  for i, (t, k) in enumerate(places):
    last = k == PLACES - 1
    discount, follows = (HOW["discount"] if last else 1.0), value[i + 1]
    if last and TERMINATED[t]:
      follows = 0.0
    if last and TRUNCATED[t]:
      follows = CUT[t]
    errors.append(REWARDS[t, k] + discount * follows - value[i])
    ends = last and (TERMINATED[t] or TRUNCATED[t])
    trace = HOW["trace"] if last else returns.PLACE_TRACE
    ahead.append(0.0 if ends else discount * trace)
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

  def test_a_slot_has_one_advantage(self):
    advantages, targets = _advantages(credit="slot")
    expected = np.broadcast_to(_brute_force()[..., None], VALUES.shape)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
      targets, expected + VALUES[..., :1], rtol=1e-4, atol=1e-5
    )

  def test_one_advantage_for_a_slate(self):
    advantages, targets = _advantages(credit="slate", trace=1.0)
    to_come = REWARDS[3].sum() + 0.8 * LAST
    np.testing.assert_allclose(targets[3], np.full((3, 2), to_come), rtol=1e-4)
    np.testing.assert_allclose(
      advantages[3], np.full((3, 2), to_come - VALUES[3, 0, 0]), rtol=1e-4
    )

  def test_a_step_limit_is_no_end(self):
    """The user who left earns nothing more; the one who was cut would have."""
    _, targets = _advantages(credit="slate", trace=1.0)
    left, cut = REWARDS[1].sum(), REWARDS[2].sum() + 0.8 * CUT[2]
    np.testing.assert_allclose(targets[1], np.full((3, 2), left), rtol=1e-4)
    np.testing.assert_allclose(targets[2], np.full((3, 2), cut), rtol=1e-4)
    before = REWARDS[0].sum() + 0.8 * left
    np.testing.assert_allclose(targets[0], np.full((3, 2), before), rtol=1e-4)


if __name__ == "__main__":
  absltest.main()
