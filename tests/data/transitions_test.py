"""Transitions of logs: by hand, and against the simulator that was logged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.data import transitions
from hsrl_jax.types import Sessions
from tests import toy

_STEPS = 5


def _logs(**changes):
  """Users 1 and 2; the rows of a user's sessions are mixed up."""
  logs = Sessions(
    user_id=np.array([2, 1, 1, 1, 2]),
    profile=np.array([[2.0], [1.0], [1.0], [1.0], [2.0]]),
    history=np.array([[0, 5], [3, 4], [0, 3], [9, 8], [0, 0]]),
    exposed=np.array([[1, 2], [5, 6], [4, 7], [1, 2], [5, 3]]),
    response=np.array([[0, 1], [1, 1], [1, 0], [0, 0], [1, 0]], float),
    timestamp=np.array([70.0, 20.0, 10.0, 5_000.0, 60.0]),
  )
  return logs._replace(**changes)


def _made(logs, **values):
  rewards = np.arange(5.0)
  log_prob = -np.arange(10.0).reshape(5, 2)
  return transitions.transitions(logs, rewards, log_prob, **values)


class TransitionsTest(absltest.TestCase):
  def test_by_hand_without_a_session_column(self):
    # User 1: rows 2 and 1, then after a gap row 3; user 2: rows 4 and 0.
    made = _made(_logs())
    self.assertEqual(
      made.slate.tolist(), [[4, 7], [5, 6], [1, 2], [5, 3], [1, 2]]
    )
    self.assertEqual(made.observation.profile[:, 0].tolist(), [1, 1, 1, 2, 2])
    self.assertEqual(
      made.observation.history.tolist(),
      [[0, 3], [3, 4], [9, 8], [0, 0], [0, 5]],
    )
    self.assertEqual(
      # Of the session's next slate; after the last one with its likes added.
      made.next_history.tolist(),
      [[3, 4], [5, 6], [9, 8], [0, 5], [5, 2]],
    )
    self.assertEqual(made.terminated.tolist(), [0, 1, 1, 0, 1])
    self.assertEqual(made.reward.tolist(), [2, 1, 3, 4, 0])
    self.assertEqual(made.log_prob[:, 0].tolist(), [-4, -2, -6, -8, 0])
    self.assertIsNone(made.next_shown)

  def test_what_is_logged_goes_before_what_is_guessed(self):
    made = _made(
      _logs(
        session=np.array([7, 1, 1, 1, 7]),  # No gap cuts it.
        step=np.array([1, 1, 0, 2, 0]),
        reward=np.array([0.5, 0.25, 0.75, -1.0, 0.0]),
        terminated=np.array([1.0, 0, 0, 0, 0]),
      )
    )
    self.assertEqual(made.reward.tolist(), [0.75, 0.25, -1, 0, 0.5])
    # The first session goes on, for all that is known.
    self.assertEqual(made.terminated.tolist(), [0, 0, 0, 0, 1])
    self.assertEqual(
      made.next_history.tolist(), [[3, 4], [9, 8], [9, 8], [0, 5], [5, 2]]
    )

  def test_a_logged_end_cuts_a_session(self):
    logs = _logs(terminated=np.array([0.0, 0, 1, 0, 0]))
    self.assertEqual(transitions.order(logs).place.tolist(), [0, 0, 0, 0, 1])
    self.assertEqual(_made(logs).terminated.tolist(), [1, 0, 0, 0, 0])

  def test_what_was_shown_by_hand(self):
    made = _made(_logs(), observed_items=3)
    first, second, third, *_ = zip(*made.observation.shown[:4], strict=True)
    self.assertEqual(np.stack(first).tolist(), [[0, 0, 0]] * 4)
    self.assertEqual(
      np.stack(second).tolist(), [[0, 4, 7], [0, 1, 0], [0, 0, 1], [0, 1, 1]]
    )
    self.assertEqual(np.stack(third).tolist(), [[0, 0, 0]] * 4)
    after = [x[1].tolist() for x in made.next_shown[:4]]
    self.assertEqual(after, [[7, 5, 6], [0, 1, 1], [1, 0, 1], [2, 1, 1]])
    self.assertEqual(made.observation.shown.step.tolist(), [0, 1, 0, 0, 1])
    self.assertEqual(made.next_shown.step.tolist(), [1, 2, 1, 1, 2])

  def test_size_is_that_of_the_arrays(self):
    for observed in (0, 3):
      made = _made(_logs(), observed_items=observed)
      nbytes = sum(x.nbytes for x in jax.tree.leaves(made))
      self.assertEqual(transitions.size(_logs(), observed), nbytes)

  def test_a_logged_simulator_gives_its_own_transitions(self):
    env, users = toy.env()._replace(observed_items=5), toy.users()
    rows = jnp.arange(6)

    @functools.partial(jax.vmap, in_axes=(0, 0))
    def step(state, key):
      slate_key, step_key = jax.random.split(key)
      slate = jax.random.permutation(slate_key, toy.ITEMS)[: toy.SLATE] + 1
      after, result = env.step(step_key, state, slate, users)
      return after, (state.observation, slate, result)

    @jax.jit
    def simulated(key):
      state = jax.vmap(env.start, (0, None))(rows, users)
      keys = jax.random.split(key, (_STEPS, len(rows)))
      return jax.lax.scan(lambda x, key: step(x, key), state, keys)[1]

    seen = simulated(jax.random.key(0))
    # [T, U, ...] -> user by user.
    seen = jax.tree.map(
      lambda x: np.asarray(x).swapaxes(0, 1).reshape(-1, *x.shape[2:]), seen
    )
    observation, slate, result = seen
    step_of = np.tile(np.arange(_STEPS), len(rows))
    logs = Sessions(
      np.repeat(rows, _STEPS),
      observation.profile,
      observation.history,
      slate,
      result.response,
      session=np.zeros(len(slate), int),
      step=step_of,
      terminated=result.terminated,
    )
    mixed = np.random.default_rng(0).permutation(len(slate))
    made = transitions.transitions(
      jax.tree.map(lambda x: np.asarray(x)[mixed], logs),
      result.reward[mixed],
      np.zeros(slate.shape),
      observed_items=5,
    )
    want = (observation, result.observation.shown, result.reward, slate)
    own = (made.observation, made.next_shown, made.reward, made.slate)
    jax.tree.map(np.testing.assert_array_equal, own, want)
    np.testing.assert_array_equal(made.next_history, result.observation.history)
    self.assertGreater(result.response.sum(), 5)


class LoggingPolicyTest(absltest.TestCase):
  def test_logged_propensities_are_known(self):
    logs = _logs(propensity=np.full((5, 2), 0.25))
    np.testing.assert_allclose(
      transitions.logging_policy(logs, 9), np.log(0.25)
    )

  def test_the_estimate_is_by_how_often_an_item_was_shown(self):
    known = transitions.logging_policy(_logs(), 9)
    # Ten are shown, of nine items: item 1 twice, item 7 once.
    want = np.log([(2 + 1) / 19, (1 + 1) / 19])
    own = [known[0, 0], known[2, 1]]
    np.testing.assert_allclose(own, want, rtol=1e-6)

  def test_slates_without_propensities_are_estimated_alone(self):
    some = np.full((5, 2), 0.25)
    some[[1, 3]] = np.nan
    found = transitions.logging_policy(_logs(propensity=some), 9)
    np.testing.assert_allclose(found[[0, 2, 4]], np.log(0.25))
    want = transitions.logging_policy(_logs(), 9)
    np.testing.assert_array_equal(found[[1, 3]], want[[1, 3]])


if __name__ == "__main__":
  absltest.main()
