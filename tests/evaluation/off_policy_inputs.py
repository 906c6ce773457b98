"""Inputs of off-policy estimators, the same wherever they are made.

For `tests/benchmarks/off_policy_obp.py`, which runs without this package, and
for the test that compares its figures.
"""

import numpy as np

SEED, ROWS, ITEMS, PLACES = 20261127, 500, 6, 3
SIDS = np.array([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]])


def _distributions(rng, shape):
  """Positive, and sums to 1 over the last axis."""
  raw = rng.random(shape) + 0.05
  return raw / raw.sum(-1, keepdims=True)


def _taken(rng, distributions):
  """An item of each distribution, by the inverse of its distribution."""
  ends = distributions.cumsum(-1)[..., :-1]
  return (rng.random((*distributions.shape[:-1], 1)) > ends).sum(-1)


def _at(table, item):
  return np.take_along_axis(table, item[..., None], -1)[..., 0]


def bandit():
  """Rows of one impression at one of PLACES.

  Returns:
    `item`, `place` int [R], `reward`, `propensity` [R], `mu` of every item
    [R, ITEMS], `pi` and `q` of every item at every place, [R, PLACES, ITEMS],
    and `sids` [ITEMS, 2].
  """
  rng = np.random.default_rng(SEED)
  place = rng.integers(PLACES, size=ROWS)
  mu = _distributions(rng, (ROWS, ITEMS))
  item = _taken(rng, mu)
  return {
    "item": item,
    "place": place,
    "reward": (rng.random(ROWS) < 0.1 + 0.1 * item).astype(float),
    "propensity": _at(mu, item),
    "pi": _distributions(rng, (ROWS, PLACES, ITEMS)),
    "q": rng.random((ROWS, PLACES, ITEMS)),
    "mu": mu,
    "sids": SIDS,
  }


def sessions():
  """Sessions of PLACES decisions.

  Returns:
    `item` int [R, PLACES], `reward` and `propensity` of the same shape, and
    `pi` and `q` of every item in every step, [R, PLACES, ITEMS].
  """
  rng = np.random.default_rng(SEED + 1)
  mu = _distributions(rng, (ROWS, PLACES, ITEMS))
  item = _taken(rng, mu)
  return {
    "item": item,
    "reward": rng.random((ROWS, PLACES)) * (item + 1),
    "propensity": _at(mu, item),
    "pi": _distributions(rng, (ROWS, PLACES, ITEMS)),
    "q": 3 * rng.random((ROWS, PLACES, ITEMS)),
  }
