"""Sessions scored by a matrix, against sessions added up by hand."""

import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.sim import leave, truth
from tests import toy

ROWS = toy.USERS + 3  # A matrix may know more users than the pool has.


class ReadTest(parameterized.TestCase):
  def _path(self, matrix, allow_pickle=False):
    path = pathlib.Path(self.create_tempdir()) / "matrix.npy"
    buffer = io.BytesIO()
    np.save(buffer, matrix, allow_pickle=allow_pickle)
    path.write_bytes(buffer.getvalue())
    return path

  def test_the_matrix_is_padded(self):
    matrix = np.arange(6).reshape(2, 3)
    found = truth.read(self._path(matrix), users=2, items=3)
    np.testing.assert_array_equal(found, [[0, 0, 1, 2], [0, 3, 4, 5]])
    self.assertEqual(found.dtype, np.float32)

  @parameterized.parameters(
    (np.ones((2, 4)), r"is float64 \[2, 4\]; expected .*\[2, 3\]"),
    (np.ones((1, 3)), r"is float64 \[1, 3\]; expected"),
    (np.ones(3), r"is float64 \[3\]; expected"),
    (np.array([["a"] * 3] * 2), "expected a matrix of numbers"),
    (np.array([[1, 2, 3], [4, np.nan, 5]]), r"\[1, 1\] is nan \(1 such"),
  )
  def test_others_are_refused_in_one_line(self, matrix, error):
    with self.assertRaisesRegex(InputError, error) as caught:
      truth.read(self._path(matrix), users=2, items=3)
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_no_file(self):
    with self.assertRaisesRegex(InputError, "is missing; expected a matrix"):
      truth.read(pathlib.Path("nowhere.npy"), users=2, items=3)


class SessionsTest(absltest.TestCase):
  def test_sessions_earn_ratings_and_users_leave_by_their_columns(self):
    rng = np.random.default_rng(0)
    ratings = rng.uniform(1, 5, (ROWS, toy.ITEMS + 1)).astype(np.float32)
    ratings[:, 0] = 0
    near = leave.nearness(ratings.T, 30.0)
    user_id = rng.permutation(ROWS)[: toy.USERS] + 1
    env = truth.scored(
      toy.env(no_repeat=True)._replace(
        leave=leave.DistanceRule(3), slate_size=1
      )
    )
    users = truth.pool(toy.users()._replace(near=near), ratings, user_id)
    active = jnp.arange(toy.ITEMS + 1) > 0
    policies = {
      "greedy": (bounds.greedy_oracle(env), (users, active)),
      "farsighted": (bounds.farsighted(env), (users, active)),
    }
    earned = {}
    for name, (act, params) in policies.items():
      sessions = simulate.simulate(
        act, env, params, users, jax.random.key(0), episodes=toy.USERS
      )
      earned[name] = float(sessions.total_reward.mean())
      for e, user in enumerate(user_id):
        shown = np.asarray(sessions.slates)[e, :, 0]
        shown = shown[shown > 0].tolist()
        own = ratings[user - 1, shown]
        self.assertAlmostEqual(
          float(sessions.total_reward[e]), float(own.sum()), places=4
        )
        np.testing.assert_array_equal(
          np.asarray(sessions.responses)[e, : len(shown), 0], own >= 3.5
        )
        best = ratings[user - 1].argmax()
        self.assertEqual(shown[0], best)
    self.assertGreater(earned["farsighted"], earned["greedy"])
    constant = bounds.mean_probabilities(env, users, num_items=toy.ITEMS)
    np.testing.assert_allclose(
      constant[1:], ratings[user_id - 1, 1:].mean(0) / ratings.max(), rtol=1e-5
    )


if __name__ == "__main__":
  absltest.main()
