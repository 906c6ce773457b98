"""Intervals, tests and sample sizes of ratios; NumPy, float64, on the host.

A measure is a ratio of two means over independent units, such as users: what
they earned by the sessions they had. Everything follows from the influence of
each unit on it (the delta method): the ratio moves by the mean of them.
"""

import numpy as np
from scipy import stats


def by_group(values: np.ndarray, group: np.ndarray) -> np.ndarray:
  """Sums of [E] values over the rows of each group, [U], by ascending group.

  Args:
    values: float [E].
    group: int [E], such as the user of each session.
  """
  _, place = np.unique(group, return_inverse=True)
  return np.bincount(place, np.asarray(values, np.float64))


def ratio(
  numerator: np.ndarray, denominator: np.ndarray
) -> tuple[float, np.ndarray]:
  """The ratio of two means, and each unit's influence on it.

  Args:
    numerator: float [U].
    denominator: float [U], its sum above 0.

  Returns:
    The ratio, and the influences, [U], whose mean is 0.
  """
  numerator = np.asarray(numerator, np.float64)
  denominator = np.asarray(denominator, np.float64)
  value = numerator.sum() / denominator.sum()
  return float(value), (numerator - value * denominator) / denominator.mean()


def standard_error(influence: np.ndarray) -> float:
  """Of an estimate with these influences, [U]; 0 for a single unit."""
  return float(stats.sem(influence)) if len(influence) > 1 else 0.0


def interval(value: float, error: float, units: int) -> list[float]:
  """Student's 95 % confidence interval, [low, high]."""
  half = error * float(stats.t.ppf(0.975, max(units - 1, 1)))
  return [value - half, value + half]


def p_value(value: float, error: float, units: int) -> float:
  """Two-sided, of the hypothesis that the true value is 0 (Student's t)."""
  if error == 0:
    return float(value == 0)
  return float(2 * stats.t.sf(abs(value) / error, max(units - 1, 1)))


def holm(p_values: np.ndarray) -> np.ndarray:
  """Holm's adjusted p-values, [M] -> [M]: of M hypotheses tested at once.

  Holm, "A simple sequentially rejective multiple test procedure", 1979.
  """
  p_values = np.asarray(p_values, np.float64)
  order = np.argsort(p_values, kind="stable")
  left = len(p_values) - np.arange(len(p_values))
  adjusted = np.maximum.accumulate(p_values[order] * left)
  found = np.empty_like(p_values)
  found[order] = np.minimum(adjusted, 1.0)
  return found


def sample_size(
  difference: float,
  variances: tuple[float, float],
  *,
  power: float = 0.8,
  level: float = 0.05,
) -> int | None:
  """Units that each of two unpaired arms needs to show a difference.

  n = (z_{1 - level / 2} + z_power)^2 (v_A + v_B) / difference^2, two-sided.
  NormalIndPower of statsmodels has the same figures, but NaN for n near 2; its
  67 MB would serve this formula and `holm` alone.

  Args:
    difference: the true one.
    variances: of one unit in each arm.
    power: probability that the test finds it.
    level: of the test.

  Returns:
    n, at least 2; None where there is no difference to show.
  """
  if difference == 0:
    return None
  z = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
  return max(2, int(np.ceil(z**2 * sum(variances) / difference**2)))
