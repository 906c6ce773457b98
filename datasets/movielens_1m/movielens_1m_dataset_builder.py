"""MovieLens-1M as slates, out of the official files.

`--raw_data_dir` holds `ratings.dat`, `users.dat` and `movies.dat`, fields
separated by `::`, latin-1. Two configs share one builder:
  `items`     one row per rated film: id, feature vector, title, genres.
  `sessions`  one row per slate: a user's profile, history, slate, response.

Splits run by time within each user, or each user is in one split alone.
Everything that is learned from ratings (item features) sees the train split
only; a user's profile and history see only what that user did before the slate.
"""

import io
import pathlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse

from hsrl_jax.errors import InputError, reading
from hsrl_jax.shipped.datasets import movielens, schema

# With 8, 16, 32 a click model's AUC within users is 0.698, 0.700, 0.703.
SVD_DIMENSIONS = 16

# The values that the authors' README lists; a profile has one column for each.
GENDERS = ("F", "M")
AGES = (1, 18, 25, 35, 45, 50, 56)  # the youngest of each bucket
OCCUPATIONS = tuple(range(21))
GENRES = (
  "Action",
  "Adventure",
  "Animation",
  "Children's",
  "Comedy",
  "Crime",
  "Documentary",
  "Drama",
  "Fantasy",
  "Film-Noir",
  "Horror",
  "Musical",
  "Mystery",
  "Romance",
  "Sci-Fi",
  "Thriller",
  "War",
  "Western",
)
COLUMNS = {
  "ratings.dat": ("user_id", "movie_id", "rating", "timestamp"),
  "users.dat": ("user_id", "gender", "age", "occupation", "zip_code"),
  "movies.dat": ("movie_id", "title", "genres"),
}
TEXTS = ("gender", "zip_code", "title", "genres")


class Builder(schema.SlateBuilder):
  """Reads the official files in `--raw_data_dir`."""

  SPLITS_BY = ("time", "user")
  HOMEPAGE = "https://grouplens.org/datasets/movielens/1m/"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "ratings.dat, users.dat and movies.dat of MovieLens-1M "
    "(grouplens.org/datasets/movielens/1m)"
  )

  def read_items(self, folder):
    """Columns of `items`: the films that have a rating."""
    tables = load_tables(folder)
    train = movielens.split_of_rating(tables.ratings, self.split_by) == "train"
    return {
      "feature": item_features(tables, train),
      "external_id": tables.movies.movie_id.astype(str),
      "title": tables.movies.title,
      "genres": tables.movies.genres,
    }

  def read_sessions(self, folder):
    """Columns of `sessions`, by user and time."""
    tables = load_tables(folder)
    return make_sessions(
      tables, movielens.split_of_rating(tables.ratings, self.split_by)
    )


class Tables(NamedTuple):
  """The three files."""

  # By user and time, R rows, with `item` (1..N), `user` (row of `users`) and
  # `positive`.
  ratings: pd.DataFrame
  users: pd.DataFrame  # As published.
  movies: pd.DataFrame  # Those with a rating; item i is row i - 1.


def load_tables(folder: pathlib.Path) -> Tables:
  """Reads and checks the official files.

  Raises:
    InputError: a file is missing, or the row and column that is no good.
  """
  ratings, users, movies = (read_table(folder / name) for name in COLUMNS)

  def refuse(name: str, bad, column: str, expected: str) -> None:
    if bad.any():
      table = {"ratings": ratings, "users": users, "movies": movies}[name]
      row = int(np.argmax(bad))
      raise InputError(
        f"{folder / name}.dat: row {row + 1} has {column} "
        f"{table[column].tolist()[row]!r} ({int(bad.sum())} such rows); "
        f"expected {expected}"
      )

  refuse("users", users.user_id.duplicated(), "user_id", "each user once")
  refuse("movies", movies.movie_id.duplicated(), "movie_id", "each film once")
  for column, known in (
    ("gender", GENDERS),
    ("age", AGES),
    ("occupation", OCCUPATIONS),
  ):
    refuse(
      "users",
      ~users[column].isin(known),
      column,
      f"one of {', '.join(map(str, known))}",
    )
  strange = [not set(x.split("|")) <= set(GENRES) for x in movies.genres]
  refuse(
    "movies",
    np.array(strange),
    "genres",
    "one or more of the 18 published ones, with | between",
  )
  refuse(
    "movies",
    ~movies.title.str.contains(r"\(\d{4}\)$"),
    "title",
    "a title that ends in its year, such as 'Heat (1995)'",
  )
  refuse("ratings", ~ratings.rating.isin(range(1, 6)), "rating", "1 to 5")
  for name, column, known in (
    ("users.dat", "user_id", users.user_id),
    ("movies.dat", "movie_id", movies.movie_id),
  ):
    refuse("ratings", ~ratings[column].isin(known), column, f"one of {name}")
  refuse(
    "ratings",
    ratings.duplicated(["user_id", "movie_id"]),
    "movie_id",
    "each film once a user",
  )

  ratings = ratings.sort_values(
    ["user_id", "timestamp", "movie_id"], kind="stable", ignore_index=True
  )
  movies = movies[movies.movie_id.isin(ratings.movie_id)]
  movies = movies.sort_values("movie_id", ignore_index=True)
  ratings["item"] = np.searchsorted(movies.movie_id, ratings.movie_id) + 1
  ratings["user"] = pd.Index(users.user_id).get_indexer(ratings.user_id)
  ratings["positive"] = movielens.positive(ratings.rating)
  return Tables(ratings, users, movies)


