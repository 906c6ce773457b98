"""The verdict on a simulator: whether its click model knows the logs.

A simulated reward is worth what the click model is worth where it is asked. So
the model is held against held-out responses, beside predictions that know no
user (the mean of all responses, of the item, of the user), and the slates that
it is asked about are held against those that were logged.

Levels:

- useless: the model orders a user's items no better than chance, predicts worse
  than one number for all, or too few users can tell. Simulated figures mean
  nothing.
- weak: the item's own mean orders or predicts better, probabilities are off, or
  the policy's slates are far from the logged ones. Simulated figures may
  compare policies; they are no forecast.
- good: none of these.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy

from hsrl_jax.evaluation import ranking
from hsrl_jax.evaluation.statistics import MIN_USERS
from hsrl_jax.types import Sessions

LEVELS = ("good", "weak", "useless")

# Mean gap of predicted and observed shares of likes, over ten bins. Half of the
# 0.2 by which a policy that is twice as good would differ at a rate of 0.2.
MAX_CALIBRATION_ERROR = 0.1
# Simulated likes of the policy's slates against the logs' own rate: twice the
# rate is more than the best tenth of logged items shows in any data at hand.
MAX_LIKE_RATIO = 2.0
# Share of the policy's showings whose item has hardly been shown in the logs.
MAX_UNSEEN = 0.5
FEW_SHOWINGS = 5
_BINS = 10

# Beside simulated figures where no rate of likes is known.
NO_RATES = (
  "Negatives were drawn and no base rate is given: simulated likes, rewards "
  "and depths compare policies; they are no rates of likes."
)


class Baselines(NamedTuple):
  """Predictions that know no user, or no item, of the training logs.

  Attributes:
    rate: share of positive responses.
    items: float [N + 1], the item's smoothed share.
    users: the smoothed share of each user who was seen.
    showings: float [N + 1], how often each item was shown.
  """

  rate: float
  items: np.ndarray
  users: Mapping[int, float]
  showings: np.ndarray


def baselines(train: Sessions, items: int) -> Baselines:
  """The means of the training logs, smoothed towards the mean of all.

  Args:
    train: the training logs.
    items: N.
  """
  response = np.asarray(train.response, np.float64)
  showings, liked = ranking.counts(train, items)
  known, place = np.unique(np.asarray(train.user_id), return_inverse=True)
  of_users = ranking.smoothed(
    np.bincount(place) * float(response.shape[1]),
    np.bincount(place, response.sum(1)),
  )
  users = dict(zip(known.tolist(), of_users.tolist(), strict=True))
  of_items = ranking.smoothed(showings, liked)
  return Baselines(float(response.mean()), of_items, users, showings)


def predictions(known: Baselines, sessions: Sessions) -> dict[str, np.ndarray]:
  """What the baselines say of logged slates: name to [S, K]."""
  exposed = np.asarray(sessions.exposed)
  user = [known.users.get(int(x), known.rate) for x in sessions.user_id]
  return {
    "global_mean": np.full(exposed.shape, known.rate),
    "item_mean": known.items[exposed],
    "user_mean": np.broadcast_to(np.array(user)[:, None], exposed.shape),
  }


def measure(
  probability: np.ndarray, response: np.ndarray, user_id: np.ndarray
) -> dict:
  """How well probabilities predict logged responses.

  Args:
    probability: float [S, K].
    response: [S, K], 0 or 1.
    user_id: int [S].

  Returns:
    `log_loss`; `calibration_error`, the mean gap over ten bins of equal width;
    `like_rate`, predicted and observed; `auc`, where there are both responses;
    and, where users have both, `auc_within_users`, their mean AUC, with
    `auc_within_users_ci95` and `users`.
  """
  p = np.clip(np.asarray(probability, np.float64), 1e-7, 1 - 1e-7)
  y = np.asarray(response) > 0
  place = np.minimum((p.ravel() * _BINS).astype(int), _BINS - 1)
  gap = np.bincount(place, p.ravel()) - np.bincount(place, y.ravel())
  measured = {
    "log_loss": float(-np.where(y, np.log(p), np.log1p(-p)).mean()),
    "calibration_error": float(np.abs(gap).sum() / y.size),
    "like_rate": {"predicted": float(p.mean()), "observed": float(y.mean())},
  }
  auc = auc_by_user(p, y, np.zeros(len(p), int))[0]  # As if all were one's.
  if np.isfinite(auc):
    measured["auc"] = float(auc)
  aucs = auc_by_user(p, y, user_id)
  aucs = aucs[np.isfinite(aucs)]
  if len(aucs):
    mean = float(aucs.mean())
    half = 0.0
    if len(aucs) > 1:
      half = float(
        scipy.stats.sem(aucs) * scipy.stats.t.ppf(0.975, len(aucs) - 1)
      )
    measured |= {
      "auc_within_users": mean,
      "auc_within_users_ci95": [mean - half, mean + half],
      "users": len(aucs),
    }
  return measured


def auc_by_user(
  score: np.ndarray, liked: np.ndarray, user_id: np.ndarray
) -> np.ndarray:
  """AUC among each user's responses, [U]; NaN without both responses.

  Args:
    score: float [S, K].
    liked: bool [S, K].
    user_id: int [S].
  """
  _, user = np.unique(user_id, return_inverse=True)
  user = np.repeat(user, score.shape[1])
  order = np.lexsort((score.ravel(), user))
  user, score, liked = user[order], score.ravel()[order], liked.ravel()[order]
  # Equal scores of a user share the mean of their places among all, from 1 on.
  new = (np.diff(user) != 0) | (np.diff(score) != 0)
  tie = np.concatenate([[0], np.cumsum(new)])
  count = np.bincount(tie)
  place = (np.cumsum(count) - (count - 1) / 2)[tie]
  responses, positive = np.bincount(user), np.bincount(user, liked)
  before = np.cumsum(responses) - responses
  ranks = np.bincount(user, place * liked) - positive * before
  pairs = positive * (responses - positive)
  better = ranks - positive * (positive + 1) / 2
  return np.where(pairs > 0, better / np.maximum(pairs, 1), np.nan)


def of_fit(
  probability: Mapping[str, np.ndarray],
  splits: Mapping[str, Sessions],
  known: Baselines,
  *,
  claims_rates: bool = True,
) -> dict:
  """The verdict on a click model, before any policy is simulated.

  Args:
    probability: of `validation` and `test`, [S, K] each.
    splits: their rows.
    known: the baselines.
    claims_rates: whether a rate of likes is known. It is not where the logs
      hold positives alone and nobody gave a base rate: showings without a like
      are made up then (`feedback.Feedback.claims_rates`).

  Returns:
    `verdict`, one of LEVELS; `reasons`, sentences; `claims_rates`; and of each
    split the measures of the click model, with those of the baselines under
    `lists`.
  """
  measured, reasons = (
    {"claims_rates": claims_rates},
    {"useless": [], "weak": []},
  )
  if not claims_rates:
    reasons["weak"].append(
      "the logs hold positive responses alone: what was not liked was drawn, "
      "so no rate of likes can be simulated"
    )
  for name, sessions in splits.items():
    rows = (sessions.response, np.asarray(sessions.user_id))
    lists = {
      x: measure(p, *rows) for x, p in predictions(known, sessions).items()
    }
    model = measure(probability[name], *rows)
    measured[name] = model | {"lists": lists}
    _judge_split(name, model, lists, reasons)
  return _level(reasons) | measured


def _judge_split(name: str, model, lists, reasons) -> None:
  users = model.get("users", 0)
  if users < MIN_USERS:
    reasons["useless"].append(
      f"{name}: {users} users have both responses; from {MIN_USERS} on the "
      "model can be judged"
    )
    return
  low, high = model["auc_within_users_ci95"]
  if low <= 0.5:
    reasons["useless"].append(
      f"{name}: the AUC within users is {model['auc_within_users']:.3f} "
      f"[{low:.3f}, {high:.3f}]: no better than chance"
    )
  if model["log_loss"] >= lists["global_mean"]["log_loss"]:
    reasons["useless"].append(
      f"{name}: the log loss is {model['log_loss']:.3f}, that of one number "
      f"for all {lists['global_mean']['log_loss']:.3f}"
    )
  item = lists["item_mean"]
  if model["auc_within_users"] < item["auc_within_users"]:
    reasons["weak"].append(
      f"{name}: the item's mean orders a user's items better, AUC "
      f"{item['auc_within_users']:.3f} against {model['auc_within_users']:.3f}"
    )
  for other in ("item_mean", "user_mean"):
    if model["log_loss"] > lists[other]["log_loss"]:
      reasons["weak"].append(
        f"{name}: the {other.replace('_', ' ')} predicts better, log loss "
        f"{lists[other]['log_loss']:.3f} against {model['log_loss']:.3f}"
      )
  if model["calibration_error"] > MAX_CALIBRATION_ERROR:
    reasons["weak"].append(
      f"{name}: probabilities are off by {model['calibration_error']:.2f} on "
      "average"
    )


def of_slates(
  quality: Mapping, slates: np.ndarray, like_rate: float, known: Baselines
) -> dict:
  """The verdict once the policy's slates are known too.

  Args:
    quality: what `of_fit` returned.
    slates: int, item ids that the policy showed in the simulator, any shape; 0
      is padding.
    like_rate: share of them that were liked there.
    known: the baselines; `rate` is that of what is shown, so a base rate where
      negatives were drawn.

  Returns:
    `quality` with the verdict and its reasons completed, and `policy_slates`:
    `like_rate`, `logged_like_rate` (both None where `quality` claims no rates),
    `unseen_share` (showings of items that the
    logs show fewer than FEW_SHOWINGS times), `distance` (total variation
    distance of the policy's showings from the logged ones, 0 to 1).
  """
  shown = np.asarray(slates).ravel()
  counts = np.bincount(shown[shown > 0], minlength=len(known.showings))
  total, logged = max(counts.sum(), 1), max(known.showings.sum(), 1)
  unseen = counts[known.showings < FEW_SHOWINGS].sum() / total
  distance = np.abs(counts / total - known.showings / logged).sum() / 2
  reasons = {level: [] for level in LEVELS[1:]}
  claims_rates = quality.get("claims_rates", True)
  if claims_rates and like_rate > MAX_LIKE_RATIO * known.rate:
    reasons["weak"].append(
      f"the policy's slates are liked to {like_rate:.0%} in the simulator, "
      f"those in the logs to {known.rate:.0%}"
    )
  if unseen > MAX_UNSEEN:
    reasons["weak"].append(
      f"{unseen:.0%} of what the policy shows was shown fewer than "
      f"{FEW_SHOWINGS} times in the logs"
    )
  if quality["verdict"] != "good":
    reasons[quality["verdict"]] = [
      *quality["reasons"],
      *reasons[quality["verdict"]],
    ]
  return {
    **quality,
    **_level(reasons),
    "policy_slates": {
      "like_rate": like_rate if claims_rates else None,
      "logged_like_rate": known.rate if claims_rates else None,
      "unseen_share": float(unseen),
      "distance": float(distance),
    },
  }


def _level(reasons: Mapping[str, list[str]]) -> dict:
  for level in ("useless", "weak"):
    if reasons[level]:
      return {"verdict": level, "reasons": reasons[level]}
  return {"verdict": "good", "reasons": []}


def line(quality: Mapping) -> str:
  """The verdict in one line, for a terminal."""
  if quality["verdict"] == "good":
    return "simulator: good, its click model holds on held-out responses"
  return f"simulator: {quality['verdict']}: {quality['reasons'][0]}"


def doubts(results: Mapping) -> list[str]:
  """What results.json of a run has against its policy, for people."""
  found, simulator = [], results["simulator"]
  simulated = not results["ranks_next"] and "learned_from" not in results
  if simulated and simulator.get("verdict") == "useless":
    found.append(
      "the policy was trained in a simulator that is useless: "
      f"{simulator['reasons'][0]}"
    )
  over = results.get("held_out_differences", {}).get("popularity", {})
  known = results.get("held_out_rows", {}).get("users", 0) >= MIN_USERS
  if known and over and all(x["ci95"][0] <= 0 for x in over.values()):
    measured = ", ".join(
      f"{name} {x['mean']:+.3f} [{x['ci95'][0]:.3f}, {x['ci95'][1]:.3f}]"
      for name, x in over.items()
    )
    found.append(f"the policy is not above popularity: {measured}")
  return found
