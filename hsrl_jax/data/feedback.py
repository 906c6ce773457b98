"""Explicit and implicit feedback: sampled negatives, and honest probabilities.

Explicit feedback tells which shown items were liked and which were not.
Implicit feedback has likes only ("positives only"); each positive is then shown
in a slate beside n negatives that are drawn from a distribution q over the
items, never one that the user liked. A classifier that is fitted to such slates
knows the odds of a positive against n negatives of q, not those of a like:

- `log_q_offset` is what a logit owes to q (Bengio and Senecal 2003; Yi et al.
  2019). Added to the logits while fitting and left out afterwards, what was
  fitted is as if negatives had been uniform.
- `shift` replaces the share of positives, 1 / (1 + n), by the base rate
  of likes (the prior correction of case-control studies, King and Zeng 2001).
  Without a base rate there is no probability of a like.
"""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

UNIFORM, POPULARITY = "uniform", "popularity"
NEGATIVES = (UNIFORM, POPULARITY)
_ROUNDS = 20  # Of rejection; what is left after them is drawn without.


class Feedback(NamedTuple):
  """The kind of a prepared dataset's responses."""

  feedback: str = "explicit"  # "explicit" or "implicit".
  # One of NEGATIVES; None where feedback is explicit.
  negatives: str | None = None
  # N, negatives in the slate of each positive; None likewise.
  per_positive: int | None = None
  # The user's share of likes among shown items, in (0, 1); None where it is
  # unknown, and then no rate of likes may be claimed.
  base_rate: float | None = None
  seed: int | None = None  # Of the drawing.

  @property
  def claims_rates(self) -> bool:
    """Whether a simulated rate of likes means something."""
    return self.feedback == "explicit" or self.base_rate is not None


def read(data_dir: pathlib.Path) -> Feedback:
  """Reads what `prepare` noted; explicit where nothing was."""
  values: dict[str, Any] = {}
  for path in pathlib.Path(data_dir).glob("*/sessions/*/metadata.json"):
    values = json.loads(path.read_text()).get("feedback", {})
  return Feedback(**values)


def sampling_probabilities(
  positives: np.ndarray, num_items: int, negatives: str
) -> np.ndarray:
  """The distribution q of one drawn negative, before any exclusion.

  Args:
    positives: int [M], the item of each positive of the train split.
    num_items: N.
    negatives: "uniform"; or "popularity": in proportion to an item's positives
      plus one.

  Returns:
    float64 [N + 1] with sum 1; 0 for the padding.
  """
  weights = np.zeros(num_items + 1)
  weights[1:] = 1
  if negatives == POPULARITY:
    weights += np.bincount(positives, minlength=num_items + 1)
  return weights / weights.sum()


def draw_negatives(
  rng: np.random.Generator,
  sampling: np.ndarray,
  user: np.ndarray,
  item: np.ndarray,
  liked: tuple[np.ndarray, np.ndarray],
  per_positive: int,
) -> np.ndarray:
  """Draws negatives for each positive, all different, in no order.

  Each is drawn from q restricted to what is left: items that are not the
  positive, that the user did not like, and that are not in the slate yet.

  Args:
    rng: the source of randomness.
    sampling: q, [N + 1]; see `sampling_probabilities`.
    user: int [R], of each positive, from 0.
    item: int [R], the positive.
    liked: (user, item), int [M] each: what is never drawn for a user.
    per_positive: n.

  Returns:
    int32 [R, n]; rows of zeros where fewer than n items are left.
  """
  width = len(sampling)
  keys = np.unique(liked[0].astype(np.int64) * width + liked[1])
  own = user.astype(np.int64) * width
  known = np.isin(own + item, keys)
  likes = np.searchsorted(keys, own + width) - np.searchsorted(keys, own)
  enough = np.count_nonzero(sampling) - likes - ~known >= per_positive
  drawn = np.zeros((len(item), per_positive), np.int32)
  cumulative = np.cumsum(sampling)
  rows = np.flatnonzero(enough)
  for _ in range(_ROUNDS):
    if not len(rows):
      return drawn
    # What is kept comes first, so that of two alike the newer one goes.
    part = -np.sort(-drawn[rows], axis=1)
    at, column = np.nonzero(part == 0)
    part[at, column] = np.searchsorted(
      cumulative, rng.random(len(at)) * cumulative[-1], side="right"
    )
    bad = part == item[rows, None]
    bad |= np.isin(own[rows, None] + part, keys)
    bad |= _repeats(part)
    drawn[rows] = np.where(bad, 0, part)
    rows = rows[bad.any(1)]
  for row in rows:
    weights = sampling.copy()
    first, last = np.searchsorted(keys, [own[row], own[row] + width])
    kept = drawn[row][drawn[row] > 0]
    weights[keys[first:last] - own[row]] = 0
    weights[[item[row], *kept]] = 0
    missing = per_positive - len(kept)
    new = rng.choice(width, missing, replace=False, p=weights / weights.sum())
    drawn[row] = [*kept, *new]
  return drawn


def _repeats(rows: np.ndarray) -> np.ndarray:
  """Marks each entry of int [R, n] that an earlier column has already."""
  order = np.argsort(rows, axis=1, kind="stable")
  ordered = np.take_along_axis(rows, order, 1)
  same = np.zeros(rows.shape, bool)
  same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
  marked = np.zeros(rows.shape, bool)
  np.put_along_axis(marked, order, same, 1)
  return marked


def log_q_offset(sampling: np.ndarray) -> np.ndarray:
  """Offset of an item's logit that q, [N + 1], causes, [N + 1]: -log(N q).

  Fit sigmoid(logit + offset[item]) to the slates and use the logit without:
  then popular items are not punished for having been drawn as negatives more
  often. Uniform q gives zeros.
  """
  num_items = len(sampling) - 1
  offset = np.zeros(num_items + 1)
  offset[1:] = -np.log(num_items * sampling[1:])
  return offset


def shift(per_positive: float, base_rate: float) -> float:
  """Offset from logits of sampled negatives to those of a like.

  log(n) + log(b / (1 - b)) of n negatives for each positive and the base rate
  b, in (0, 1). It is exact where items are shown by q: then
  negatives are a sample of what is shown and not liked, and b is the share of
  likes among what is shown. With negatives by popularity, b is thus the like
  rate of a recommender that shows popular items; with uniform negatives, and
  nearly so after `log_q_offset`, that of items shown at random.

  Raises:
    ValueError: n or b is out of range.
  """
  if not per_positive > 0 or not 0 < base_rate < 1:
    raise ValueError(
      f"per_positive is {per_positive} and base_rate {base_rate}; expected a "
      "number above 0 and one in (0, 1)"
    )
  return float(np.log(base_rate / (1 - base_rate) * per_positive))
