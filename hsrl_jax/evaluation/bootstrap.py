"""Paired differences of two policies' sessions, with bootstrap intervals."""

import numpy as np


def difference(
  a: np.ndarray, b: np.ndarray, *, resamples: int, seed: int
) -> dict:
  """How much more `a` has than `b`, with a 95 % confidence interval.

  Session e of both is the same user with the same luck, so that sessions are
  drawn for both at once; trained seeds have nothing in common, and are drawn
  for each. Of S seeds S - 1 are drawn, with replacement: drawing S would give
  their variance too small by (S - 1) / S. With few seeds the percentiles are
  still somewhat narrow; a single seed is taken as it is.

  Args:
    a: [S, E], a measure of each session of each seed.
    b: [S', E], the same of another policy.
    resamples: of the bootstrap.
    seed: of the resampling.

  Returns:
    {"mean", "ci95": [low, high]}.
  """
  rng = np.random.default_rng(seed)
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  sessions = _weights(rng, a.shape[1], a.shape[1], resamples)
  means = []
  for x in (a, b):
    by_seed = sessions @ x.T  # [resamples, S]
    drawn = _weights(rng, len(x), max(len(x) - 1, 1), resamples)
    means.append((by_seed * drawn).sum(1))
  low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
  return {
    "mean": float(a.mean() - b.mean()),
    "ci95": [float(low), float(high)],
  }


def _weights(
  rng: np.random.Generator, count: int, draws: int, resamples: int
) -> np.ndarray:
  """How often each of `count` is drawn, as a share; [resamples, count]."""
  return rng.multinomial(draws, np.full(count, 1 / count), resamples) / draws
