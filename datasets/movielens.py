"""Slates, profiles and item features out of MovieLens ratings.

Ratings are a table with a row for each rating, by `user_id` and time, and these
columns: `user_id`, `item` (1..N), `rating` (stars), `positive` (float32, 1 for
a positive response), `timestamp` (s). Below, R is the number of ratings, S of
slates, N of items and G of genres.

Splits run by time within each user, or each user is in one split alone. Item
features see the ratings of the train split only; a user's profile and history
see only what that user did before the slate.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hsrl_jax.shipped.datasets import schema

SLATE_SIZE = 10
POSITIVE_ABOVE = 3.0  # stars; the benchmark's definition of a positive response
RATING_PRIOR = 10.0  # ratings of the average film that every film starts with
PROFILE_PRIOR = 5.0  # the same, for a user's share of positive responses


def positive(rating: pd.Series) -> pd.Series:
  """Whether the stars of each rating are a positive response, float32 [R]."""
  return (rating > POSITIVE_ABOVE).astype("float32")


def split_of_rating(ratings: pd.DataFrame, by: str = "time") -> np.ndarray:
  """Names the split of each rating, [R].

  By time it is by whole slates of a user, oldest first. They are cut from the
  newest backwards, so that the remainder, too short for a slate, is the start
  of the history. By `user` it is that of the user.
  """
  if by == "user":
    return schema.split_of_user(ratings.user_id.tolist())
  first, size, _ = _user_rows(ratings)
  slates = size // SLATE_SIZE
  held_out = np.maximum(1, np.round(schema.HELD_OUT * slates))
  test = np.minimum(slates, held_out) * SLATE_SIZE
  val = np.where(slates > 2, test, 0)
  left = first + size - np.arange(len(ratings))  # This one and those after it.
  return np.select([left <= test, left <= test + val], ["test", "val"], "train")


def _user_rows(ratings: pd.DataFrame):
  """For each rating: its user's first row, number of rows, position, [R]."""
  user = ratings.user_id.to_numpy()
  first = np.searchsorted(user, user)
  return (
    first,
    np.searchsorted(user, user, side="right") - first,
    np.arange(len(user)) - first,
  )


class Slates(NamedTuple):
  """The slates of users of whom something is known: those with a history."""

  start: np.ndarray  # int [S], the row of the slate's first rating.
  before: np.ndarray  # int [S], ratings of the same user before the slate.
  liked: np.ndarray  # int [S], how many of them are positive.
  columns: dict[str, Any]  # Of `sessions` (see schema.py), all but `profile`.


def slates(ratings: pd.DataFrame, split: np.ndarray) -> Slates:
  """Cuts ratings, whose splits are [R], into slates."""
  first, size, place = _user_rows(ratings)
  response = ratings.positive.to_numpy()
  liked = np.flatnonzero(response)
  liked_before = np.concatenate([[0], np.cumsum(response > 0)])

  starts = (place - size) % SLATE_SIZE == 0
  starts &= liked_before[:-1] > liked_before[first]  # Something is known.
  start = np.flatnonzero(starts)
  begin = first[start]
  rows = start[:, None] + np.arange(SLATE_SIZE)

  # The last positives before the slate, newest last; none of another user.
  which = liked_before[start][:, None] + np.arange(-schema.HISTORY_LENGTH, 0)
  own = which >= liked_before[begin][:, None]
  item = ratings["item"].to_numpy()
  columns = {
    "split": split[start],
    "user_id": ratings.user_id.to_numpy()[start],
    "history": np.where(own, item[liked[np.maximum(which, 0)]], 0),
    "exposed": item[rows],
    "response": response[rows],
    "timestamp": ratings.timestamp.to_numpy()[start],
  }
  return Slates(
    start, place[start], liked_before[start] - liked_before[begin], columns
  )


def base_rate(ratings: pd.DataFrame, split: np.ndarray) -> float:
  """Share of positive responses in the train split."""
  return float(ratings.positive.to_numpy()[split == "train"].mean())


