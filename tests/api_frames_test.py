"""Frames and paths as the tables that the dataset `logs` reads."""

import numpy as np
import pandas as pd
from absl.testing import absltest, parameterized

from hsrl_jax.api import frames
from hsrl_jax.data import prepare, source
from hsrl_jax.errors import InputError
from tests import folders

_LOG = {
  "user_id": ["v", "u", "v", "u"] * 5,
  "item_id": [30, 10, 20, 40] * 5,
  "response": [1, 0, 0, 1] * 5,
  "timestamp": pd.date_range("2025-01-01", periods=20),
}


class FramesTest(folders.FolderTest):
  def setUp(self):
    super().setUp()
    self.log = pd.DataFrame(_LOG)

  def _prepare(self, name, tables, options):
    raw, data = self.folder / "raw", self.folder / name
    with frames.written(raw, tables, options):
      prepare.prepare("logs", data, str(raw))
    self.assertFalse(raw.exists())
    return source.load(data), source.user_names(data)

  def test_what_is_not_ours_stays(self):
    raw = self.folder / "raw"
    raw.mkdir()
    tables = frames.tables(self.log)
    for name in ("interactions.csv", ".logs.json.x1", "logs.json"):
      (raw / name).touch()  # As a call that was killed leaves.
    self._prepare("data", tables, {"slate_size": 2})
    raw.mkdir()
    mine = raw / "thesis.txt"
    mine.touch()
    with self.assertRaisesRegex(InputError, "'thesis.txt'; expected no such"):
      self._prepare("other", tables, {"slate_size": 2})
    self.assertTrue(mine.exists())

  def test_a_frame_and_a_file_are_the_same(self):
    path = self.folder / "log of mine.csv"
    self.log.to_csv(path, index=False)
    options = {"slate_size": 2}
    for logs in (self.log, path, str(path)):
      tables = frames.tables(logs)
      self.assertEqual(list(tables), ["interactions"])
      dataset, users = self._prepare(f"{type(logs)}", tables, options)
      self.assertEqual(users, ["v", "u"])
      self.assertEqual(dataset.items.external_ids, ["", "30", "10", "20", "40"])
      train = dataset.splits["train"]
      self.assertEqual(train.exposed[0].tolist(), [1, 3])
      self.assertEqual(train.response[0].tolist(), [1, 0])
      self.assertEqual(users[train.user_id[0] - 1], "v")
    self.assertTrue(path.exists())

  def test_slates_with_items(self):
    items = pd.DataFrame({"item_id": ["a", "b"], "feature": [[0.5], [2.0]]})
    slates = {
      "user_id": [7, 8, 9],
      "exposed": [["a", "b"], np.array(["b", "a"]), ["a", "b"]],
      "response": [[1, 0], [0, 1], [1, 1]],
      "timestamp": [1, 2, 3],
    }
    facts = pd.DataFrame({"user_id": [9, 7, 8], "age": [30, 50, 10]})
    tables = frames.tables(pd.DataFrame(slates), items, facts)
    self.assertEqual(list(tables), ["sessions", "items", "users"])
    dataset, users = self._prepare("data", tables, {})
    self.assertEqual(users, ["7", "8", "9"])
    np.testing.assert_array_equal(dataset.items.features, [[0], [0.5], [2]])
    for rows in dataset.splits.values():
      ages = np.array([50, 10, 30])[rows.user_id - 1]
      want = (ages[:, None] - 30) / np.std([30, 50, 10])
      np.testing.assert_allclose(rows.profile, want, rtol=1e-6)

  def test_a_digest_is_of_the_content(self):
    other = self.log.copy()
    self.assertEqual(frames.digest(self.log), frames.digest(other))
    other.loc[3, "response"] = 0
    self.assertNotEqual(frames.digest(self.log), frames.digest(other))
    lists = [pd.DataFrame({"x": [np.arange(n)]}) for n in (5000, 5001)]
    self.assertNotEqual(*map(frames.digest, lists))

  @parameterized.parameters(
    ({"response": 3}, {}, "^logs: row 1, column response: found 3; expected 0"),
    ({}, {"slat": 1}, "^log_options has the option 'slat'; expected some of"),
    ({}, {"slate_size": 0}, "^log_options: slate_size is 0; expected a whole"),
    ({}, {"slate_size": {3}}, "^log_options cannot be read .*; expected what"),
    ({"item_id": [{}] * 20}, {}, "^logs cannot be read .*; expected columns t"),
  )
  def test_errors_name_the_argument(self, columns, options, message):
    tables = frames.tables(self.log.assign(**columns))
    with self.assertRaisesRegex(InputError, message):
      self._prepare("data", tables, options)
    self.assertFalse((self.folder / "raw").exists())

  def test_errors_name_the_file(self):
    path = self.folder / "mine.csv"
    self.log.assign(response=3).to_csv(path, index=False)
    with self.assertRaisesRegex(InputError, f"^{path}: row 2, column response"):
      self._prepare("data", frames.tables(path), {})

  @parameterized.parameters(
    (None, None, "^logs is NoneType 'None'; expected a pandas DataFrame, or"),
    ("missing.csv", None, "^missing.csv is missing; expected a complete .csv"),
    ("log", {"item_id": [1]}, "^items is dict .*; expected a pandas DataFrame"),
    ("log", "items.tsv", "^items is str 'items.tsv'; expected a pandas DataF"),
  )
  def test_what_is_no_table(self, logs, items, message):
    with self.assertRaisesRegex(InputError, message):
      frames.tables(self.log if logs == "log" else logs, items)


if __name__ == "__main__":
  absltest.main()
