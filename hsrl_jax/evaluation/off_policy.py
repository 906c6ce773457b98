"""Estimates a policy's value from logs of another one.

The logs are S sessions of up to T decisions; a bandit's session is one
decision. In step t of a session the logging policy took action a with
probability mu, where the target policy takes it with probability pi. The weight
of a step is W_t = prod_{u <= t} pi_u / mu_u, and the value is that of a
session, V = E sum_t gamma^t r_t.

All estimates are sums of means over sessions, or of ratios of such means, so
that each user moves them by an influence (statistics.py). Intervals are by
these influences, and know their skewness: where rewards are rare or weights
large, a symmetric interval is too low. NumPy, float64, on the host.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import statistics

# Below it nothing is estimated. Intervals hold above it, see the tests.
MIN_EFFECTIVE_SAMPLE = 100.0
# Rewards other than the most frequent one, by the effective sample. Those that
# count most may not have been seen: below the first no difference is believed,
# below the second a value's interval is too short (0.85 to 0.92 in trials).
MIN_EFFECTIVE_REWARDS = 20.0
FEW_EFFECTIVE_REWARDS = 6.0
# Weights average 1 if the logging policy may take all that the target may. They
# are off where they are by this much, and by so many standard errors.
MAX_WEIGHT_BIAS = 0.05
_WEIGHT_ERRORS = 5.0

LOGGING_POLICY, ON_POLICY = "logging_policy", "on_policy"


class Logged(NamedTuple):
  """S logged sessions of at most T decisions, as a target policy sees them.

  After its end a session has 1 for both probabilities, and 0 for all else.
  """

  target: np.ndarray  # float [S, T], pi of the action that was taken.
  logging: np.ndarray  # float [S, T], mu of it, its propensity.
  reward: np.ndarray  # float [S, T].
  # float [S, T], a model's Q of state and action: what is earned from here on.
  predicted: np.ndarray
  # float [S, T], sum_a pi(a) Q(a), the same before the action.
  expected: np.ndarray
  user: np.ndarray  # int [S]; the sessions of a user are not independent.


class Estimate(NamedTuple):
  """A value, and how each user moves it."""

  value: float  # Of a session.
  influence: np.ndarray  # float [U], by ascending user; its mean is 0.


def bandit(user: np.ndarray, **columns: np.ndarray) -> Logged:
  """Slates of K items as sessions of one decision, one for each item.

  The response to an item is taken to depend on the user, the item and its
  place alone, not on the other items of the slate.

  Args:
    user: int [R].
    **columns: float [R, K], the other fields of Logged.

  Raises:
    InputError: see `check`.
  """
  _, slate_size = np.shape(columns["target"])
  flat = {
    name: np.asarray(x, np.float64).reshape(-1, 1)
    for name, x in columns.items()
  }
  logged = Logged(**flat, user=np.repeat(user, slate_size))
  check(logged)
  return logged


def sessions(
  session: np.ndarray, step: np.ndarray, user: np.ndarray, **columns: np.ndarray
) -> Logged:
  """Rows of one decision each as sessions, filled up after their end.

  Args:
    session: int [R].
    step: [R], the order within a session.
    user: int [R], the same in all rows of a session.
    **columns: float [R], the other fields of Logged.

  Raises:
    InputError: a step is in a session twice, or see `check`.
  """
  order = np.lexsort((step, session))
  _, row, count = np.unique(
    session[order], return_inverse=True, return_counts=True
  )
  first = np.cumsum(count) - count
  place = np.arange(len(order)) - first[row]
  again = (place[1:] > 0) & (step[order][1:] == step[order][:-1])
  if again.any():
    at = order[1:][again][0]
    raise InputError(
      f"session {session[at]} has step {step[at]} twice; expected each once"
    )
  shape = len(count), count.max()
  filled = {"target": np.ones(shape), "logging": np.ones(shape)}
  for name, column in columns.items():
    table = filled.setdefault(name, np.zeros(shape))
    table[row, place] = np.asarray(column, np.float64)[order]
  logged = Logged(**filled, user=user[order][first])
  check(logged)
  return logged


def check(logged: Logged) -> None:
  """Checks probabilities and rewards.

  Raises:
    InputError: a propensity outside (0, 1], or another entry that is no number.
  """
  mu = np.asarray(logged.logging, np.float64)
  bad = ~((mu > 0) & (mu <= 1))
  if bad.any():
    found = "missing" if np.isnan(mu[bad][0]) else f"{mu[bad][0]:g}"
    raise InputError(
      f"a propensity is {found} ({int(bad.sum())} such actions); expected "
      "probabilities in (0, 1] for all that was logged"
    )
  for name in ("target", "reward", "predicted", "expected"):
    if not np.isfinite(getattr(logged, name)).all():
      raise InputError(f"{name} is not finite; expected finite numbers")
  if (np.asarray(logged.target) < 0).any() or (logged.target > 1.0001).any():
    raise InputError("a policy's probability is outside 0 to 1")


def weights(logged: Logged) -> np.ndarray:
  """W_t, the product of pi / mu up to each step, [S, T]."""
  ratio = np.asarray(logged.target, np.float64) / logged.logging
  return np.cumprod(ratio, axis=1)


def effective_sample_size(weight: np.ndarray) -> float:
  """Kish's (sum w)^2 / sum w^2: 1 to the number of weights; 0 if all are 0."""
  weight = np.asarray(weight, np.float64)
  square = (weight**2).sum()
  return float(weight.sum() ** 2 / square) if square > 0 else 0.0


