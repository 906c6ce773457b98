"""Makes a full matrix of ratings out of MovieLens-1M, for --truth.

  python tests/benchmarks/rating_matrix.py RAW_DATA_DIR matrix.npy

RAW_DATA_DIR has the official ratings.dat, users.dat and movies.dat. Row r is
user r + 1, column c the film of item c + 1 of the dataset `movielens_1m`. A
rating is that of a matrix factorisation of all ratings, cut to 1..5: a mean,
biases of users and films, and vectors, fitted by alternating least squares
(Koren, Bell and Volinsky 2009). A tenth of the ratings is held out first to
tell the error; the matrix is fitted to all.
"""

import pathlib
import sys

import numpy as np

from hsrl_jax.shipped.datasets.movielens_1m import (
  movielens_1m_dataset_builder as builder,
)

FACTORS, RIDGE, BIAS_RIDGE, ROUNDS = 16, 8.0, 5.0, 10


def fit(
  user: np.ndarray, item: np.ndarray, rating: np.ndarray, sizes
) -> np.ndarray:
  """The full matrix, float32 [users, items].

  Args:
    user: int [R], from 0.
    item: int [R], from 0.
    rating: float [R].
    sizes: numbers of users and items.
  """
  users, items = sizes
  mean = rating.mean()
  biases = [np.zeros(users), np.zeros(items)]
  keys = (user, item)
  for _ in range(ROUNDS):
    for own, other in ((0, 1), (1, 0)):
      left = rating - mean - biases[other][keys[other]]
      total = np.bincount(keys[own], left, len(biases[own]))
      count = np.bincount(keys[own], minlength=len(biases[own]))
      biases[own] = total / (count + BIAS_RIDGE)
  left = rating - mean - biases[0][user] - biases[1][item]
  rng = np.random.default_rng(0)
  vectors = [rng.normal(0, 0.1, (n, FACTORS)) for n in sizes]
  rows = [_groups(key, n) for key, n in zip(keys, sizes, strict=True)]
  for _ in range(ROUNDS):
    for own, other in ((0, 1), (1, 0)):
      for place, group in enumerate(rows[own]):
        x = vectors[other][keys[other][group]]
        gram = x.T @ x + RIDGE * np.eye(FACTORS)
        vectors[own][place] = np.linalg.solve(gram, x.T @ left[group])
  matrix = mean + biases[0][:, None] + biases[1] + vectors[0] @ vectors[1].T
  return matrix.clip(1, 5).astype(np.float32)


def _groups(key: np.ndarray, count: int) -> list[np.ndarray]:
  """The places of each key 0..count - 1."""
  order = np.argsort(key, kind="stable")
  ends = np.cumsum(np.bincount(key, minlength=count))
  return np.split(order, ends[:-1])


def main(raw: str, target: str) -> None:
  """Reads the ratings, prints the held-out error, and writes the matrix."""
  ratings = builder.load_tables(pathlib.Path(raw)).ratings
  user = ratings.user_id.to_numpy() - 1
  item = ratings["item"].to_numpy() - 1
  rating = ratings.rating.to_numpy(float)
  sizes = user.max() + 1, item.max() + 1
  held_out = np.random.default_rng(1).random(len(rating)) < 0.1
  rest = ~held_out
  found = fit(user[rest], item[rest], rating[rest], sizes)
  error = found[user[held_out], item[held_out]] - rating[held_out]
  print(f"held-out RMSE {np.sqrt((error**2).mean()):.3f}")
  matrix = fit(user, item, rating, sizes)
  np.save(target, matrix)
  print(f"{target}: {matrix.shape}, mean {matrix.mean():.2f}")


if __name__ == "__main__":
  main(*sys.argv[1:])
