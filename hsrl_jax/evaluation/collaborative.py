"""Lists by who liked what: EASE^R and implicit ALS.

Both know the positive pairs of user and item of the training logs alone, and
rank for the items of a history, whoever liked these.
"""

import jax.numpy as jnp
import numpy as np
import scipy.sparse

from hsrl_jax.data import item_vectors
from hsrl_jax.evaluation.ranking import ScoreFn
from hsrl_jax.types import Array, Observation, Sessions

MOST_ITEMS = 10_000  # EASE^R has a number for each pair of items.
# Chosen by recall@10 on the validation split of MovieLens-latest-small.
_RIDGE = 300.0  # Of EASE^R.
_WIDTH, _SWEEPS = 32, 10  # Of ALS.
_CONFIDENCE, _PENALTY = 3.0, 10.0  # alpha and lambda of ALS.
_ROWS = 10_000  # Of ALS, solved at once.


def ease(train: Sessions, items: int) -> tuple[ScoreFn, Array]:
  """EASE^R (Steck, arXiv 1905.03375): B = I - P / diag(P), [N + 1, N + 1].

  P is the inverse of X' X + ridge I, of positives X, [U, N].
  """
  x = _positives(train, items)
  users = x.shape[0]
  if users < items:  # By the smaller of both inverses.
    gram = (x @ x.T).toarray() + _RIDGE * np.eye(users, dtype=np.float32)
    p = -(x.T @ (x.T @ np.linalg.inv(gram)).T) / _RIDGE
    p[np.diag_indices(items + 1)] += 1 / _RIDGE
  else:
    gram = (x.T @ x).toarray() + _RIDGE * np.eye(items + 1, dtype=np.float32)
    p = np.linalg.inv(gram)
  p /= -np.diag(p).copy()
  p[np.diag_indices(items + 1)] = 0
  return _of_history, jnp.asarray(p, jnp.float32)


def als(train: Sessions, items: int) -> tuple[ScoreFn, tuple[Array, Array]]:
  """Implicit ALS (Hu, Koren and Volinsky, 2008): item factors y, [N + 1, F].

  A user's factors are fitted to the history, with confidence 1 + alpha in what
  is liked and 1 in all else. Beside y its Gram matrix with the penalty.
  """
  x = _positives(train, items)
  y = np.random.default_rng(0).normal(0, 0.1, (items + 1, _WIDTH))
  for _ in range(_SWEEPS):
    y = _solved(x.T.tocsr(), _solved(x, y))
  return _folded_in, (
    jnp.asarray(y, jnp.float32),
    jnp.asarray(_gram(y), jnp.float32),
  )


def _positives(train: Sessions, items: int) -> scipy.sparse.csr_array:
  """1 where a user of the training logs liked an item, [U, N + 1]."""
  user, item = item_vectors.positives(train)
  _, row = np.unique(user, return_inverse=True)
  ones = np.ones(len(row), np.float32)
  shape = (int(row.max(initial=-1)) + 1, items + 1)
  return scipy.sparse.csr_array((ones, (row, item)), shape=shape)


def _gram(y: np.ndarray) -> np.ndarray:
  return y.T @ y + _PENALTY * np.eye(y.shape[1])


def _solved(x: scipy.sparse.csr_array, y: np.ndarray) -> np.ndarray:
  """Factors of the rows of x, [R, F], by those of its columns."""
  squares = (y[:, :, None] * y[:, None, :]).reshape(len(y), -1)
  gram, parts = _gram(y), []
  for first in range(0, x.shape[0], _ROWS):
    rows = x[first : first + _ROWS]
    own = _CONFIDENCE * (rows @ squares).reshape(-1, *[y.shape[1]] * 2)
    right = (1 + _CONFIDENCE) * (rows @ y)
    solved = np.linalg.solve(gram + own, right[..., None])
    parts.append(solved[..., 0])
  return np.concatenate(parts)


def _of_history(weights: Array, observation: Observation) -> Array:
  past = observation.history
  return jnp.where(past[:, None] > 0, weights[past], 0.0).sum(0)


def _folded_in(params: tuple[Array, Array], observation: Observation) -> Array:
  y, gram = params
  past = observation.history
  own = jnp.where(past[:, None] > 0, y[past], 0.0)
  left = gram + _CONFIDENCE * own.T @ own
  return y @ jnp.linalg.solve(left, (1 + _CONFIDENCE) * own.sum(0))
