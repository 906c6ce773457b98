"""The newest sessions of logs, against a loop over all of them."""

import json

import numpy as np
import pandas as pd
from absl.testing import absltest, parameterized

from hsrl_jax.data import prepare, source
from hsrl_jax.errors import InputError
from tests import folders


class NewestTest(folders.DataTest):
  def setUp(self):
    super().setUp()
    rng, rows = np.random.default_rng(0), []
    for session in range(60):
      begin = rng.uniform(0, 1e5)
      for step in range(rng.integers(1, 6)):
        shown = rng.permutation(9)[:2] + 1
        rows.append(
          {
            "user_id": f"u{session % 7}",
            "session_id": f"s{session}",
            "step": step,
            "timestamp": begin + 700 * step,
            "exposed": ";".join(map(str, shown)),
            "response": ";".join(map(str, rng.integers(0, 2, 2))),
            "split": ("train", "val", "test")[max(0, session % 5 - 2)],
          }
        )
    rng.shuffle(rows)
    self.rows = pd.DataFrame(rows)
    items = pd.DataFrame({"item_id": range(1, 10), "feature": range(9)})
    items.to_csv(self.raw / "items.csv", index=False)

  def _prepare(self, name, **options):
    self.rows.to_csv(self.raw / "sessions.csv", index=False)
    (self.raw / "logs.json").write_text(json.dumps(options))
    data = self.folder / name
    prepare.prepare("logs", data, str(self.raw))
    return source.load(data).splits, prepare.notes(data)

  @parameterized.parameters(40, 47, 80, 10_000)
  def test_whole_sessions_the_newest(self, most):
    whole, _ = self._prepare("whole")
    splits, notes = self._prepare("newest", newest=most)
    kept = 0
    for name, rows in self.rows.groupby("split"):
      room = most if name == "train" else most // 8
      ends = rows.groupby("session_id")["timestamp"].max()
      wanted = set()
      for session in ends.sort_values(ascending=False).index:
        times = rows[rows["session_id"] == session]["timestamp"]
        if len(wanted) + len(times) > room:
          break
        wanted |= set(times)
      got = splits[name]
      self.assertEqual(set(got.timestamp), wanted, name)
      self.assertTrue((np.diff(got.timestamp) >= 0).all())
      # What was liked before is known of slates that are left out, too.
      place = np.searchsorted(whole[name].timestamp, got.timestamp)
      np.testing.assert_array_equal(got.history, whole[name].history[place])
      kept += len(wanted)
    self.assertIn(f"newest: {kept} of {len(self.rows)} slates are read", notes)

  def test_what_leaves_a_split_empty_is_told(self):
    # One slate of a held-out split, of whose sessions the newest has more.
    with self.assertRaisesRegex(
      InputError, "has no row; expected at least one"
    ):
      self._prepare("none", newest=8)

  def test_a_bad_number_is_named(self):
    for bad in (7, 8.0, True, "9"):
      with self.assertRaisesRegex(InputError, "newest is .*expected a whole n"):
        self._prepare("bad", newest=bad)


if __name__ == "__main__":
  absltest.main()
