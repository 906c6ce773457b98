"""EASE^R and ALS, beside the problems that they solve."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.evaluation import collaborative
from hsrl_jax.types import Observation, Sessions


def _sessions(users, items):
  """Slates of three with a history of two, so that users like several items."""
  rng = np.random.default_rng(0)
  rows = 2 * users
  slates = np.stack([rng.permutation(items)[:5] + 1 for _ in range(rows)])
  return Sessions(
    np.repeat(np.arange(users) + 7, 2),
    np.zeros((rows, 0), np.float32),
    slates[:, 3:],
    slates[:, :3],
    (rng.random((rows, 3)) < 0.7).astype(np.float32),
  )


def _positives(sessions, items):
  x = np.zeros((len(np.unique(sessions.user_id)), items + 1))
  for user, past, slate, response in zip(
    sessions.user_id, *sessions[2:5], strict=True
  ):
    x[user - 7, past] = 1
    x[user - 7, slate[response > 0]] = 1
  return x


def _user(*history):
  return Observation(jnp.zeros(0), jnp.asarray(history))


class EaseTest(parameterized.TestCase):
  @parameterized.parameters((40, 12), (8, 12))
  def test_each_item_is_a_ridge_regression_on_the_others(self, users, items):
    sessions = _sessions(users, items)
    x = _positives(sessions, items)
    score, weights = collaborative.ease(sessions, items)
    for item in range(1, items + 1):
      others = np.delete(np.arange(items + 1), item)
      a = x[:, others]
      want = np.linalg.solve(
        a.T @ a + collaborative._RIDGE * np.eye(items), a.T @ x[:, item]
      )
      np.testing.assert_allclose(weights[others, item], want, atol=1e-5)
      self.assertEqual(weights[item, item], 0)
    scores = score(weights, _user(0, 3, 5))
    np.testing.assert_allclose(scores, weights[3] + weights[5], rtol=1e-5)


class AlsTest(absltest.TestCase):
  @mock.patch.multiple(collaborative, _WIDTH=3, _SWEEPS=400, _PENALTY=0.7)
  def test_factors_are_where_the_loss_is_flat(self):
    users, items = 30, 12
    sessions = _sessions(users, items)
    x = _positives(sessions, items)
    score, params = collaborative.als(sessions, items)
    y = np.asarray(params[0], np.float64)
    confidence = 1 + collaborative._CONFIDENCE * x
    penalty = 0.7 * np.eye(3)
    u = np.stack(
      [
        np.linalg.solve(y.T @ (c[:, None] * y) + penalty, y.T @ (c * row))
        for c, row in zip(confidence, x, strict=True)
      ]
    )
    gradient = jax.grad(
      lambda y: (confidence * (x - u @ y.T) ** 2).sum() + 0.7 * (y**2).sum()
    )(jnp.asarray(y))
    np.testing.assert_allclose(gradient, 0, atol=2e-3)
    self.assertGreater(np.abs(y[1:]).max(), 0.1)
    likes = np.flatnonzero(x[4])
    found = score(params, _user(0, *likes))
    np.testing.assert_allclose(found, y @ u[4], atol=1e-4)


if __name__ == "__main__":
  absltest.main()
