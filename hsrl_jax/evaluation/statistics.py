"""Means, ratios and differences with intervals; NumPy, float64, on the host.

A ratio is one of two means over independent units, such as users: what they
earned by the sessions they had. Its error follows from the influence of each
unit on it (the delta method): the ratio moves by the mean of them.
"""

from collections.abc import Sequence

import numpy as np
import scipy

RESAMPLES = 2_000  # Of a paired bootstrap.
MIN_USERS = 20  # An interval over fewer is not trusted: one of them decides.


def summarise(
  per_seed: Sequence[np.ndarray], user: np.ndarray | None = None
) -> dict:
  """Mean and 95 % confidence interval of a measure.

  Args:
    per_seed: for each seed, the measure of each session, [E].
    user: int [E], the user of each session; sessions of one user are dependent.
      None: each session is of a user of its own.

  Returns:
    {"mean", "ci95": [low, high], "per_seed": [...]}. With several seeds the
    interval is Student's over the seeds' means; with one, over the users.
  """
  per_seed = [np.asarray(x, np.float64) for x in per_seed]
  means = np.array([x.mean() for x in per_seed])
  sample = means if len(means) > 1 else by_user(per_seed[0][None], user)[0]
  mean = float(means.mean())
  return {
    "mean": mean,
    "ci95": interval(mean, standard_error(sample), len(sample)),
    "per_seed": [float(m) for m in means],
  }


def by_user(values: np.ndarray, user: np.ndarray | None) -> np.ndarray:
  """A value for each user, [S, U], whose mean over users is that of sessions.

  It is the mean plus the user's influence on it (see the module); where all
  have as many sessions, the mean of the user's sessions.

  Args:
    values: float [S, E], of each seed and session.
    user: int [E], the user of each session; None: each is of its own.
  """
  values = np.asarray(values, np.float64)
  if user is None:
    return values
  sessions = by_group(np.ones(values.shape[1]), user)
  rows = [ratio(by_group(x, user), sessions) for x in values]
  return np.stack([mean + influence for mean, influence in rows])


def perplexity(counts: np.ndarray) -> float:
  """exp(entropy) of counts, [V]: the number of values as evenly used.

  Args:
    counts: how often each value occurs; one at least is above 0.
  """
  shares = counts[counts > 0] / counts.sum()
  return float(np.exp(-np.sum(shares * np.log(shares))))


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
  """Standard error of a mean of [U] values, or of an estimate by influences.

  It is 0 for a single unit.
  """
  units = len(influence)
  return float(np.std(influence, ddof=1) / units**0.5) if units > 1 else 0.0


def interval(value: float, error: float, units: int) -> list[float]:
  """Student's 95 % confidence interval, [low, high]."""
  half = error * float(scipy.stats.t.ppf(0.975, max(units - 1, 1)))
  return [value - half, value + half]


def skewed_interval(value: float, influence: np.ndarray) -> list[float]:
  """A 95 % interval of an estimate by [U] influences that may be skewed.

  Student's t is transformed by a cubic polynomial that takes its skewness away:
  Hall, "On the removal of skewness by transformation", 1992. A symmetric
  interval of rare rewards or large weights is as wide but too low.
  """
  units, error = len(influence), standard_error(influence)
  if error == 0:
    return [value, value]
  # Skewness of the estimate, which shrinks with the number of units.
  centred = influence - influence.mean()
  skew = (centred**3).mean() / (centred**2).mean() ** 1.5 / units**0.5
  quantile = float(scipy.stats.t.ppf(0.975, units - 1))

  def restored(t: float) -> float:
    if abs(skew) < 1e-6:
      return t
    return 3 / skew * (np.cbrt(1 + skew * (t - skew / 6)) - 1)

  return [float(value - error * restored(x)) for x in (quantile, -quantile)]


def p_value(value: float, error: float, units: int) -> float:
  """Two-sided, of the hypothesis that the true value is 0 (Student's t)."""
  if error == 0:
    return float(value == 0)
  return float(2 * scipy.stats.t.sf(abs(value) / error, max(units - 1, 1)))


def holm(p_values: np.ndarray) -> np.ndarray:
  """Holm's adjusted p-values, [M] -> [M]: of M hypotheses tested at once.

  Holm, "A simple sequentially rejective multiple test procedure", 1979.
  """
  p_values = np.asarray(p_values, np.float64)
  order = np.argsort(p_values)
  left = np.arange(len(p_values), 0, -1)
  adjusted = np.maximum.accumulate(p_values[order] * left)
  return np.minimum(adjusted, 1.0)[np.argsort(order)]


