"""The builder of MovieLens-1M on made-up files in the official format."""

import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.data import prepare
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets import movielens, schema
from tests import folders

NAME = "movielens_1m"
FILMS = 45  # Of them FILMS - 5 are rated.


builder = prepare.load_builder(
  prepare.builder_folder(NAME) / f"{NAME}_dataset_builder.py"
)
GENRES = builder.GENRES


def _made_up(seed=0):
  """Lines of the three files, in no order; sizes with and without a rest."""
  rng = np.random.default_rng(seed)
  sizes = {2: 37, 5: 20, 6: 40, 11: 33, 12: 9}
  users = [
    f"{u}::{'FM'[u % 2]}::{[1, 25, 56][u % 3]}::{u}::0601{u}" for u in sizes
  ]
  users.append("99::F::18::20::1234-5")  # Rates nothing.
  films = []
  for i in range(FILMS):
    genres = rng.choice(GENRES, rng.integers(1, 4), replace=False)
    films.append(f'{3 * i + 2}::Café: "{i}" ({1950 + i})::{"|".join(genres)}')
  ratings = []
  for user, size in sizes.items():
    # Two of a user's ratings share a time now and then.
    times = np.sort(rng.integers(0, 3 * size, size)) + 978300000
    for time, i in zip(times, rng.permutation(FILMS - 5)[:size], strict=True):
      ratings.append(f"{user}::{3 * i + 2}::{rng.integers(1, 6)}::{time}")
  for lines in (users, films, ratings):
    rng.shuffle(lines)
  return {"users.dat": users, "movies.dat": films, "ratings.dat": ratings}


def _write(folder, files):
  folder = pathlib.Path(folder)
  for name, lines in files.items():
    folder.joinpath(name).write_text("\n".join(lines) + "\n", "latin-1")
  return folder


def _tables(files):
  with tempfile.TemporaryDirectory() as folder:
    return builder.load_tables(_write(folder, files))


def _by_hand(files):
  """The rows of `sessions`, one after the other, from the lines."""
  cells = [[int(x) for x in line.split("::")] for line in files["ratings.dat"]]
  numbers = {m: i + 1 for i, m in enumerate(sorted({c[1] for c in cells}))}
  genres = {}
  for line in files["movies.dat"]:
    film, _, names = line.split("::")
    row = np.array([g in names.split("|") for g in GENRES], float)
    genres[int(film)] = row / np.sqrt(row.sum())
  people = {}
  for line in files["users.dat"]:
    user, gender, age, job, _ = line.split("::")
    row = np.zeros(30)
    row["FM".index(gender)] = 1
    row[2 + [1, 18, 25, 35, 45, 50, 56].index(int(age))] = 1
    row[9 + int(job)] = 1
    people[int(user)] = row

  slates, train = [], []
  for user in sorted(people):
    own = sorted((c for c in cells if c[0] == user), key=lambda c: (c[3], c[1]))
    count = len(own) // 10
    for n in range(count):
      start = len(own) - 10 * (count - n)
      held_out = max(1, round(0.1 * count))
      split = "train"
      if n >= count - held_out:
        split = "test"
      elif count > 2 and n >= count - 2 * held_out:
        split = "val"
      slates.append((split, user, own[:start], own[start : start + 10]))
    first_held_out = [s[2] for s in slates if s[1] == user and s[0] != "train"]
    train += first_held_out[0] if first_held_out else own
  base = np.mean([c[2] > 3 for c in train])
  rows = []
  for split, user, past, slate in slates:
    liked = [numbers[c[1]] for c in past if c[2] > 3]
    if not liked:
      continue
    n = len(past)
    share = (len(liked) + 5 * base) / (n + 5)
    taste = sum(
      (genres[c[1]] * ((c[2] > 3) - base) for c in past), np.zeros(18)
    )
    rows.append(
      {
        "split": split,
        "user_id": user,
        "profile": [
          *people[user],
          *taste / np.sqrt(n + 5),
          4 * (share - base),
          np.log(1 + n) / 3 - 1,
        ],
        "history": ([0] * 50 + liked)[-50:],
        "exposed": [numbers[c[1]] for c in slate],
        "response": [float(c[2] > 3) for c in slate],
        "timestamp": slate[0][3],
      }
    )
  return rows


class SessionsTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2)
  def test_all_columns_by_hand(self, seed):
    files = _made_up(seed)
    tables = _tables(files)
    split = movielens.split_of_rating(tables.ratings)
    found = builder.make_sessions(tables, split)
    expected = _by_hand(files)
    self.assertEqual({r["split"] for r in expected}, {"train", "val", "test"})
    for name, column in found.items():
      want = np.array([row[name] for row in expected])
      if name == "profile":
        np.testing.assert_allclose(column, want, atol=1e-5)
      else:
        np.testing.assert_array_equal(column, want, name)

  def test_a_history_keeps_the_newest_of_the_same_user(self):
    self.enter_context(mock.patch.object(schema, "HISTORY_LENGTH", 4))
    files = _made_up()
    tables = _tables(files)
    split = movielens.split_of_rating(tables.ratings)
    found = builder.make_sessions(tables, split)
    want = [row["history"][-4:] for row in _by_hand(files)]
    np.testing.assert_array_equal(found["history"], want)
    self.assertIn(0, found["history"][:, 0])
    self.assertGreater(found["history"][:, 0].max(), 0)

  def test_train_rows_and_item_features_see_no_held_out_rating(self):
    files = _made_up()
    tables = _tables(files)
    split = movielens.split_of_rating(tables.ratings)
    train = split == "train"
    other = tables.ratings.copy()
    other.loc[~train, "rating"] = 6 - other.rating[~train]
    other["positive"] = (other.rating > 3).astype("float32")
    changed = tables._replace(ratings=other)
    before = builder.make_sessions(tables, split)
    after = builder.make_sessions(changed, split)
    rows = before["split"] == "train"
    for name in before:
      np.testing.assert_array_equal(before[name][rows], after[name][rows])
    self.assertFalse(np.array_equal(before["response"], after["response"]))
    features = builder.item_features(tables, train)
    np.testing.assert_array_equal(
      features, builder.item_features(changed, train)
    )
    self.assertFalse(
      np.array_equal(features, builder.item_features(changed, ~train))
    )


