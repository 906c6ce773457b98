"""How far up held-out items come among all items; NumPy, by user.

All measures are arrays of one value a user, so that intervals and paired
differences can be taken over users.
"""

from collections.abc import Sequence

import numpy as np

CUTS = (5, 10, 20)


def ranks(
  scores: np.ndarray, target: np.ndarray, excluded: np.ndarray | None = None
) -> np.ndarray:
  """Ranks of the targets by descending score, from 1; ties by ascending id.

  >>> scores = np.asarray([[-np.inf, 0.1, 0.9, 0.5, 0.5]])
  >>> ranks(scores, np.asarray([4])).tolist()
  [3]
  >>> ranks(scores, np.asarray([4]), excluded=np.asarray([[0, 2]])).tolist()
  [2]

  Args:
    scores: float [E, N + 1]; column 0 is padding, and ranked nowhere.
    target: int [E], ids 1..N.
    excluded: int [E, T], items that are not ranked, such as those seen; 0 and
      the target itself are ignored.

  Returns:
    int64 [E].
  """
  users = np.arange(len(target))
  own = scores[users, target][:, None]
  ahead = scores > own
  ahead |= (scores == own) & (np.arange(scores.shape[1]) < target[:, None])
  ahead[:, 0] = False
  if excluded is not None:
    np.put_along_axis(ahead, excluded.astype(np.int64), False, 1)
  return 1 + ahead.sum(1)


def list_ranks(
  items: np.ndarray, target: np.ndarray, excluded: np.ndarray | None = None
) -> np.ndarray:
  """Ranks of the targets in lists, best first; 0 where they are not listed.

  Args:
    items: int [E, K], ids; 0 where a list ends.
    target: int [E].
    excluded: int [E, T], items that are skipped; 0 and the target itself are
      ignored.

  Returns:
    int64 [E].
  """
  counted = items > 0
  if excluded is not None:
    # Few columns of a list, many of exclusions.
    for place in range(items.shape[1]):
      column = items[:, place]
      seen = (excluded == column[:, None]).any(1)
      counted[:, place] &= ~seen | (column == target)
  hit = (items == target[:, None]) & counted
  rank = np.cumsum(counted, 1)
  return np.where(hit.any(1), rank[np.arange(len(rank)), hit.argmax(1)], 0)


def measures(
  rank: np.ndarray, cuts: Sequence[int] = CUTS
) -> dict[str, np.ndarray]:
  """Recall@k and NDCG@k of one held-out item each, float64 [E] by name.

  NDCG is 1 / log2(1 + rank) where the rank is at most k, else 0.

  >>> {k: v.tolist() for k, v in measures(np.asarray([3, 0]), [5]).items()}
  {'recall@5': [1.0, 0.0], 'ndcg@5': [0.5, 0.0]}

  Args:
    rank: int [E], from 1; 0 where the item is not listed.
    cuts: k.
  """
  rank = np.asarray(rank)
  gain = 1.0 / np.log2(1.0 + np.where(rank > 0, rank, 1))
  out = {}
  for cut in cuts:
    hit = (rank > 0) & (rank <= cut)
    out[f"recall@{cut}"] = hit.astype(np.float64)
    out[f"ndcg@{cut}"] = np.where(hit, gain, 0.0)
  return out


def popularity(items: np.ndarray, num_items: int) -> np.ndarray:
  """How often each item occurs in sequences [U, T], float64 [N + 1]; 0 first.

  Ranked by it, with `scores` the same for all, is the popularity baseline.
  """
  counts = np.bincount(items.ravel(), minlength=num_items + 1).astype(float)
  counts[0] = 0.0
  return counts
