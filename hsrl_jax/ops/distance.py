"""Euclidean distances between the rows of a matrix, on the host."""

import numpy as np

_CELLS = 2**24  # Numbers that are computed at once.


def pairwise(vectors: np.ndarray) -> np.ndarray:
  """The distance of each row to each other, float32 [N, N].

  Args:
    vectors: float [N, D].
  """
  # Differences of rows stay as they are; smaller numbers round less.
  x = vectors - vectors.mean(0, dtype=np.float64)
  squares = (x * x).sum(1)
  found = np.empty((len(x), len(x)), np.float32)
  for first in range(0, len(x), 512):
    rows = slice(first, first + 512)
    squared = squares[rows, None] + squares - 2.0 * (x[rows] @ x.T)
    found[rows] = np.sqrt(squared.clip(min=0.0))
  np.fill_diagonal(found, 0.0)
  return found


def sample(vectors: np.ndarray, pairs: int, seed: int = 0) -> np.ndarray:
  """Distances of pairs of different rows, float32 [pairs].

  Args:
    vectors: float [N, D], N at least 2.
    pairs: how many; each is drawn uniformly, so one may occur again.
    seed: of the draw.
  """
  rng, count = np.random.default_rng(seed), len(vectors)
  one = rng.integers(0, count, pairs)
  other = (one + rng.integers(1, count, pairs)) % count
  found = np.empty(pairs, np.float32)
  block = max(_CELLS // vectors.shape[1], 1)
  for first in range(0, pairs, block):
    at = slice(first, first + block)
    found[at] = np.linalg.norm(vectors[one[at]] - vectors[other[at]], axis=1)
  return found