def genre_responses(
  ratings: pd.DataFrame, genres: np.ndarray, rate: float
) -> np.ndarray:
  """Response above the base rate, by genre of the item, float32 [R, G].

  `genres` are those of `genre_matrix`, the rate is that of `base_rate`.
  """
  return genres[ratings["item"] - 1] * (
    ratings.positive.to_numpy()[:, None] - np.float32(rate)
  )


def behaviour(taste: np.ndarray, rate: float, cut: Slates) -> np.ndarray:
  """Profiles out of what users did before each slate, [S, G + 2].

  Columns: taste by genre, share of positive responses, log of ratings.

  Args:
    taste: [S, G], sums of `genre_responses` before each slate. Its dtype is the
      precision of the share of positive responses, too.
    rate: see `base_rate`.
    cut: the slates.
  """
  ratings = cut.before + PROFILE_PRIOR
  share = cut.liked.astype(taste.dtype) + PROFILE_PRIOR * rate
  share = share / ratings.astype(taste.dtype)
  return np.concatenate(
    [
      taste / np.sqrt(ratings)[:, None],
      4.0 * (share - rate)[:, None],
      np.log1p(cut.before)[:, None] / 3.0 - 1.0,
    ],
    1,
  )


def genre_matrix(films: Iterable[str], names: Sequence[str]) -> np.ndarray:
  """Genre membership of each item, rows of unit length, float32 [N, G].

  `films` have the genres of each item, with | between.
  """
  member = np.array(
    [[name in genres.split("|") for name in names] for genres in films],
    np.float32,
  )
  return member / np.sqrt(member.sum(1, keepdims=True))


class RatingStatistics(NamedTuple):
  """Features of N items from the T ratings of the train split."""

  count: np.ndarray  # int [N], ratings of each item.
  # [N], stars above those of all ratings, shrunk by RATING_PRIOR.
  mean: np.ndarray
  # [T], each rating without the means of its item and its user, and damped for
  # frequent items, which would own every direction of an SVD.
  entries: np.ndarray


def rating_statistics(
  item: np.ndarray, user: np.ndarray, rating: np.ndarray, num_items: int
) -> RatingStatistics:
  """Centres ratings.

  Args:
    item: int [T], from 0.
    user: int [T], from 0.
    rating: float [T], stars.
    num_items: N.
  """
  centre = rating.mean()
  count = np.bincount(item, minlength=num_items)
  total = np.bincount(item, weights=rating - centre, minlength=num_items)
  mean = total / (count + RATING_PRIOR)
  residual = rating - centre - mean[item]
  rated = np.maximum(np.bincount(user), 1)
  user_mean = np.bincount(user, weights=residual) / rated
  entries = (residual - user_mean[user]) / np.sqrt(count[item] + RATING_PRIOR)
  return RatingStatistics(count, mean, entries)


def signed(columns: np.ndarray) -> np.ndarray:
  """Singular vectors, the columns [X, D], with their largest entry positive."""
  largest = np.abs(columns).argmax(0)
  return columns * np.sign(columns[largest, np.arange(columns.shape[1])])


def item_features(
  svd: np.ndarray,
  genres: np.ndarray,
  statistics: RatingStatistics,
  year: np.ndarray,
  svd_weight: float = 1.0,
) -> np.ndarray:
  """Features of each item, float32 [N, D].

  Columns: SVD, genres, mean rating, log of ratings, year.

  Args:
    svd: [N, SVD dimensions] of the users' centred ratings.
    genres: see `genre_matrix`.
    statistics: of the train split.
    year: [N] of publication.
    svd_weight: root of the SVD's mean square, where each of the last three
      columns has 1.
  """
  columns = [statistics.mean, np.log1p(statistics.count), year]
  return np.concatenate(
    [
      svd_weight * scaled(svd),
      genres,
      scaled(np.stack(columns, 1), each_column=True),
    ],
    1,
  ).astype(np.float32)


def scaled(block: np.ndarray, each_column: bool = False) -> np.ndarray:
  """Centres columns [X, D] and scales them to a mean square of one.

  Args:
    block: [X, D].
    each_column: scales each column by itself instead of the block as a whole.

  Returns:
    [X, D]; what does not vary is 0.
  """
  block = block - block.mean(0)
  size = np.sqrt(np.mean(block**2, axis=0 if each_column else None))
  return block / np.where(size > 0, size, 1)