def effective_rewards(logged: Logged) -> float:
  """Share of rewards that differ from the most frequent one, by the ESS."""
  _, counts = np.unique(logged.reward.sum(1), return_counts=True)
  ess = effective_sample_size(weights(logged)[:, -1])
  return ess * float(1 - counts.max() / counts.sum())


def ips(logged: Logged, discount: float = 1.0) -> Estimate:
  """Importance sampling by decision: mean of sum_t gamma^t W_t r_t.

  Unbiased where mu is right and covers pi. Precup et al., "Eligibility traces
  for off-policy policy evaluation", 2000.
  """
  gain = weights(logged) * logged.reward * _discounts(logged, discount)
  return _mean(gain.sum(1), logged.user)


def snips(logged: Logged, discount: float = 1.0) -> Estimate:
  """The same, self-normalised: sum_t gamma^t (sum W_t r_t / sum W_t).

  Consistent, and in the range of the rewards. Swaminathan and Joachims, "The
  self-normalized estimator for counterfactual learning", 2015; by decision as
  in Thomas, "Safe reinforcement learning", 2015.
  """
  weight = weights(logged)
  value, influence = 0.0, 0.0
  for t, factor in enumerate(_discounts(logged, discount)):
    of_step, moved = statistics.ratio(
      statistics.by_group(weight[:, t] * logged.reward[:, t], logged.user),
      statistics.by_group(weight[:, t], logged.user),
    )
    value, influence = value + factor * of_step, influence + factor * moved
  return Estimate(value, influence)


def doubly_robust(logged: Logged, discount: float = 1.0) -> Estimate:
  """A model's value, put right by the weighted errors of the model.

  Mean of sum_t gamma^t (W_{t-1} sum_a pi(a) Q(a) + W_t (r_t - Q_t)). Unbiased
  where mu or Q is right, as long as Q was not fitted to the same rows. Dudik et
  al., "Doubly robust policy evaluation and learning", 2011; Jiang and Li,
  "Doubly robust off-policy value evaluation for reinforcement learning", 2016.
  """
  weight = weights(logged)
  before = np.concatenate([np.ones_like(weight[:, :1]), weight[:, :-1]], 1)
  gain = before * logged.expected + weight * (logged.reward - logged.predicted)
  return _mean((gain * _discounts(logged, discount)).sum(1), logged.user)


ESTIMATORS: Mapping[str, Callable[..., Estimate]] = {
  "ips": ips,
  "snips": snips,
  "dr": doubly_robust,
}


def _discounts(logged: Logged, discount: float) -> np.ndarray:
  return discount ** np.arange(np.shape(logged.reward)[1], dtype=np.float64)


def _mean(rows: np.ndarray, user: np.ndarray) -> Estimate:
  sessions = statistics.by_group(np.ones(len(rows)), user)
  return Estimate(*statistics.ratio(statistics.by_group(rows, user), sessions))


def refusal(logged: Logged) -> str | None:
  """Why nothing can be estimated from the logs, a sentence; None: it can."""
  weight = weights(logged)[:, -1]
  ess, rows = effective_sample_size(weight), len(weight)
  users = len(np.unique(logged.user))
  if not ess:
    return "no overlap: the policy never does what was logged"
  if ess < MIN_EFFECTIVE_SAMPLE:
    return (
      f"too little overlap: the effective sample is {ess:.0f} of {rows:,}; "
      f"expected at least {MIN_EFFECTIVE_SAMPLE:.0f}"
    )
  if users < (least := statistics.MIN_USERS):
    return f"{users} users were logged; expected at least {least}"
  mean, influence = _mean(weight, logged.user)
  error = statistics.standard_error(influence)
  if abs(mean - 1) > max(MAX_WEIGHT_BIAS, _WEIGHT_ERRORS * error):
    return (
      f"the weights' mean is {mean:.2f} where it should be 1: the policy does "
      "what the logging policy never does, or propensities are wrong"
    )
  if np.ptp(logged.reward) == 0:
    return f"every reward is {logged.reward.flat[0]:g}: nothing differs"
  return None