def sample_size(
  difference: float, variances: tuple[float, float]
) -> int | None:
  """Units that each of two unpaired arms needs to show a difference.

  n = (z_0.975 + z_0.8)^2 (v_A + v_B) / difference^2: a two-sided test of level
  0.05 finds it with probability 0.8.
  NormalIndPower of statsmodels has the same figures, but NaN for n near 2; its
  67 MB would serve this formula and `holm` alone.

  Args:
    difference: the true one.
    variances: of one unit in each arm.

  Returns:
    n, at least 2; None where there is no difference to show.
  """
  if difference == 0:
    return None
  z = scipy.stats.norm.ppf([0.975, 0.8]).sum()
  return max(2, int(np.ceil(z**2 * sum(variances) / difference**2)))


def difference(
  a: np.ndarray,
  b: np.ndarray,
  user: np.ndarray | None = None,
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> dict:
  """How much more `a` has than `b`, with a 95 % confidence interval.

  Of the mean over seeds and users, both as drawn from many. A bootstrap of two
  levels draws users for both policies at once, since session e of both is of
  the same user with the same luck, and the seeds of each, which have nothing
  in common. A single seed is taken as it is.

  By itself such a bootstrap counts what users and seeds do together twice, and
  its percentiles know nothing of how few seeds there are. So its spread around
  the mean is brought to that of `error`, and to Student's distribution: what
  the bootstrap gives is the shape. See docs/method.md for the coverage.

  Args:
    a: [S, E], a measure of each session of each seed.
    b: [S', E], the same of another policy.
    user: int [E], the user of each session; None: each is of its own.
    resamples: of the bootstrap.
    seed: of the resampling.

  Returns:
    {"mean", "ci95": [low, high]}.
  """
  rng = np.random.default_rng(seed)
  a, b = by_user(a, user), by_user(b, user)
  users = _drawn_shares(rng, a.shape[1], resamples)
  means = []
  for x in (a, b):
    drawn = _drawn_shares(rng, len(x), resamples)
    means.append(((users @ x.T) * drawn).sum(1))
  mean, drawn = float(a.mean() - b.mean()), means[0] - means[1]
  wide, units = error(a, b)
  spread, quantile = drawn.std(), scipy.stats.norm.ppf(0.975)
  scale = 0.0
  if spread > 0:
    scale = wide / spread * float(scipy.stats.t.ppf(0.975, units)) / quantile
  ends = np.percentile(drawn - drawn.mean(), [2.5, 97.5])
  low, high = mean + scale * ends
  return {"mean": mean, "ci95": [float(low), float(high)]}


def error(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
  """Standard error of mean(a) - mean(b), and its degrees of freedom.

  Users are crossed with seeds: x = seed + user + seed * user, the first of each
  policy, the others paired. The variance is that of the users' differences,
  averaged over seeds, by the number of users, and of each policy's seeds as far
  as it is beyond what its users explain, never below 0. The degrees of freedom
  are Satterthwaite's, "An approximate distribution of estimates of variance
  components", 1946.

  Args:
    a: [S, U], a value for each seed and user.
    b: [S', U], of another policy.
  """
  users = a.shape[1]
  if users < 2:
    return 0.0, 1.0
  own = (a.mean(0) - b.mean(0)).var(ddof=1) / users
  total, uncertain = own, own**2 / (users - 1)
  for x in (a, b):
    seeds = len(x)
    if seeds < 2:
      continue
    between = x.mean(1).var(ddof=1) / seeds
    rest = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    freedom = (seeds - 1) * (users - 1)
    within = (rest**2).sum() / freedom / (seeds * users)
    if between > within:
      total += between - within
      uncertain += between**2 / (seeds - 1) + within**2 / freedom
  units = total**2 / uncertain if uncertain > 0 else users - 1.0
  return float(np.sqrt(total)), float(units)


def _drawn_shares(
  rng: np.random.Generator, count: int, resamples: int
) -> np.ndarray:
  """How often each is drawn in `count` draws, a share; [resamples, count]."""
  return rng.multinomial(count, np.full(count, 1 / count), resamples) / count
