"""Verdicts: on a click model, and on what a policy earns in it.

The first holds the model against held-out responses, beside predictions that
know no user (the mean of all responses, of the item, of the user). It is made
once, when the model is fitted, and is the same under every policy:

- useless: the model orders a user's items no better than chance, predicts worse
  than one number for all, or too few users can tell. Simulated figures mean
  nothing.
- weak: the item's own mean orders or predicts better, or probabilities are off.
- good: none of these.

The second says whether a policy's simulated figures may be compared with those
of others: it is weak where the policy leaves what the logs know, where held-out
logs contradict them, or where the policy ranks by the click model itself. They
are no forecast even where it is good.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from hsrl_jax.data.feedback import Feedback
from hsrl_jax.evaluation import ranking, statistics
from hsrl_jax.evaluation.simulate import Simulated
from hsrl_jax.evaluation.statistics import MIN_USERS
from hsrl_jax.types import Sessions

# Mean gap of predicted and observed shares of likes, over ten bins. Half of the
# 0.2 by which a policy that is twice as good would differ at a rate of 0.2.
MAX_CALIBRATION_ERROR = 0.1
# Share of the policy's showings whose item has hardly been shown in the logs.
MAX_UNSEEN = 0.5
FEW_SHOWINGS = 5
# Share of the policy's slates that are the greedy oracle's, item by item.
ORACLES = 0.99
_BINS = 10
# Shares of held-out responses that a model is surest of, and the fewest.
_SUREST, _RESPONSES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01), 100

# What follows from the verdict on a policy's simulated figures.
_NOT = "do not use this number to choose between policies; go by held-out logs"
FOLLOWS = {
  "good": "Simulated rewards compare policies; they are no forecast.",
  "weak": f"Simulated reward: {_NOT}.",
  "useless": f"Simulated rewards mean nothing: {_NOT}.",
}


class Baselines(NamedTuple):
  """Predictions that know no user, or no item, of the training logs."""

  rate: float  # Share of positive responses.
  items: np.ndarray  # float [N + 1], the item's smoothed share.
  users: Mapping[int, float]  # The smoothed share of each user who was seen.
  showings: np.ndarray  # float [N + 1], how often each item was shown.


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
  """Predictions of the baselines on logged slates: name to [S, K]."""
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
    mean, error = float(aucs.mean()), statistics.standard_error(aucs)
    measured |= {
      "auc_within_users": mean,
      "auc_within_users_ci95": statistics.interval(mean, error, len(aucs)),
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
  user, liked = np.repeat(user, score.shape[1]), liked.ravel()
  # Places among all, user by user, from 1 on; equal scores share the mean.
  _, level = np.unique(score, return_inverse=True)
  place = scipy.stats.rankdata(user * score.size + level.ravel())
  responses, positive = np.bincount(user), np.bincount(user, liked)
  before = np.cumsum(responses) - responses
  ranks = np.bincount(user, place * liked) - positive * before
  pairs = positive * (responses - positive)
  better = ranks - positive * (positive + 1) / 2
  return np.where(pairs > 0, better / np.maximum(pairs, 1), np.nan)


def surest(
  probability: np.ndarray, response: np.ndarray
) -> list[dict[str, float]]:
  """Predicted and observed rates of a model's surest responses.

  Args:
    probability: float [S, K].
    response: [S, K], 0 or 1.

  Returns:
    Of all responses, then of ever fewer with the highest probabilities:
    `responses`, how many, and the rates of likes `predicted` and `observed`.
  """
  order = np.argsort(-np.ravel(probability), kind="stable")
  p, y = (np.ravel(x)[order] for x in (probability, np.asarray(response) > 0))
  sizes = [round(x * len(p)) for x in _SUREST]
  return [
    {
      "responses": size,
      "predicted": float(p[:size].mean()),
      "observed": float(y[:size].mean()),
    }
    for size in sizes
    if size >= _RESPONSES or size == len(p)
  ]


def of_fit(
  probability: Mapping[str, np.ndarray],
  splits: Mapping[str, Sessions],
  known: Baselines,
  about: Feedback,
) -> dict:
  """The verdict on a click model.

  Args:
    probability: of `validation` and `test`, [S, K] each.
    splits: their rows.
    known: the baselines.
    about: what the responses are. No rate of likes is known where the logs hold
      positives alone and nobody gave a base rate.

  Returns:
    `verdict`, a level; `reasons`, sentences; `claims_rates`; and of each
    split the measures of the click model, with those of the baselines under
    `lists` and, unless negatives were drawn, `surest`.
  """
  measured: dict[str, Any] = {"claims_rates": about.claims_rates}
  reasons = {"useless": [], "weak": []}
  if not about.claims_rates:
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
    if about.negatives is None:
      measured[name]["surest"] = surest(probability[name], sessions.response)
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


def of_policy(
  quality: Mapping,
  known: Baselines,
  sessions: Mapping[str, Sequence[Simulated]],
  agent: str,
  differences: Mapping[str, Mapping[str, Any]],
) -> dict:
  """The verdict on what a policy earns in the simulator.

  Args:
    quality: what `of_fit` returned.
    known: the baselines.
    sessions: name to those of each seed, of the policy and of the bounds.
    agent: the policy's name.
    differences: `held_out_differences` of the policy from simple lists.

  Returns:
    `verdict` and `reasons`; `like_rate` and `logged_like_rate` (both None where
    `quality` claims no rates); `unseen_share`, of showings whose item the logs
    show fewer than FEW_SHOWINGS times; `distance`, the total variation distance
    of its showings from the logged ones, 0 to 1; and `as_greedy`, the share of
    its slates that are the greedy oracle's.
  """
  slates = np.stack([x.slates for x in sessions[agent]])  # [seeds, E, T, K]
  counts = np.bincount(slates[slates > 0], minlength=len(known.showings))
  total, logged = max(counts.sum(), 1), max(known.showings.sum(), 1)
  like_rate = sum(float(x.positives.sum()) for x in sessions[agent]) / total
  unseen = float(counts[known.showings < FEW_SHOWINGS].sum() / total)
  distance = np.abs(counts / total - known.showings / logged).sum() / 2
  same = np.sort(slates) == np.sort(sessions["greedy_oracle"][0].slates)
  as_greedy = float(same.all(-1)[slates.any(-1)].mean())
  reasons = {"useless": [], "weak": []}
  if quality["verdict"] == "useless":
    reasons["useless"] += quality["reasons"]
  if as_greedy >= ORACLES:
    reasons["weak"].append(
      f"{agent} shows what the greedy oracle shows, so it earns the same: it "
      "ranks by the click model itself, which also answers for the users"
    )
  if unseen > MAX_UNSEEN:
    reasons["weak"].append(
      f"{unseen:.0%} of what {agent} shows was shown fewer than "
      f"{FEW_SHOWINGS} times in the logs"
    )
  reasons["weak"] += _unconfirmed(quality, agent, like_rate)
  earned = (
    np.mean([x.total_reward for x in sessions[name]])
    for name in (agent, "best_constant")
  )
  if np.greater(*earned):
    reasons["weak"] += _contradicted(agent, differences)
  rates = quality.get("claims_rates", True)
  return _level(reasons) | {
    "like_rate": like_rate if rates else None,
    "logged_like_rate": known.rate if rates else None,
    "unseen_share": unseen,
    "distance": float(distance),
    "as_greedy": as_greedy,
  }


def _unconfirmed(quality: Mapping, agent: str, rate: float) -> list[str]:
  """Why held-out responses do not confirm simulated likes above the logs'."""
  groups = quality.get("test", {}).get("surest", [])
  if not groups or rate <= groups[0]["predicted"]:
    return []
  likely = f"{agent}'s slates are liked to {rate:.1%} in the simulator"
  found = next((x for x in groups if x["predicted"] >= rate), None)
  if found is None:
    most = groups[-1]
    return [
      f"{likely}; no held-out response tells: of the {most['responses']:,} "
      f"that the click model is surest of it says {most['predicted']:.1%}"
    ]
  n, p = found["responses"], found["observed"]
  lift = p + 2 * np.sqrt(p * (1 - p) / n) - groups[0]["observed"]
  if lift >= (found["predicted"] - groups[0]["predicted"]) / 2:
    return []
  return [
    f"{likely}; of {n:,} held-out responses it is as sure of {p:.1%} were "
    f"likes, of all {groups[0]['observed']:.1%}"
  ]


