"""Logs drawn from a world: propensities, ends, and what fewer of them are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.evaluation import simulated_logs as logs
from hsrl_jax.ops import masking
from tests import toy

_INACTIVE = 9


@functools.cache
def _weights(temperature):
  active = jnp.arange(toy.ITEMS + 1) > 0
  active = active.at[_INACTIVE].set(False)
  popularity = jnp.arange(toy.ITEMS + 1.0) ** 2
  return logs.log_weights(popularity, active, temperature), active


@functools.cache
def _drawn(temperature):
  return logs.draw(
    toy.env(no_repeat=True),
    toy.users(),
    np.arange(toy.USERS),
    *_weights(temperature),
    slates=1_500,  # More than one chunk of sessions has.
    seed=3,
  )


class DrawTest(absltest.TestCase):
  def test_propensities_are_those_of_what_was_left_to_show(self):
    drawn = _drawn(2.0)
    weight = np.sqrt(np.arange(toy.ITEMS + 1.0) ** 2 + 1)
    weight[[0, _INACTIVE]] = 0
    for session in (0, 1, 400):
      own = np.flatnonzero(drawn.session == session)
      left = weight.copy()
      for row in own:  # By step.
        items = drawn.exposed[row]
        want = weight[items] / left.sum()
        np.testing.assert_allclose(drawn.propensity[row], want, rtol=1e-4)
        left[items] = 0
    self.assertNotIn(_INACTIVE, drawn.exposed)

  def test_the_first_place_is_drawn_by_its_propensity(self):
    drawn = _drawn(2.0)
    first = drawn.exposed[drawn.step == 0, 0]
    weight, _ = _weights(2.0)
    share = np.exp(np.where(weight > masking.NEGATIVE, weight, -np.inf))
    share /= share.sum()
    count = np.bincount(first, minlength=toy.ITEMS + 1)
    error = np.sqrt(share * (1 - share) / len(first))
    self.assertTrue(
      (np.abs(count / len(first) - share) < 5 * error + 1e-9).all()
    )
    self.assertGreater(len(first), 400)

  def test_sessions_are_whole_and_fewer_slates_are_the_first(self):
    drawn = _drawn(2.0)
    self.assertGreaterEqual(len(drawn.step), 1_500)
    # Whoever has not left by the last step is cut off there, without an end.
    last = np.append(np.diff(drawn.session) > 0, True)
    ended = drawn.terminated > 0
    self.assertFalse((ended & ~last).any())
    self.assertTrue(
      (drawn.step[last & ~ended] == toy.env().max_steps - 1).all()
    )
    some = logs.first(drawn, 700)
    self.assertBetween(len(some.step), 700, 700 + toy.env().max_steps)
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(a, b[: len(a)]), some, drawn
    )

  def test_uniform_is_without_a_temperature(self):
    weights, active = _weights(None)
    np.testing.assert_array_equal(np.asarray(weights) == 0, active)


if __name__ == "__main__":
  absltest.main()
