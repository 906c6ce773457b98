"""The builder of MovieLens-latest-small: splits by time, and no leaks.

Slates are those of movielens_1m_test, which has all columns by hand.
"""

import functools

import numpy as np
import pandas as pd
from absl.testing import absltest, parameterized

from hsrl_jax.data import prepare
from hsrl_jax.shipped.datasets import movielens

NAME = "movielens_latest_small"

builder = prepare.load_builder(
  prepare.builder_folder(NAME) / f"{NAME}_dataset_builder.py"
)


@functools.cache
def _real():
  ratings = builder.load_ratings()
  return ratings, movielens.split_of_rating(ratings)


def _table(users=12, ratings=37, items=60, seed=0):
  """Ratings by user and time as `load_ratings` gives them, but few."""
  rng = np.random.default_rng(seed)
  genres = ["Comedy", "Drama", "Comedy|Drama", "Action|Comedy", "Action"]
  item = np.concatenate(
    [rng.permutation(items)[:ratings] + 1 for _ in range(users)]
  )
  # The first users rate all there is, so that each item has a row.
  item[:items] = np.arange(1, items + 1)
  frame = pd.DataFrame(
    {
      "user_id": np.repeat(np.arange(1, users + 1), ratings),
      "timestamp": np.tile(np.arange(ratings), users),
      "item": item.astype("int32"),
      "movie_id": 10 * item,
      "rating": rng.integers(1, 11, users * ratings) / 2,
      "year": 1950.0 + item,
      "genres": [genres[i % 5] for i in item],
    }
  )
  return _with_positive(frame)


def _with_positive(frame):
  return frame.assign(positive=(frame.rating > 3).astype("float32"))


def _rerated(frame, rows, ratings):
  rating = frame.rating.to_numpy(copy=True)
  rating[rows] = ratings
  return _with_positive(frame.assign(rating=rating))


def _by_start(sessions):
  """Rows by their user and the time of the slate."""
  rows = [
    dict(zip(sessions, row, strict=True))
    for row in zip(*sessions.values(), strict=True)
  ]
  return {(r["user_id"], r["timestamp"]): r for r in rows}


class SplitByUserTest(absltest.TestCase):
  def test_each_user_is_in_one_split(self):
    ratings, _ = _real()
    split = movielens.split_of_rating(ratings, "user")
    by_user = pd.Series(split).groupby(ratings.user_id.to_numpy())
    self.assertEqual(by_user.nunique().max(), 1)
    shares = by_user.first().value_counts(normalize=True)
    # 671 users; three standard deviations of a tenth are 0.035.
    self.assertAlmostEqual(shares["test"], 0.1, delta=0.035)
    self.assertAlmostEqual(shares["val"], 0.1, delta=0.035)
    sessions = builder.make_sessions(ratings, split)
    users = {
      x: set(sessions["user_id"][sessions["split"] == x])
      for x in ("train", "val", "test")
    }
    self.assertEmpty(users["train"] & users["test"])
    self.assertEmpty(users["train"] & users["val"])
    self.assertEmpty(users["val"] & users["test"])

  def test_nobody_moves_when_others_come(self):
    few = _table(users=12)
    split = movielens.split_of_rating(few, "user")
    more = pd.concat([few, few.assign(user_id=few.user_id + 100)])
    again = movielens.split_of_rating(more, "user")
    np.testing.assert_array_equal(again[: len(few)], split)
    self.assertGreater(len(set(again)), 1)

  def test_training_sees_nothing_of_test_users(self):
    table = _table(users=40, ratings=30)
    split = movielens.split_of_rating(table, "user")
    self.assertCountEqual(set(split), ("train", "val", "test"))
    held_out = np.flatnonzero(split != "train")
    other = _rerated(table, held_out, 5.5 - table.rating.to_numpy()[held_out])
    for made in (
      lambda x: builder.item_features(x, split == "train"),
      lambda x: builder.make_sessions(x, split)["profile"][
        builder.make_sessions(x, split)["split"] == "train"
      ],
    ):
      np.testing.assert_array_equal(made(table), made(other))


class SplitTest(parameterized.TestCase):
  @parameterized.parameters(
    # Ratings; in train, in val, in test.
    (37, 17, 10, 10),  # 3 slates of 10 and a rest of 7.
    (20, 10, 0, 10),  # Two slates: too few for a val.
    (29, 19, 0, 10),
    (10, 0, 0, 10),
    (105, 85, 10, 10),
    (164, 124, 20, 20),  # A tenth of 16 slates, rounded: 2.
    (8, 8, 0, 0),  # No slate at all.
  )
  def test_by_hand(self, size, train, val, test):
    # Between two other users, who must keep theirs.
    frame = pd.DataFrame({"user_id": [1] * 20 + [2] * size + [3] * 20})
    split = movielens.split_of_rating(frame).tolist()
    other = ["train"] * 10 + ["test"] * 10
    self.assertEqual(split[:20], other)
    self.assertEqual(split[-20:], other)
    self.assertEqual(
      split[20:-20], ["train"] * train + ["val"] * val + ["test"] * test
    )


