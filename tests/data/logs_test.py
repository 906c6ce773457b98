"""The builder of logs of one's own: csv and parquet, good and bad."""

from unittest import mock

import numpy as np
import pandas as pd
from absl.testing import absltest, parameterized

from hsrl_jax.data import prepare, source
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.logs import tags
from tests import folders


class LogsTest(folders.DataTest):
  def setUp(self):
    super().setUp()
    # Ids in no order, one that looks like a number of another row.
    self.items = {
      "item_id": ["b", "2", "a", "1"],
      "feature": [[0.5, 1.0], [0.25, -1.0], [2.0, 3.0], [0.0, 1e-3]],
      "title": ["B", 'The "2", now', "Ä", "One"],
      "genres": ["x|y", "", "y", "x"],
    }
    # Not in the order of time; user "v" comes first.
    self.sessions = {
      "user_id": ["v", "u", "u", "v", "u"],
      "profile": [[0.5], [1.0], [1.5], [2.0], [2.5]],
      "history": [["a", "1"], [], ["b"] * 60, ["1"], ["2"]],
      "exposed": [["b", "2"], ["2", "a"], ["a", "b"], ["1", "b"], ["b", "a"]],
      "response": [[1, 0], [1, 1], [0, 0], [0, 1], [1, 1]],
      "timestamp": [40, 10.5, 30, 20, 50],
      "split": ["val", "train", "train", "train", "test"],
    }

  def _write(self, suffix):
    for name in ("items", "sessions"):
      frame = pd.DataFrame(getattr(self, name))
      path = self.raw / f"{name}{suffix}"
      if suffix == ".parquet":
        frame.to_parquet(path)
        continue
      for column in frame:
        if isinstance(frame[column][0], list):
          frame[column] = [";".join(map(str, x)) for x in frame[column]]
      frame.to_csv(path, index=False)

  def _prepare(self, suffix=".csv"):
    self._write(suffix)
    return self.prepared("logs")

  def _refused(self, message):
    with self.refused(message, str(self.raw)):
      self.prepared("logs")

  @parameterized.parameters(".csv", ".parquet")
  def test_all_columns_by_hand(self, suffix):
    items, splits = self._prepare(suffix)
    self.assertEqual(items.external_ids, ["", "b", "2", "a", "1"])
    self.assertEqual(items.titles, ["", "B", 'The "2", now', "Ä", "One"])
    self.assertEqual(items.genres, ["", "x|y", "", "y", "x"])
    np.testing.assert_allclose(
      items.features, [[0, 0], [0.5, 1], [0.25, -1], [2, 3], [0, 1e-3]]
    )
    train = splits["train"]  # By time.
    np.testing.assert_array_equal(train.user_id, [2, 1, 2])
    np.testing.assert_array_equal(train.profile, [[1.0], [2.0], [1.5]])
    np.testing.assert_array_equal(train.exposed, [[2, 3], [4, 1], [3, 1]])
    np.testing.assert_array_equal(train.response, [[1, 1], [0, 1], [0, 0]])
    np.testing.assert_array_equal(
      train.history, [[0] * 50, [0] * 49 + [4], [1] * 50]
    )
    self.assertEqual(splits["val"].history[0, -3:].tolist(), [0, 3, 4])
    self.assertEqual(splits["test"].user_id.tolist(), [2])

  @parameterized.parameters(".csv", ".parquet")
  def test_items_may_be_what_was_shown(self, suffix):
    self.sessions["history"] = [["2"], [], ["b"], ["1"], ["2"]]
    self._write(suffix)
    (self.raw / f"items{suffix}").unlink()
    items, splits = self.prepared("logs")
    # In the order of the rows.
    self.assertEqual(items.external_ids, ["", "b", "2", "a", "1"])
    self.assertEqual(items.titles[1:], ["b", "2", "a", "1"])
    shown = splits["train"].exposed
    np.testing.assert_array_equal(shown, [[2, 3], [4, 1], [3, 1]])

  @parameterized.parameters(".csv", ".parquet")
  def test_what_may_be_missing(self, suffix):
    for name in ("title", "genres"):
      del self.items[name]
    for name in ("profile", "history", "split"):
      del self.sessions[name]
    items, splits = self._prepare(suffix)
    self.assertEqual(items.titles, items.external_ids)
    self.assertEqual(items.genres, [""] * 5)
    rows = [
      (x.profile.shape, x.user_id.tolist(), x.history[:, -4:].tolist())
      for x in splits.values()
    ]
    self.assertEqual(
      rows,
      [
        ((3, 0), [2, 1, 2], [[0] * 4, [0] * 4, [0, 0, 2, 3]]),
        ((1, 0), [1], [[0, 0, 0, 1]]),
        ((1, 0), [2], [[0, 0, 2, 3]]),
      ],
    )

  def _write_users(self, suffix, **columns):
    users = pd.DataFrame({"user_id": ["u", "x", "y", "z"]} | columns)
    path = self.raw / f"users{suffix}"
    if suffix == ".csv":
      users.to_csv(path, index=False)
    else:
      users.to_parquet(path)

  @parameterized.parameters(".csv", ".parquet")
  def test_profiles_of_a_file_of_users(self, suffix):
    del self.sessions["profile"]
    self._write_users(
      suffix,
      age=[20.0, 30.0, None, 40.0],
      gender=["m", "m", "f", None],
      name=["a", "b", "c", "d"],
    )
    _, splits = self._prepare(suffix)
    scale = np.std([20, 30, 40])
    # Nothing is known of user v, who is number 1.
    want = {1: [0, 0, 0], 2: [(20 - 30) / scale, 0, 1]}
    for rows in splits.values():
      np.testing.assert_allclose(
        rows.profile, [want[x] for x in rows.user_id], rtol=1e-6
      )
    told = prepare.notes(self.data)
    self.assertContainsSubset(
      [
        f"users{suffix}: profiles are (age - 30) / {scale:.6g}, gender=f, "
        "gender=m; without name (4 values of 4 users)",
        f"users{suffix}: 1 of 2 users of the logs have no row; their profiles "
        "are zeros",
      ],
      told,
    )

  def test_files_of_users_that_are_no_good(self):
    self._write(".csv")
    self._write_users(".csv", age=[1, 2, 3, 4])
    self._refused("has a file users, and its logs a column profile; expected")
    del self.sessions["profile"]
    self._write(".csv")
    self._write_users(".csv", age=[1, 2, 1e9, 4])
    self._refused("users.csv: row 4, column age: found '1000000000.0'; expect")
    self._write_users(".csv", user_id=["u", "x", "u", "z"])
    self._refused("users.csv: row 4, column user_id: found a user of an earlie")
    self._write_users(".csv", name=["a", "b", "c", "d"])
    self._refused("users.csv has no column for profiles; expected numbers, or")

  def test_few_numbers_that_would_drown_a_profile_are_cut(self):
    repeated = {name: x * 10 for name, x in self.sessions.items()}
    repeated["profile"] = [[3.0, 2000.0] for _ in repeated["user_id"]]
    repeated["profile"][1] = [-1e6, 9000.0]
    repeated["profile"][3] = [90.0, -1e6]
    self.sessions = repeated
    _, splits = self._prepare()
    found = np.concatenate([x.profile for x in splits.values()])
    for column, want in enumerate(((-100, 3, 90), (-20_000, 2000, 9000))):
      np.testing.assert_allclose(np.unique(found[:, column]), want)
    self.assertIn(
      "sessions.csv: profiles of 2 slates have numbers more than ten times as "
      "large as 95 % of their column, and were cut there",
      prepare.notes(self.folder / "data"),
    )

  @parameterized.parameters(".csv", ".parquet")
  def test_tags_and_times(self, suffix):
    self.items |= {
      "tags": [["new", "kids", "new"], [], ["region=us"], ["kids"]],
      "region": ["eu; us", "", "us", "eu"],
      "stars": ["3", "", "4.5", "1"],
      "story": ["a b", "b", "c", ""],
      "added": ["7", "0", "1970-01-02", "4294967294"],
    }
    if suffix == ".parquet":
      lists = [x.split(";") if x else None for x in self.items["region"]]
      self.items["region"] = lists
    items, _ = self._prepare(suffix)
    self.assertEqual(
      items.tags,
      [
        [],
        ["new", "kids", "region=eu", "region=us"],
        [],
        ["region=us"],
        ["kids", "region=eu"],
      ],
    )
    self.assertEqual(items.added.tolist(), [0, 7, 0, 86_400, 2**32 - 2])
    self.assertIn(
      f"items{suffix}: tags that requests may include: genres, tags, region; "
      "not of stars (numbers), story (3 values of 4 items)",
      prepare.notes(self.folder / "data"),
    )

  def test_genres_that_look_like_one(self):
    told = "items.csv: genres: 2 have ';' in a name; expected | between"
    self.items["genres"] = ["x;y", "", "y;z", "x"]
    items, _ = self._prepare()
    self.assertEqual(items.genres[1], "x;y")
    self.assertIn(told, prepare.notes(self.folder / "data"))

  def test_a_column_has_so_many_tags(self):
    self.items |= {"region": ["eu", "us", "us", "eu"], "tone": ["a"] * 4}
    with mock.patch.object(tags, "MOST", 1):
      items, _ = self._prepare()
    self.assertEqual(items.tags, [[], *[["tone=a"]] * 4])

  def test_without_tags_or_times(self):
    items, _ = self._prepare()
    self.assertEqual((items.tags, items.added), ([[]] * 5, None))

  def test_ids_of_integers(self):
    self.items["item_id"] = [30, 7, 1, 2]
    new = {"b": 30, "2": 7, "a": 1, "1": 2}
    for name in ("history", "exposed"):
      self.sessions[name] = [[new[i] for i in x] for x in self.sessions[name]]
    items, splits = self._prepare(".parquet")
    self.assertEqual(items.external_ids[1:], ["30", "7", "1", "2"])
    np.testing.assert_array_equal(splits["train"].exposed[0], [2, 3])

  @parameterized.parameters(
    ("items", "item_id", "2", "'2' is in row 3 too; expected each item once"),
    ("items", "item_id", "", "found ''; expected an integer or a string"),
    ("items", "feature", [1.0], "found 1 entries; expected 2, as many as in"),
    ("items", "feature", [1.0, "x"], "found 'x'; expected a finite number"),
    ("items", "feature", [1.0, np.nan], "found 'nan'; expected a finite"),
    (
      "items",
      "feature",
      [1.0, -1e7],
      "found '-10000000.0'; expected at most 1",
    ),
    ("items", "feature", [], "found ''; expected at least one number"),
    ("sessions", "user_id", "", "found ''; expected an integer or a string"),
    ("sessions", "profile", [1.0, 2.0], "found 2 entries; expected 1"),
    (
      "sessions",
      "profile",
      [1.1e6],
      "found '1100000.0'; expected at most 1e+06 in size, which training in "
      "float32 holds: bring the column to another scale",
    ),
    ("sessions", "profile", ["inf"], "found 'inf'; expected a finite number"),
    ("sessions", "history", ["c"], "found item 'c'; expected an item_id"),
    ("sessions", "exposed", ["c", "a"], "found item 'c'; expected an item_"),
    ("sessions", "exposed", ["a", "a"], "found 'a;a'; expected different it"),
    ("sessions", "exposed", ["a"], "found 1 entries; expected 2"),
    (
      "sessions",
      "response",
      [1],
      "found 1 entries; expected 2, as many as in e",
    ),
    ("sessions", "response", [1, 2], "found '2'; expected 0 or 1"),
    ("sessions", "timestamp", "noon", "found 'noon'; expected a finite number"),
    ("sessions", "split", "dev", "found 'dev'; expected train, val, test"),
    ("items", "tags", "a;;b", "found 'a;;b'; expected names (csv: with ; "),
    ("items", "added", "-1", "found '-1'; expected a time from 0 to 42949672"),
    ("items", "added", "4294967295", "found '4294967295'; expected a time f"),
    ("items", "added", "", "found ''; expected a finite number, or a date"),
  )
  def test_a_bad_cell_is_named(self, name, column, cell, message):
    self.items |= {"tags": ["a"] * 4, "added": ["0"] * 4}
    getattr(self, name)[column][2] = cell
    self._write(".csv")
    self._refused(f"{name}.csv: row 4, column {column}: {message}")

  @parameterized.parameters(
    ("feature", None, "row 3, column feature: found None; expected a list"),
    ("item_id", None, "row 3, column item_id: found None; expected an integer"),
    (
      "feature",
      [1.0, None],
      "row 3, column feature: found None; expected a fi",
    ),
    ("feature", [1.0, 1e300], "row 3, column feature: found 1e+300; expected"),
    ("tags", ["a", None], "row 3, column tags: found ['a', None]; expected na"),
  )
  def test_a_bad_cell_of_a_parquet_file(self, column, cell, message):
    self.items["tags"] = [["a"]] * 4
    self.items[column][2] = cell
    self._write(".parquet")
    self._refused(f"items.parquet: {message}")

  @parameterized.parameters(".csv", ".parquet")
  def test_features_that_are_all_empty(self, suffix):
    self.items["feature"] = [[]] * 4
    self._write(suffix)
    self._refused("column feature: found ")
    self._refused("; expected at least one number")

  def test_blank_lines_are_no_rows(self):
    items, splits = self._prepare()
    for name in ("items", "sessions"):
      path = self.raw / f"{name}.csv"
      first, rest = path.read_text().split("\n", 1)
      path.write_text(f"{first}\n\n{rest}\n  \n\n")
    prepare.prepare("logs", self.folder / "again", str(self.raw))
    again, splits_again = source.load(self.folder / "again")
    self.assertEqual(again.external_ids, items.external_ids)
    np.testing.assert_array_equal(again.features, items.features)
    for name, sessions in splits.items():
      for ours, theirs in zip(sessions, splits_again[name], strict=True):
        np.testing.assert_array_equal(ours, theirs)

  def test_a_blank_line_counts_where_a_row_is_named(self):
    self.items["feature"][3] = ["x", "y"]
    self._write(".csv")
    path = self.raw / "items.csv"
    path.write_text(path.read_text().replace("\n", "\n\n", 1))
    self._refused("items.csv: row 6, column feature: found 'x'")

  def test_a_row_of_empty_cells_is_no_blank_line(self):
    self._write(".csv")
    with (self.raw / "items.csv").open("a") as file:
      file.write(",,,\n")
    self._refused("items.csv: row 6, column item_id: found ''; expected an int")

  def test_rows_of_a_csv_file_are_its_lines(self):
    self.items["title"][0] = "two\nlines"
    self.items["feature"][3] = ["x", "y"]
    self._write(".csv")
    self._refused("items.csv: row 6, column feature: found 'x'")

  @parameterized.parameters(
    ("items", "item_id"), ("sessions", "exposed"), ("sessions", "timestamp")
  )
  def test_a_missing_column(self, name, column):
    del getattr(self, name)[column]
    self._write(".csv")
    self._refused(f"; expected {column} too")

  @parameterized.parameters(";", "\t")
  def test_cells_with_no_comma_between(self, separator):
    self._write(".csv")
    path = self.raw / "items.csv"
    pd.read_csv(path).to_csv(path, sep=separator, index=False)
    self._refused("items.csv cannot be read (no comma in the header ")

  def test_timestamps_that_are_no_seconds(self):
    seconds = [1_700_000_000 + x for x in self.sessions["timestamp"]]
    said = []
    for scale, session in ((1, ""), (1_000, ""), (1e9, ""), (1_000, "s")):
      self.sessions["timestamp"] = [scale * x for x in seconds]
      if session:
        self.sessions["session_id"] = [session + x for x in "abcde"]
      self._write(".csv")
      folder = self.folder / f"{scale} {session}"
      prepare.prepare("logs", folder, str(self.raw))
      told = [x for x in prepare.notes(folder) if x.startswith("timestamps:")]
      said.append("".join(told)[:20])
    self.assertEqual(
      said, ["", "timestamps: 1.7e+12 ", "timestamps: 1.7e+18 ", ""]
    )

  def test_files_that_are_no_good(self):
    (self.raw / "other").touch()
    self._refused("has no logs; expected interactions.csv, a response a row")
    self._write(".csv")
    (self.raw / "items.parquet").touch()
    self._refused("has items.csv and items.parquet; expected one of")
    (self.raw / "items.csv").unlink()
    self._refused("items.parquet cannot be read (")
    (self.raw / "items.parquet").unlink()
    (self.raw / "items.csv").write_text("")
    self._refused("items.csv has the columns none; expected item_id too")
    (self.raw / "items.csv").write_text("item_id,feature\n")
    self._refused("items.csv has no rows")
    (self.raw / "items.csv").write_text("item_id,feature\n1,2,3\n")
    self._refused("cannot be read (row 2 has 3 cells, the header 2)")

  def test_a_split_without_rows(self):
    self.sessions["split"][0] = "train"
    self._write(".csv")
    with self.assertRaisesRegex(InputError, '"val" of sessions has no row'):
      prepare.prepare("logs", self.folder / "data", str(self.raw))


if __name__ == "__main__":
  absltest.main()
