"""MovieLens-1M as slates, out of the official files.

`--raw_data_dir` holds `ratings.dat`, `users.dat` and `movies.dat`, fields
separated by `::`, latin-1. Two configs share one builder:
  `items`     one row per rated film: id, feature vector, title, genres.
  `sessions`  one row per slate: a user's profile, history, slate, response.

Splits run by time within each user. Everything that is learned from ratings
(item features) sees the train split only; a user's profile and history see
only what that user did before the slate.
"""

import io
import pathlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import tensorflow_datasets as tfds

from hsrl_jax.errors import InputError

SLATE_SIZE = 10
HISTORY_LENGTH = 50
POSITIVE_ABOVE = 3.0  # stars; the benchmark's definition of a positive response
# With 8, 16, 32 a click model's AUC within users is 0.698, 0.700, 0.703.
SVD_DIMENSIONS = 16
RATING_PRIOR = 10.0  # ratings of the average film that every film starts with
PROFILE_PRIOR = 5.0  # the same, for a user's share of positive responses
HELD_OUT = 0.1  # share of each user's slates in `val`, and again in `test`

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
ITEM_STATISTICS = ("mean rating", "log popularity", "year")
PROFILE_STATISTICS = ("positive share", "log ratings")
COLUMNS = {
  "ratings.dat": ("user_id", "movie_id", "rating", "timestamp"),
  "users.dat": ("user_id", "gender", "age", "occupation", "zip_code"),
  "movies.dat": ("movie_id", "title", "genres"),
}
TEXTS = ("gender", "zip_code", "title", "genres")


