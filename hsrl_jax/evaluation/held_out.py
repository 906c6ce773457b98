"""Held-out logs: how well scores rank what users responded to later.

Nothing here is simulated. A score ranks the items of each logged slate (which
of the shown items were liked?), and all items of the catalogue (where are the
items that were liked next?). Intervals are clustered by user.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from hsrl_jax.evaluation import collaborative, statistics
from hsrl_jax.evaluation.ranking import Rankings, counts
from hsrl_jax.types import Sessions

CUTOFFS = (5, 10, 20)
PAIRED = ("auc_within_slates", "ndcg_within_slates", "recall@10", "ndcg@10")
_LIST = 10  # Items of a list whose coverage and novelty are measured.


class Measured(NamedTuple):
  """A measure of each logged row."""

  value: np.ndarray  # float64 [S], NaN where the measure is not defined.
  user: np.ndarray  # int [S].


def within_slates(
  scores: np.ndarray, response: np.ndarray, user: np.ndarray
) -> dict[str, Measured]:
  """How scores order the items of a logged slate.

  A slate of one item tells nothing, so slates of K = 1 are joined by user.
  Items of equal scores count as in a random order.

  Args:
    scores: float [S, K].
    response: [S, K], 1 for a positive response.
    user: int [S].

  Returns:
    `auc_within_slates`, defined where there are both responses;
    `ndcg_within_slates`, the normalised discounted cumulative gain, and
    `liked_first`, the chance that the first item was liked, both defined where
    there is a positive response and more than one item.
  """
  response = np.asarray(response) > 0
  if scores.shape[1] > 1:
    groups = [(user, scores, response)]
  else:
    order = np.argsort(user, kind="stable")
    _, first = np.unique(user[order], return_index=True)
    groups = [
      (user[rows[:1]], scores[rows].T, response[rows].T)
      for rows in np.split(order, first[1:])
    ]
  parts = [_of_slates(x, y) for _, x, y in groups]
  users = np.concatenate([u for u, _, _ in groups])
  return {
    name: Measured(np.concatenate([part[name] for part in parts]), users)
    for name in ("auc_within_slates", "ndcg_within_slates", "liked_first")
  }


def _of_slates(scores, liked) -> dict[str, np.ndarray]:
  count = scores.shape[1]
  positive = liked.sum(1)
  rank = scipy.stats.rankdata(scores, axis=1)  # Ascending; ties: their mean.
  with np.errstate(invalid="ignore", divide="ignore"):
    auc = ((rank * liked).sum(1) - positive * (positive + 1) / 2) / (
      positive * (count - positive)
    )
  # Ties: the mean discount of the places that they share.
  total = np.concatenate([[0.0], np.cumsum(_discount(count))])
  better = count - scipy.stats.rankdata(scores, "max", axis=1).astype(int)
  upto = count + 1 - scipy.stats.rankdata(scores, "min", axis=1).astype(int)
  gain = (total[upto] - total[better]) / (upto - better)
  first = (better == 0) / upto
  defined = (positive > 0) & (count > 1)
  ideal = total[np.maximum(positive, 1)]
  return {
    "auc_within_slates": np.where(
      (positive > 0) & (positive < count), auc, np.nan
    ),
    "ndcg_within_slates": np.where(
      defined, (gain * liked).sum(1) / ideal, np.nan
    ),
    "liked_first": np.where(defined, (first * liked).sum(1), np.nan),
  }


def next_liked(
  top: np.ndarray, sessions: Sessions, train_liked: np.ndarray
) -> dict[str, Measured]:
  """How the best items of the catalogue meet what users liked next.

  Args:
    top: int [S, M], see Rankings.
    sessions: the S rows.
    train_liked: float [N + 1], positive responses of each item in the training
      logs, for `novelty`.

  Returns:
    `recall@k` and `ndcg@k` for k in CUTOFFS, defined where something was liked;
    `novelty`, the mean of -log2 of the items' shares of all likes in the
    training logs, in bits.
  """
  user = np.asarray(sessions.user_id)
  liked = np.where(np.asarray(sessions.response) > 0, sessions.exposed, 0)
  positive = (liked > 0).sum(1)
  hit = ((top[:, :, None] == liked[:, None, :]) & (top[:, :, None] > 0)).any(-1)
  measures = {}
  for k in CUTOFFS:
    discount = _discount(min(k, top.shape[1]))
    ideal = np.concatenate([[np.nan], np.cumsum(_discount(k))])
    with np.errstate(invalid="ignore", divide="ignore"):
      recall = hit[:, :k].sum(1) / positive
    gain = (hit[:, :k] * discount).sum(1) / ideal[np.minimum(positive, k)]
    measures[f"recall@{k}"] = Measured(
      np.where(positive > 0, recall, np.nan), user
    )
    measures[f"ndcg@{k}"] = Measured(gain, user)
  share = (train_liked + 1.0) / (train_liked.sum() + len(train_liked) - 1)
  first = top[:, :_LIST]
  bits = np.where(first > 0, -np.log2(share)[first], 0.0).sum(1)
  measures["novelty"] = Measured(bits / np.maximum((first > 0).sum(1), 1), user)
  return measures


def _of_all(
  rankings: Rankings, sessions: Sessions, train_liked: np.ndarray
) -> dict[str, Measured]:
  """`next_liked`, with `recall@k_with_history` and the same of NDCG.

  The latter where the history's items are left out otherwise; empty where
  nothing ranks all items.
  """
  if rankings.top is None:
    return {}
  measured = next_liked(rankings.top, sessions, train_liked)
  if rankings.top_of_all is not None:
    whole = next_liked(rankings.top_of_all, sessions, train_liked)
    measured |= {f"{k}_with_history": v for k, v in whole.items() if "@" in k}
  return measured


def _discount(count: int) -> np.ndarray:
  return 1.0 / np.log2(np.arange(2, count + 2))


def mean(rows: Sequence[Measured]) -> dict | None:
  """Mean and 95 % interval of a measure.

  The rows of a user are one unit. With several seeds the means of the seeds
  vary too; both variances are added, with Satterthwaite's degrees of freedom.

  Args:
    rows: of each seed, for the same logged rows.

  Returns:
    {"mean", "ci95": [low, high], "users"}, with "per_seed" where there are
    several; None where the measure is defined nowhere.
  """
  values = np.stack([x.value for x in rows])
  defined = np.isfinite(values).all(0)
  if not defined.any():
    return None
  user = rows[0].user[defined]
  count = statistics.by_group(np.ones(len(user)), user)
  per_seed = values[:, defined].mean(1)
  value, influence = statistics.ratio(
    statistics.by_group(values[:, defined].mean(0), user), count
  )
  result = {
    "mean": value,
    "ci95": _interval(
      statistics.standard_error(influence), len(count), per_seed, value
    ),
    "users": len(count),
  }
  if len(rows) > 1:
    result["per_seed"] = per_seed.tolist()
  return result


def _interval(error, users: int, per_seed, value: float) -> list[float]:
  seeds = len(per_seed)
  of_seeds = float(scipy.stats.sem(per_seed)) if seeds > 1 else 0.0
  variance = error**2 + of_seeds**2
  if variance == 0:
    return [value, value]
  freedom = variance**2 / (
    error**4 / max(users - 1, 1) + of_seeds**4 / max(seeds - 1, 1)
  )
  half = float(scipy.stats.t.ppf(0.975, freedom)) * variance**0.5
  return [value - half, value + half]


def _share(found: dict) -> dict:
  """A measure that is a share, with an interval within 0 and 1."""
  return found | {"ci95": [min(max(x, 0.0), 1.0) for x in found["ci95"]]}


def difference(
  ours: Sequence[Measured], theirs: Sequence[Measured]
) -> dict | None:
  """The same of the paired difference of two scores on the same rows.

  Args:
    ours: of each seed.
    theirs: of each seed, or of one that stands for all.
  """
  if len(theirs) == 1:
    theirs = [*theirs] * len(ours)
  pairs = zip(ours, theirs, strict=True)
  return mean([Measured(x.value - y.value, x.user) for x, y in pairs])


def coverage(top: Sequence[np.ndarray], user: np.ndarray, items: int) -> dict:
  """Share of N items that are in anybody's first ten; interval: jackknife.

  Args:
    top: of each seed, int [S, M]; the mean over the seeds is taken.
    user: int [S].
    items: N.
  """
  estimates, errors = [], []
  for lists in top:
    first = lists[:, :_LIST]
    owner = np.repeat(user, first.shape[1])[first.ravel() > 0]
    pairs = np.unique(
      np.stack([first.ravel()[first.ravel() > 0], owner], 1), axis=0
    )
    shown, owners = np.unique(pairs[:, 0], return_counts=True)
    # A user who is left out takes along the items that nobody else was shown.
    alone = pairs[np.isin(pairs[:, 0], shown[owners == 1]), 1]
    users = np.unique(user)
    without = len(shown) - np.bincount(
      np.searchsorted(users, alone), minlength=len(users)
    )
    estimates.append(len(shown) / items)
    errors.append(
      ((len(users) - 1) * without.var()) ** 0.5 / items if len(users) > 1 else 0
    )
  value = float(np.mean(estimates))
  users = len(np.unique(user))
  return {
    "mean": value,
    "ci95": _interval(float(np.mean(errors)), users, estimates, value),
  }


def top_item_share(top: Sequence[np.ndarray], user: np.ndarray) -> dict:
  """Share of the rows whose first ten have the item that most of them have."""
  rows = []
  for lists in top:
    first = lists[:, :_LIST]
    most = np.bincount(first[first > 0]).argmax() if (first > 0).any() else 0
    shown = (first == most).any(1) & (most > 0)
    rows.append(Measured(shown.astype(np.float64), user))
  return mean(rows)


def by_row(
  rankings: Sequence[Rankings], sessions: Sessions, train_liked: np.ndarray
) -> list[dict[str, Measured]]:
  """Each measure of each logged row, by its name, for each seed.

  Args:
    rankings: of each seed of a policy.
    sessions: the held-out rows.
    train_liked: float [N + 1], see `next_liked`.
  """
  user = np.asarray(sessions.user_id)
  return [
    within_slates(x.shown, sessions.response, user)
    | _of_all(x, sessions, train_liked)
    for x in rankings
  ]


def measure(
  rankings: Mapping[str, Sequence[Rankings]],
  sessions: Sessions,
  train: Sessions,
  items: int,
  reference: str,
) -> dict:
  """The `held_out` part of results.json.

  Args:
    rankings: name of a policy or list to the rankings of each of its seeds.
    sessions: the held-out rows.
    train: the training logs.
    items: N.
    reference: the name whose paired differences from the others are given.

  Returns:
    `held_out`: name to measure to {"mean", "ci95"}; `held_out_differences`: the
    reference less each other, of the measures PAIRED; `held_out_rows`: what was
    measured on.
  """
  user, (_, train_liked) = np.asarray(sessions.user_id), counts(train, items)
  rows = {
    name: by_row(seeds, sessions, train_liked)
    for name, seeds in rankings.items()
  }
  table = {}
  for name, seeds in rows.items():
    measured = {x: mean([seed[x] for seed in seeds]) for x in seeds[0]}
    lists = [x.top for x in rankings[name]]
    if lists[0] is not None:
      measured["coverage"] = coverage(lists, user, items)
      measured["top_item_share"] = top_item_share(lists, user)
    table[name] = {
      k: v if k == "novelty" else _share(v)
      for k, v in measured.items()
      if v is not None
    }
  differences = {
    name: {
      x: found
      for x in PAIRED
      if x in seeds[0]
      and (found := difference([s[x] for s in rows[reference]], [seeds[0][x]]))
    }
    for name, seeds in rows.items()
    if name != reference
  }
  liked = np.asarray(sessions.response) > 0
  return {
    "held_out": table,
    "held_out_differences": differences,
    "held_out_rows": {
      "rows": len(user),
      "users": len(np.unique(user)),
      "rows_with_likes": int(liked.any(1).sum()),
      "like_rate": float(liked.mean()) if liked.size else None,
      "items": items,
    },
  }


def sentences(results: Mapping) -> list[str]:
  """Sentences on the trained policy's held-out metrics.

  Args:
    results: of a run, with the keys of `measure`, `agent` and `recipe`.
  """
  differences = results.get("held_out_differences", {})
  if results["agent"] not in results.get("held_out", {}):
    return []
  rows, said = results["held_out_rows"], []
  if rows["rows"] < rows.get("of_rows", 0):
    said.append(
      f"Held-out logs: {rows['rows']:,} of {rows['of_rows']:,} slates, of "
      f"{rows['users']:,} users drawn at random, since for each of them "
      f"{rows['items']:,} items are ranked."
    )
  if rows.get("items", 0) > collaborative.MOST_ITEMS:
    said.append(
      f"ease and als are left out: {rows['items']:,} items are more than "
      f"{collaborative.MOST_ITEMS:,}."
    )
  if rows["users"] < statistics.MIN_USERS:
    return [
      *said,
      f"Held-out logs: too few users ({rows['users']}) to tell a policy from a "
      f"list; from {statistics.MIN_USERS} on they are compared.",
    ]
  labels = {"auc_within_slates": "AUC within slates", "recall@10": "recall@10"}
  for measure_name, label in labels.items():
    sides = {"above": [], "not above": []}
    for name, of_list in differences.items():
      if measure_name in of_list:
        low, _ = of_list[measure_name]["ci95"]
        sides["above" if low > 0 else "not above"].append(name)
    parts = [f"{side} {', '.join(x)}" for side, x in sides.items() if x]
    if parts:
      said.append(f"{results['agent']}, {label}: {'; '.join(parts)}.")
  over_popularity = differences.get("popularity", {}).get("recall@10")
  for_reward = not results["recipe"].startswith("next_item")
  if for_reward and over_popularity and over_popularity["ci95"][0] <= 0:
    said.append(
      f"{results['agent']} was trained for reward. To find what users like "
      "next, train with the recipe next_item, in a new workdir."
    )
  return said