def _contradicted(agent: str, differences: Mapping) -> list[str]:
  """Where held-out logs put a policy below what is the same for everybody."""
  said = []
  for name in ("popularity", "item_mean"):
    found = differences.get(name, {}).get("auc_within_slates")
    if found and found["ci95"][1] < 0:
      said.append(
        f"{agent} earns more than best_constant, and orders held-out slates "
        f"worse than {name}: AUC {found['mean']:+.3f} "
        f"[{found['ci95'][0]:.3f}, {found['ci95'][1]:.3f}]"
      )
  return said


def _level(reasons: Mapping[str, list[str]]) -> dict:
  for level in ("useless", "weak"):
    if reasons[level]:
      return {"verdict": level, "reasons": reasons[level]}
  return {"verdict": "good", "reasons": []}


def line(quality: Mapping) -> str:
  """The verdict on a click model in one line, for a terminal."""
  if quality["verdict"] == "good":
    return "simulator: good, its click model holds on held-out responses"
  return f"simulator: {quality['verdict']}: {quality['reasons'][0]}"


def lines(results: Mapping) -> list[str]:
  """Both verdicts of a run's results.json, and what follows from them."""
  model = results.get("simulator", {})
  said = [line(model)] if "verdict" in model else []
  if found := results.get("policy_in_simulator"):
    if found["verdict"] == "weak":
      said += [f"{results['agent']} in it: {x}." for x in found["reasons"]]
    said.append(FOLLOWS[found["verdict"]])
  return said


def doubts(results: Mapping) -> list[str]:
  """Reasons against the policy in a run's results.json, for people."""
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