class Builder(tfds.core.GeneratorBasedBuilder):
  """Writes `items` and `sessions` (DESIGN: data schema) as array_record."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "ratings.dat, users.dat and movies.dat of MovieLens-1M "
    "(grouplens.org/datasets/movielens/1m)"
  )
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name="sessions", description="Slates of films."),
    tfds.core.BuilderConfig(name="items", description="Films."),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    tensor = tfds.features.Tensor
    if self.builder_config.name == "items":
      width = SVD_DIMENSIONS + len(GENRES) + len(ITEM_STATISTICS)
      features = {
        "item_id": np.int32,
        "feature": tensor(shape=(width,), dtype=np.float32),
        "external_id": tfds.features.Text(),
        "title": tfds.features.Text(),
        "genres": tfds.features.Text(),
      }
    else:
      width = len(GENDERS) + len(AGES) + len(OCCUPATIONS)
      width += len(GENRES) + len(PROFILE_STATISTICS)
      features = {
        "user_id": np.int32,
        "profile": tensor(shape=(width,), dtype=np.float32),
        "history": tensor(shape=(HISTORY_LENGTH,), dtype=np.int32),
        "history_length": np.int32,
        "exposed": tensor(shape=(SLATE_SIZE,), dtype=np.int32),
        "response": tensor(shape=(SLATE_SIZE,), dtype=np.float32),
        "timestamp": np.int64,
      }
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(features),
      homepage="https://grouplens.org/datasets/movielens/1m/",
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    tables = load_tables(pathlib.Path(dl_manager.manual_dir))
    split = split_of_rating(tables.ratings)
    if self.builder_config.name == "items":
      return {"items": self._generate_items(tables, split)}
    sessions = make_sessions(tables, split)
    return {
      name: self._generate_examples(sessions, name)
      for name in ("train", "val", "test")
    }

  def _generate_examples(self, sessions, name):
    for row in np.flatnonzero(sessions["split"] == name):
      yield int(row), {k: x[row] for k, x in sessions.items() if k != "split"}

  def _generate_items(self, tables, split):
    feature = item_features(tables, split == "train")
    for i, film in enumerate(tables.movies.itertuples()):
      yield (
        i,
        {
          "item_id": i + 1,
          "feature": feature[i],
          "external_id": str(film.movie_id),
          "title": film.title,
          "genres": film.genres,
        },
      )


class Tables(NamedTuple):
  """The three files.

  Attributes:
    ratings: by user and time, R rows, with `item` (1..N), `user` (row of
      `users`) and `positive`.
    users: as published.
    movies: those with a rating; item i is row i - 1.
  """

  ratings: pd.DataFrame
  users: pd.DataFrame
  movies: pd.DataFrame


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
  ratings["positive"] = (ratings.rating > POSITIVE_ABOVE).astype("float32")
  return Tables(ratings, users, movies)


def read_table(path: pathlib.Path) -> pd.DataFrame:
  """Reads one of COLUMNS; all but TEXTS are integers.

  Raises:
    InputError: it is missing or empty, or the row that cannot be read.
  """
  columns = COLUMNS[path.name]
  if not path.exists():
    raise InputError(
      f"{path} is missing; expected {', '.join(COLUMNS)} of MovieLens-1M in "
      "--raw_data_dir"
    )
  text = path.read_text("latin-1").replace("\r\n", "\n").rstrip("\n")
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
    bad = ~(numbers % 1 == 0)
    if bad.any():
      row = int(np.argmax(bad))
      raise InputError(
        f"{path}: row {row + 1} has {column} {table[column][row]!r} "
        f"({int(bad.sum())} such rows); expected an integer"
      )
    table[column] = numbers.astype(np.int64)
  return table


def split_of_rating(ratings: pd.DataFrame) -> np.ndarray:
  """Names the split of each rating, [R]: by whole slates, oldest first.

  A user's ratings are cut into slates from the newest backwards, so that the
  remainder, too short for a slate, is the start of the history.
  """
  first, size, _ = _user_rows(ratings)
  slates = size // SLATE_SIZE
  held_out = np.maximum(1, np.round(HELD_OUT * slates))
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


def genre_matrix(movies: pd.DataFrame) -> np.ndarray:
  """Genre membership of each item, rows of unit length, [N, 18]."""
  member = np.array(
    [[g in genres.split("|") for g in GENRES] for genres in movies.genres],
    np.float32,
  )
  return member / np.sqrt(member.sum(1, keepdims=True))


def item_features(tables: Tables, train: np.ndarray) -> np.ndarray:
  """Features of each item, [N, D]; `train` [R] marks the ratings it may see.

  Columns: an SVD of the users' centred ratings, genres, and the statistics
  named in ITEM_STATISTICS.
  """
  num_items = len(tables.movies)
  seen = tables.ratings[train]
  item, user = seen.item.to_numpy() - 1, seen.user.to_numpy()
  rating = seen.rating.to_numpy(np.float64)
  centre = rating.mean()
  count = np.bincount(item, minlength=num_items)
  total = np.bincount(item, weights=rating - centre, minlength=num_items)
  mean_rating = total / (count + RATING_PRIOR)

  residual = rating - centre - mean_rating[item]
  rated = np.maximum(np.bincount(user), 1)
  user_mean = np.bincount(user, weights=residual) / rated
  # Frequent films would own every direction; damp them by their root.
  entries = (residual - user_mean[user]) / np.sqrt(count[item] + RATING_PRIOR)
  matrix = scipy.sparse.csr_matrix(
    (entries, (user, item)), shape=(len(rated), num_items)
  )
  dimensions = min(SVD_DIMENSIONS, min(matrix.shape) - 1)
  svd = np.zeros((num_items, SVD_DIMENSIONS))
  if dimensions > 0:
    start = np.ones(min(matrix.shape))  # In place of a random one.
    _, scale, right = scipy.sparse.linalg.svds(matrix, dimensions, v0=start)
    top = (scale[:, None] * right)[::-1].T
    top *= np.sign(top[np.abs(top).argmax(0), np.arange(dimensions)])
    svd[:, :dimensions] = top

  year = tables.movies.title.str[-5:-1].to_numpy(np.float64)
  statistics = np.stack([mean_rating, np.log1p(count), year], 1)
  return np.concatenate(
    [
      _scaled(svd),
      genre_matrix(tables.movies),
      _scaled(statistics, each_column=True),
    ],
    1,
  ).astype(np.float32)


def _scaled(block: np.ndarray, each_column: bool = False) -> np.ndarray:
  """Centred, with a mean square of one a column (or over the block)."""
  block = block - block.mean(0)
  size = np.sqrt(np.mean(block**2, axis=0 if each_column else None))
  return block / np.where(size > 0, size, 1)


def make_sessions(tables: Tables, split: np.ndarray) -> dict[str, np.ndarray]:
  """Columns of the slates that have a history, and the `split` of each."""
  ratings = tables.ratings
  first, size, place = _user_rows(ratings)
  positive = ratings.positive.to_numpy()
  liked = np.flatnonzero(positive)
  liked_before = np.concatenate([[0], np.cumsum(positive > 0)])

  starts = (place - size) % SLATE_SIZE == 0
  starts &= liked_before[:-1] > liked_before[first]  # Something is known.
  start = np.flatnonzero(starts)
  begin, before = first[start], place[start]
  slate = start[:, None] + np.arange(SLATE_SIZE)

  # The last positives before the slate, newest last; none of another user.
  which = liked_before[start][:, None] + np.arange(-HISTORY_LENGTH, 0)
  own = which >= liked_before[begin][:, None]
  item = ratings["item"].to_numpy(np.int32)
  history = np.where(own, item[liked[np.maximum(which, 0)]], 0)

  base_rate = float(positive[split == "train"].mean())
  taste = np.zeros((len(item) + 1, len(GENRES)))  # Sums of all rows before.
  genres = genre_matrix(tables.movies)[item - 1]
  np.cumsum(genres * (positive - base_rate)[:, None], 0, out=taste[1:])
  taste = taste[start] - taste[begin]
  share = liked_before[start] - liked_before[begin] + PROFILE_PRIOR * base_rate
  share = share / (before + PROFILE_PRIOR)
  profile = np.concatenate(
    [
      demographics(tables.users)[ratings.user.to_numpy()[start]],
      taste / np.sqrt(before + PROFILE_PRIOR)[:, None],
      4.0 * (share - base_rate)[:, None],
      np.log1p(before)[:, None] / 3.0 - 1.0,
    ],
    1,
  )
  return {
    "split": split[start],
    "user_id": ratings.user_id.to_numpy(np.int32)[start],
    "profile": profile.astype(np.float32),
    "history": history.astype(np.int32),
    "history_length": own.sum(1).astype(np.int32),
    "exposed": item[slate],
    "response": positive[slate],
    "timestamp": ratings.timestamp.to_numpy()[start],
  }


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