def read_table(path: pathlib.Path) -> pd.DataFrame:
  """Reads one of COLUMNS; all but TEXTS are integers.

  Raises:
    InputError: it is missing or empty, or the row that cannot be read.
  """
  columns = COLUMNS[path.name]
  with reading(path, f"{', '.join(COLUMNS)} of MovieLens-1M in --raw_data_dir"):
    text = path.read_text("latin-1").rstrip("\n")
  for row, line in enumerate(text.split("\n"), 1):
    if line.count("::") != len(columns) - 1:
      raise InputError(
        f"{path}: row {row} is {line[:60]!r}; expected "
        f"{'::'.join(columns)}: the file is damaged or another, get it again"
      )
  table = pd.read_csv(
    io.StringIO(text.replace("\t", " ").replace("::", "\t")),
    sep="\t",
    names=columns,
    dtype=str,
    quoting=3,  # None: titles have quotes of their own.
    keep_default_na=False,
  )
  for column in set(columns) - set(TEXTS):
    numbers = pd.to_numeric(table[column], errors="coerce")
    bad = ~((numbers % 1 == 0) & (numbers.abs() < 2**31))
    if bad.any():
      row = int(np.argmax(bad))
      raise InputError(
        f"{path}: row {row + 1} has {column} {table[column][row]!r} "
        f"({int(bad.sum())} such rows); expected an integer of 32 bits"
      )
    table[column] = numbers.astype(np.int64)
  return table


def genre_matrix(movies: pd.DataFrame) -> np.ndarray:
  """Genre membership of each item, rows of unit length, [N, 18]."""
  return movielens.genre_matrix(movies.genres, GENRES)


def item_features(tables: Tables, train: np.ndarray) -> np.ndarray:
  """Features of each item, [N, D]; `train` [R] marks the ratings it may see."""
  num_items = len(tables.movies)
  seen = tables.ratings[train]
  item, user = seen["item"].to_numpy() - 1, seen.user.to_numpy()
  statistics = movielens.rating_statistics(
    item, user, seen.rating.to_numpy(np.float64), num_items
  )
  matrix = scipy.sparse.csr_matrix(
    (statistics.entries, (user, item)), shape=(user.max() + 1, num_items)
  )
  dimensions = min(SVD_DIMENSIONS, min(matrix.shape) - 1)
  svd = np.zeros((num_items, SVD_DIMENSIONS))
  if dimensions > 0:
    start = np.ones(min(matrix.shape))  # In place of a random one.
    _, scale, right = scipy.sparse.linalg.svds(matrix, dimensions, v0=start)
    svd[:, :dimensions] = movielens.signed((scale[:, None] * right)[::-1].T)
  year = tables.movies.title.str[-5:-1].to_numpy(np.float64)
  return movielens.item_features(
    svd, genre_matrix(tables.movies), statistics, year
  )


def make_sessions(tables: Tables, split: np.ndarray) -> dict[str, np.ndarray]:
  """Columns of the slates that have a history, and the `split` of each."""
  ratings = tables.ratings
  rate = movielens.base_rate(ratings, split)
  slates = movielens.slates(ratings, split)
  responses = movielens.genre_responses(
    ratings, genre_matrix(tables.movies), rate
  )
  sums = np.zeros((len(ratings) + 1, len(GENRES)))  # Of all rows before.
  np.cumsum(responses, 0, out=sums[1:])
  taste = sums[slates.start] - sums[slates.start - slates.before]
  people = demographics(tables.users)[ratings.user.to_numpy()[slates.start]]
  behaviour = movielens.behaviour(taste, rate, slates)
  return {**slates.columns, "profile": np.concatenate([people, behaviour], 1)}


def demographics(users: pd.DataFrame) -> np.ndarray:
  """Gender, age and occupation, one-hot, [U, 2 + 7 + 21]."""
  return np.concatenate(
    [
      users[column].to_numpy()[:, None] == np.array(values)
      for column, values in (
        ("gender", GENDERS),
        ("age", AGES),
        ("occupation", OCCUPATIONS),
      )
    ],
    1,
  ).astype(np.float32)