def estimates(logged: Logged) -> dict[str, dict]:
  """All estimates of a target policy.

  Returns:
    For each of ESTIMATORS {"mean", "ci95": [low, high], "ess"}; where
    `refusal` has a reason {"mean": None, "ci95": None, "ess", "refused"}; and
    "caution", a sentence, where few rewards make intervals too short.
  """
  check(logged)
  why = refusal(logged)
  ess = effective_sample_size(weights(logged)[:, -1])
  if why is not None:
    refused = {"mean": None, "ci95": None, "ess": ess, "refused": why}
    return {name: dict(refused) for name in _estimators(logged)}
  more, rewards = {"ess": ess}, effective_rewards(logged)
  if rewards < FEW_EFFECTIVE_REWARDS:
    more["caution"] = (
      f"the logs are worth {rewards:.1f} rewards of the policy; below "
      f"{FEW_EFFECTIVE_REWARDS:.0f} a 95 % interval is too short"
    )
  return {
    name: shown(estimate(logged)) | more
    for name, estimate in _estimators(logged).items()
  }


def _estimators(logged: Logged) -> Mapping[str, Callable[..., Estimate]]:
  """Those of ESTIMATORS that say something: doubly robust ones need a model."""
  has_model = logged.predicted.any() or logged.expected.any()
  return {k: x for k, x in ESTIMATORS.items() if k != "dr" or has_model}


def on_policy(logged: Logged) -> Logged:
  """The logs as their own logging policy sees them; any estimate is its mean.

  Without a model: `predicted` and `expected` are 0.
  """
  nothing = np.zeros_like(logged.reward)
  return logged._replace(
    target=logged.logging, predicted=nothing, expected=nothing
  )


def compare(
  policies: Mapping[str, Logged], what: str = "off_policy"
) -> dict[str, dict]:
  """Target policies beside the policy that logged.

  Args:
    policies: name to the same logs, as each policy sees them.
    what: the name of what is returned.

  Returns:
    Two tables. Named `what`: name to `estimates`, and LOGGING_POLICY to
    {ON_POLICY: its mean}. Named the same with "_differences" after it: name to
    estimator to the policy less the logging policy, {"mean", "ci95"}, paired by
    user, or to {"refused": why}.
  """
  own = on_policy(next(iter(policies.values())))
  real = ips(own)
  table = {name: estimates(x) for name, x in policies.items()}
  table[LOGGING_POLICY] = {
    ON_POLICY: shown(real) | {"ess": float(len(own.user))}
  }
  differences = {
    name: _differences(logged, real) for name, logged in policies.items()
  }
  return {what: table, f"{what}_differences": differences}


def _differences(logged: Logged, real: Estimate) -> dict:
  """Each estimate less the logging policy's mean, or why not."""
  why = refusal(logged)
  if why is None:
    rewards = effective_rewards(logged)
    if rewards >= MIN_EFFECTIVE_REWARDS:
      found = {k: f(logged) for k, f in _estimators(logged).items()}
      return {
        k: shown(Estimate(x.value - real.value, x.influence - real.influence))
        for k, x in found.items()
      }
    why = (
      f"too few rewards differ, {rewards:.0f} by the effective sample; "
      f"expected at least {MIN_EFFECTIVE_REWARDS:.0f} to compare policies"
    )
  return {"refused": why}


def shown(estimate: Estimate) -> dict:
  """{"mean", "ci95": [low, high]} of an estimate."""
  return {"mean": estimate.value, "ci95": statistics.skewed_interval(*estimate)}


def sentences(table: Mapping, table_of_differences: Mapping) -> list[str]:
  """Whether each policy is believed to differ from the one that logged.

  It is where the intervals of all estimators are on one side of 0.

  Args:
    table: name to estimates, of what `compare` returns.
    table_of_differences: the differences beside it.
  """
  said = []
  for name, estimated in table.items():
    if name == LOGGING_POLICY:
      continue
    refused = {x["refused"] for x in estimated.values() if "refused" in x}
    if refused:
      said.append(f"{name}: no estimate; {refused.pop()}.")
      continue
    cautions = {x["caution"] for x in estimated.values() if "caution" in x}
    said += [f"{name}: {caution}." for caution in cautions]
    differences = table_of_differences[name]
    if "refused" in differences:
      said.append(
        f"{name} and the logging policy: whether they differ cannot be told; "
        f"{differences['refused']}."
      )
      continue
    ends = np.array([x["ci95"] for x in differences.values()])
    verdict = "may be chance: an interval has 0 in it, or estimators disagree"
    if (ends > 0).all():
      verdict = "is believable: every interval is above 0"
    elif (ends < 0).all():
      verdict = "is believable: every interval is below 0"
    estimator = "dr" if "dr" in differences else "snips"
    mean = differences[estimator]["mean"]
    low, high = differences[estimator]["ci95"]
    said.append(
      f"{name}, {estimator.upper()}, less the logging policy: {mean:+.4f} "
      f"[{low:.4f}, {high:.4f}]; the difference {verdict}."
    )
  return said
