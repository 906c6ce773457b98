"""What a policy would earn, estimated from slates that another one showed.

The value is that of one item, V = E_s sum_i pi(i|s) r(s, i). Each of the K
positions of a logged slate counts as one draw of an item by the behaviour
policy mu: a response is taken to depend on the user and the item alone, not on
the rest of the slate, and the items of a slate as if drawn one by one with
replacement. NumPy, float64, on the host.
"""

from typing import NamedTuple

import numpy as np

from hsrl_jax.evaluation import statistics


class Logged(NamedTuple):
  """R logged slates, seen by a target policy pi.

  Attributes:
    weight: float [R, K], pi / mu of each item shown.
    reward: float [R, K], of each item shown.
    predicted: float [R, K], a model's q(s, i) of them.
    expected: float [R], sum_i pi(i|s) q(s, i).
    user: int [R]; the rows of a user are not independent.
  """

  weight: np.ndarray
  reward: np.ndarray
  predicted: np.ndarray
  expected: np.ndarray
  user: np.ndarray


class Estimate(NamedTuple):
  """A value, and its standard error over users.

  Attributes:
    value: reward of one item.
    error: its standard error, by each user's influence.
  """

  value: float
  error: float


def effective_sample_size(weight: np.ndarray) -> float:
  """Kish's (sum w)^2 / sum w^2: 1 to the number of weights; 0 if all are 0."""
  weight = np.asarray(weight, np.float64)
  square = (weight**2).sum()
  return float(weight.sum() ** 2 / square) if square > 0 else 0.0


def snips(logged: Logged) -> Estimate:
  """Self-normalised importance sampling: sum w r / sum w.

  Swaminathan and Joachims, "The self-normalized estimator for counterfactual
  learning", 2015. Consistent where mu is right, and never out of the range of
  the rewards; NaN where all weights are 0.
  """
  if not np.any(logged.weight):
    return Estimate(float("nan"), float("nan"))
  return _estimate(
    (logged.weight * logged.reward).sum(1), logged.weight.sum(1), logged.user
  )


def doubly_robust(logged: Logged) -> Estimate:
  """The model's value, put right by the weighted errors of the model.

  mean_s [sum_i pi(i|s) q(s, i) + mean_k w_k (r_k - q_k)]. Unbiased where mu or
  q is right. Dudik et al., "Doubly robust policy evaluation and learning",
  2011.
  """
  put_right = (logged.weight * (logged.reward - logged.predicted)).mean(1)
  rows = logged.expected + put_right
  return _estimate(rows, np.ones(len(rows)), logged.user)


def direct(logged: Logged) -> Estimate:
  """The model's value alone: as good as q."""
  return _estimate(logged.expected, np.ones(len(logged.expected)), logged.user)


def _estimate(numerator, denominator, user) -> Estimate:
  value, influence = statistics.ratio(
    statistics.by_group(numerator, user),
    statistics.by_group(denominator, user),
  )
  return Estimate(value, statistics.standard_error(influence))