class SessionsTest(parameterized.TestCase):
  def test_past_alone_is_seen(self):
    """Whatever happens from a slate on, its history and profile stay."""
    frame = _table()
    split = movielens.split_of_rating(frame)
    before = _by_start(builder.make_sessions(frame, split))
    rng = np.random.default_rng(1)
    time = frame.timestamp.to_numpy()
    for start in (7, 17, 27):
      # A shuffle in the train split keeps its base rate, which profiles use.
      rating = frame.rating.to_numpy(copy=True)
      for name in ("train", "val", "test"):
        rows = np.flatnonzero((time >= start) & (split == name))
        rating[rows] = rating[rng.permutation(rows)]
      changed = _rerated(frame, slice(None), rating)
      after = _by_start(builder.make_sessions(changed, split))
      later_changed = 0
      for key, row in before.items():
        same = all(
          np.array_equal(row[name], after[key][name])
          if name == "history"
          else np.allclose(row[name], after[key][name], atol=1e-5)
          for name in ("history", "profile")
        )
        if key[1] <= start:
          self.assertTrue(same, key)
        later_changed += not same
      self.assertEqual(later_changed > 0, start < 27)

  def test_profile_by_hand(self):
    frame = _table()
    split = movielens.split_of_rating(frame)
    base = frame.positive[split == "train"].mean()
    row = _by_start(builder.make_sessions(frame, split))[5, 17]
    past = frame[(frame.user_id == 5) & (frame.timestamp < 17)]
    taste = np.zeros(3)
    for film in past.itertuples():
      names = film.genres.split("|")
      for i, genre in enumerate(("Action", "Comedy", "Drama")):
        weight = (genre in names) / np.sqrt(len(names))
        taste[i] += weight * (film.positive - base)
    share = (past.positive.sum() + 5 * base) / 22
    expected = [
      *(taste / np.sqrt(22)),
      4 * (share - base),
      np.log(18) / 3 - 1,
    ]
    np.testing.assert_allclose(row["profile"], expected, atol=1e-5)


class ItemFeaturesTest(parameterized.TestCase):
  def test_train_split_alone_is_seen(self):
    frame = _table()
    split = movielens.split_of_rating(frame)
    train = split == "train"
    before = builder.item_features(frame, train)
    self.assertEqual(before.shape, (60, 8 + 3 + 3))
    self.assertTrue(np.isfinite(before).all())
    rng = np.random.default_rng(1)
    other = rng.integers(1, 11, (~train).sum()) / 2
    after = builder.item_features(_rerated(frame, ~train, other), train)
    np.testing.assert_array_equal(before, after)
    # While a rating of the train split changes them.
    first = np.flatnonzero(train)[0]
    new = 5.5 - frame.rating[first]
    after = builder.item_features(_rerated(frame, first, new), train)
    self.assertGreater(np.abs(before - after).max(), 1e-3)

  def test_genres_have_unit_length(self):
    frame = _table()
    found = builder.genre_matrix(builder.films_of(frame))
    first = frame.drop_duplicates("item").set_index("item").genres
    half = np.sqrt(0.5)
    rows = {
      "Comedy": [0, 1, 0],
      "Drama": [0, 0, 1],
      "Action": [1, 0, 0],
      "Comedy|Drama": [0, half, half],
      "Action|Comedy": [half, half, 0],
    }
    for item in range(1, 61):
      np.testing.assert_allclose(found[item - 1], rows[first[item]], rtol=1e-6)


class RealTableTest(parameterized.TestCase):
  def test_sizes(self):
    ratings, split = _real()
    self.assertLen(ratings, 100_004)
    self.assertEqual(ratings.user_id.nunique(), 671)
    self.assertEqual(ratings.item.nunique(), 9_066)
    self.assertEqual((ratings.item.min(), ratings.item.max()), (1, 9_066))
    self.assertGreaterEqual(ratings.groupby("user_id").size().min(), 20)
    self.assertLen(split, 100_004)
    self.assertLen(builder.genre_names(builder.films_of(ratings)), 20)

  def test_order_and_split_run_by_time(self):
    ratings, split = _real()
    order = {"train": 0, "val": 1, "test": 2}
    frame = ratings.assign(part=[order[s] for s in split])
    step = frame.groupby("user_id")[["timestamp", "part"]].diff().dropna()
    self.assertGreaterEqual(step.min().min(), 0)
    parts = frame.groupby("user_id").part.agg(set)
    self.assertTrue(all({0, 2} <= p for p in parts))


if __name__ == "__main__":
  absltest.main()