class ItemFeaturesTest(absltest.TestCase):
  def test_columns_by_hand(self):
    files = _made_up()
    tables = _tables(files)
    train = movielens.split_of_rating(tables.ratings) == "train"
    found = builder.item_features(tables, train)
    seen = tables.ratings[train]
    items = FILMS - 5
    centre = seen.rating.mean()
    count, mean = np.zeros(items), np.zeros(items)
    for r in seen.itertuples():
      count[r.item - 1] += 1
      mean[r.item - 1] += r.rating - centre
    mean /= count + 10
    matrix = np.zeros((tables.ratings.user.max() + 1, items))
    for _, own in seen.groupby("user_id"):
      rest = own.rating - centre - mean[own["item"] - 1]
      rest = (rest - rest.mean()) / np.sqrt(count[own["item"] - 1] + 10)
      matrix[own.user, own["item"] - 1] = rest
    _, scale, right = np.linalg.svd(matrix)
    known = len(found[0]) - 18 - 3
    dimensions = min(known, len(matrix) - 1)
    svd = scale[:dimensions, None] * right[:dimensions]
    svd = (svd - svd.mean(1, keepdims=True)).T
    svd /= np.sqrt((svd**2).sum() / (items * known))
    for column in range(dimensions):  # A singular vector has no sign.
      sign = np.sign(found[:, column] @ svd[:, column])
      np.testing.assert_allclose(
        found[:, column], sign * svd[:, column], atol=1e-4
      )
    year = np.array([float(x[-5:-1]) for x in tables.movies.title])
    for column, want in enumerate((mean, np.log(1 + count), year), -3):
      want = (want - want.mean()) / want.std()
      np.testing.assert_allclose(found[:, column], want, atol=1e-5)


class PrepareTest(folders.DataTest):
  def test_what_is_written_is_what_is_read(self):
    files = _made_up()
    _write(self.raw, files)
    items, splits = self.prepared(NAME)
    rows = _by_hand(files)
    for name, sessions in splits.items():
      own = [row for row in rows if row["split"] == name]
      logged = {k: v for k, v in sessions._asdict().items() if v is not None}
      self.assertLen(logged, 6)
      for column, values in logged.items():
        np.testing.assert_allclose(
          values, [row[column] for row in own], atol=1e-5
        )
    rated = sorted({int(x.split("::")[1]) for x in files["ratings.dat"]})
    self.assertEqual(items.external_ids[1:], [str(x) for x in rated])
    lines = {int(x.split("::")[0]): x for x in files["movies.dat"]}
    for film, title, genres in zip(
      rated, items.titles[1:], items.genres[1:], strict=True
    ):
      self.assertEqual(lines[film], f"{film}::{title}::{genres}")

  @parameterized.parameters(
    ("ratings.dat", "2::5::5", "ratings.dat: row 4 is '2::5::5'; expected"),
    ("ratings.dat", "2::5::5::1::1", "row 4 is '2::5::5::1::1'"),
    ("ratings.dat", "", "row 4 is ''; expected user_id::movie_id::rating::"),
    ("ratings.dat", "2::5::x::1", "row 4 has rating 'x' (1 such rows)"),
    ("ratings.dat", "2::5::2.5::1", "row 4 has rating '2.5'"),
    ("ratings.dat", "2::5::5::1e30", "row 4 has timestamp '1e30'"),
    ("ratings.dat", "2::5::6::1", "row 4 has rating 6"),
    ("ratings.dat", "3::5::5::1", "row 4 has user_id 3"),
    ("ratings.dat", "2::4::5::1", "row 4 has movie_id 4"),
    ("users.dat", "3::X::1::0::1", "users.dat: row 4 has gender 'X'"),
    ("users.dat", "3::F::2::0::1", "row 4 has age 2"),
    ("users.dat", "3::F::1::21::1", "row 4 has occupation 21"),
    ("users.dat", "99::F::1::0::1", "each user once"),
    ("movies.dat", "1::Heat::Action", "movies.dat: row 4 has title 'Heat'"),
    ("movies.dat", "1::Heat (1995)::Fun", "row 4 has genres 'Fun'"),
    ("movies.dat", "2::Heat (1995)::Action", "each film once"),
  )
  def test_a_bad_row_is_named(self, name, line, message):
    files = _made_up()
    files[name].insert(3, line)
    _write(self.raw, files)
    with self.refused(message, str(self.raw / name)):
      self.prepared(NAME)

  def test_a_film_twice(self):
    files = _made_up()
    files["ratings.dat"].append(files["ratings.dat"][0])
    _write(self.raw, files)
    with self.assertRaisesRegex(InputError, "each film once a user"):
      self.prepared(NAME)

  @parameterized.parameters("users.dat", "movies.dat", "ratings.dat")
  def test_a_missing_or_an_empty_file(self, name):
    _write(self.raw, _made_up())
    (self.raw / name).write_text("")
    with self.assertRaisesRegex(InputError, f"{name}: row 1 is ''"):
      self.prepared(NAME)
    (self.raw / name).unlink()
    with self.assertRaisesRegex(InputError, f"{name} is missing; expected"):
      self.prepared(NAME)


if __name__ == "__main__":
  absltest.main()
