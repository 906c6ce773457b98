"""Columns of sessions in one's own logs: read, and refused where bad."""

import numpy as np
import pandas as pd
from absl.testing import absltest, parameterized

from hsrl_jax.data import prepare, source, transitions
from tests import folders


class StepsTest(folders.DataTest):
  def setUp(self):
    super().setUp()
    items = {"item_id": ["a", "b", "c"], "feature": ["1;0", "0;1", "1;1"]}
    self.rows = {
      "user_id": ["u", "u", "u", "v", "v"],
      "exposed": ["a;b", "b;c", "c;a", "a;c", "b;a"],
      "response": ["1;0", "0;0", "1;1", "0;1", "1;0"],
      "timestamp": [10, 30, 20, 20, 40],
      "split": ["train", "train", "train", "val", "test"],
      "session_id": ["s", "s", "s", "t", "t"],
      "step": [0, 2, 1, 0, 1],
      "reward": [0.5, -0.1, 2.0, 0.5, 0.5],
      "terminated": [0, 1, 0, 0, 1],
      "propensity": ["0.5;0.5", "0.5;1", "0.25;0.5", "1;1", "0.5;0.5"],
    }
    pd.DataFrame(items).to_csv(self.raw / "items.csv", index=False)

  def _prepare(self):
    pd.DataFrame(self.rows).to_csv(self.raw / "sessions.csv", index=False)
    prepare.prepare("logs", self.data, str(self.raw))

  def test_columns_by_hand(self):
    self.rows["mood"] = ["x"] * 5
    self._prepare()
    train = source.load(self.folder / "data").splits["train"]  # By time.
    self.assertEqual(train.step.tolist(), [0, 1, 2])
    self.assertLen(set(train.session.tolist()), 1)
    np.testing.assert_allclose(train.reward, [0.5, 2.0, -0.1])
    self.assertEqual(train.terminated.tolist(), [0, 0, 1])
    notes = prepare.notes(self.folder / "data")
    self.assertStartsWith(notes[-1], "sessions.csv: columns not used: mood; wh")

  def test_single_rewards_may_be_missing(self):
    """Null in a .parquet file; where all are, nothing is logged."""
    raw = self.folder / "raw"
    for name in ("exposed", "response", "propensity"):
      cells = [x.split(";") for x in self.rows[name]]
      if name != "exposed":
        cells = [[float(x) for x in cell] for cell in cells]
      self.rows[name] = cells
    for rewards, want in (
      ([0.5, None, 2.0, 0.5, None], [0.5, 2.0, np.nan]),
      ([None] * 5, None),
    ):
      self.rows["reward"] = pd.Series(rewards, dtype=float)
      pd.DataFrame(self.rows).to_parquet(raw / "sessions.parquet")
      data = self.folder / f"data {want}"
      prepare.prepare("logs", data, str(raw))
      train = source.load(data).splits["train"]
      if want is None:
        self.assertIsNone(train.reward)
      else:
        np.testing.assert_allclose(train.reward, want)
        made = transitions.transitions(train, np.arange(3.0), np.zeros((3, 2)))
        np.testing.assert_allclose(made.reward, [0.5, 2.0, 2.0])

  @parameterized.parameters("csv", "parquet")
  def test_rows_without_propensities(self, kind):
    cells = ["0.5;0.5", "", "0.25;0.5", "1;1", ""]
    for name in ("exposed", "response"):
      own = [x.split(";") for x in self.rows[name]]
      if kind == "parquet":
        own = own if name == "exposed" else [[*map(int, x)] for x in own]
        self.rows[name] = own
    if kind == "parquet":
      cells = [[*map(float, x.split(";"))] if x else None for x in cells]
    frame = pd.DataFrame(self.rows | {"propensity": cells})
    getattr(frame, f"to_{kind}")(
      self.folder / "raw" / f"sessions.{kind}", index=False
    )
    prepare.prepare("logs", self.folder / "data", str(self.folder / "raw"))
    splits = source.load(self.folder / "data").splits
    np.testing.assert_array_equal(
      splits["train"].propensity,  # By time.
      [[0.5, 0.5], [0.25, 0.5], [np.nan] * 2],
    )
    np.testing.assert_array_equal(splits["test"].propensity, [[np.nan] * 2])
    notes = prepare.notes(self.folder / "data")
    self.assertStartsWith(notes[-1], "propensities: 3 of 5 slates have them")
    counts = transitions.counts(splits["train"])
    self.assertEqual((counts["slates"], counts["propensities"]), (3, 2))

  def test_all_may_be_missing(self):
    for name in ("session_id", "step", "reward", "terminated", "propensity"):
      del self.rows[name]
    self._prepare()
    train = source.load(self.folder / "data").splits["train"]
    known = (train.session, train.step, train.reward, train.terminated)
    self.assertEqual(known, (None,) * 4)

  @parameterized.parameters(
    # Row 1 is the header.
    (
      {"step": [0, 1, 1, 0, 1]},
      "row 4, column step: found 1, as in row 3 of the same session; expected "
      "each step once",
    ),
    (
      {"step": [0, 1, 2, 0, 1]},
      "row 4, column step: found 2 at time 20, but row 3 of the same session "
      "has 1 at 30; expected steps that go on with time",
    ),
    (
      # By time, where no session is named.
      {"session_id": None, "step": [1, 2, 0, 0, 1], "terminated": None},
      "row 4, column step: found 0 at time 20, but row 2 of the same session "
      "has 1 at 10; expected steps that go on with time",
    ),
    (
      {"terminated": [0, 1, 1, 0, 1]},
      "row 3, column terminated: found 1, as in row 4 of the same session; "
      "expected one end",
    ),
    (
      {"terminated": [0, 0, 1, 0, 1]},
      "row 4, column terminated: found 1, but row 3 follows in the same "
      "session; expected the last row to end",
    ),
    (
      {"reward": [0.5, 0.1, 2.0, 0.5, 0.5]},
      "row 3, column reward: found 0.1 without a positive response; expected "
      "at most 0",
    ),
    (
      {"reward": [0.5, -0.1, -2.0, 0.5, 0.5]},
      "row 4, column reward: found -2 where all responses are positive; "
      "expected at least 0",
    ),
    ({"terminated": [0, 2, 0, 0, 1]}, "column terminated: found '2'; expected"),
    ({"step": [0, -1, 1, 0, 1]}, "row 3, column step: found '-1'; expected a"),
    (
      {"reward": [3.4e38, -0.1, 2.0, 0.5, 0.5]},
      "row 2, column reward: found '3.4e+38'; expected at most 1e+06 in size",
    ),
    ({"reward": [0.5, "", 2.0, 0.5, 0.5]}, "column reward: found ''; expected"),
    (
      {"propensity": ["0.5;0", *["0.5;0.5"] * 4]},
      "row 2, column propensity: found '0'; expected a probability in (0, 1]",
    ),
    (
      {"propensity": ["0.5;1.5", *["0.5;0.5"] * 4]},
      "row 2, column propensity: found '1.5'; expected a probability in (0, 1]",
    ),
    (
      {"propensity": ["0.5;0.5", "0.5;", *["0.5;0.5"] * 3]},
      "row 3, column propensity: found ''; expected a probability in (0, 1]",
    ),
  )
  def test_what_contradicts_itself_is_refused(self, changes, message):
    for name, values in changes.items():
      self.rows[name] = values
      if values is None:
        del self.rows[name]
    with self.refused(message):
      self._prepare()


if __name__ == "__main__":
  absltest.main()
