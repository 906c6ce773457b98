"""Interactions of a user's: slates, negatives, options, and what is told."""

import json
import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
from absl.testing import absltest, parameterized

from hsrl_jax.data import feedback, prepare, source
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.logs import interactions, options, tables
from tests import folders


def _log(seed, rows=200, users=6, items=30, split=True):
  """Interactions with ties in time and items that come again."""
  rng = np.random.default_rng(seed)
  names = rng.choice(source.SPLITS, rows, p=[0.6, 0.2, 0.2])
  columns = {
    "user_id": [f"u{x}" for x in rng.integers(0, users, rows)],
    "item_id": [f"i{x}" for x in rng.integers(0, items, rows)],
    "timestamp": rng.integers(0, 50, rows).tolist(),
    "response": rng.integers(0, 2, rows).tolist(),
  }
  if split:
    columns["split"] = names.tolist()
  table = tables.Table(
    pathlib.Path("x.csv"), pa.table(columns), list(range(rows))
  )
  ids = sorted(set(columns["item_id"]))
  return interactions.read(table, ids, options.Options()), len(ids)


class SlatesTest(parameterized.TestCase):
  @parameterized.product(seed=[0, 1], size=[1, 3], split=[True, False])
  def test_against_one_row_after_the_other(self, seed, size, split):
    log, num_items = _log(seed, split=split)
    cut = interactions.slates(log, num_items, options.Options(slate_size=size))
    rank = np.zeros(len(log.user), int) if log.split is None else log.split
    expected = []
    for user in set(log.user.tolist()):
      own = [r for r in range(len(log.user)) if log.user[r] == user]
      own.sort(key=lambda r: log.timestamp[r])  # Stable.
      for s in set(rank[own].tolist()):
        rows = [r for r in own if rank[r] == s]
        rows = rows[len(rows) % size :]
        for i in range(0, len(rows), size):
          slate = rows[i : i + size]
          if len(set(log.item[slate].tolist())) < size:
            continue
          before = own[: own.index(slate[0])]
          liked = [
            log.item[r] for r in before if log.response[r] and rank[r] <= s
          ]
          expected.append(
            (
              log.timestamp[slate[0]],
              user,
              *([0] * 50 + liked)[-50:],
              *log.item[slate],
              *log.response[slate],
            )
          )
    columns = cut.columns
    made = np.column_stack(
      [
        columns[x]
        for x in ("timestamp", "user_id", "history", "exposed", "response")
      ]
    )
    self.assertTrue((np.diff(columns["timestamp"]) >= 0).all())
    np.testing.assert_array_equal(
      sorted(map(tuple, made.tolist())), sorted(expected)
    )
    self.assertEqual(cut.about, feedback.Feedback())

  def test_rows_in_no_slate_are_counted(self):
    log, num_items = _log(0, split=False)
    cut = interactions.slates(log, num_items, options.Options(slate_size=7))
    told = [int(x.split(": ")[1].split(" of ")[0]) for x in cut.notes]
    self.assertEqual(sum(told), 200 - cut.columns["exposed"].size)
    self.assertEqual(told[0], sum(n % 7 for n in np.bincount(log.user)))
    with self.assertRaisesRegex(InputError, "no user has 201 rows; expected"):
      interactions.slates(log, num_items, options.Options(slate_size=201))

  def test_why_there_is_no_slate(self):
    log, num_items = _log(0, split=False)
    same = log._replace(item=np.ones_like(log.item))
    by_row = log._replace(user=np.arange(len(log.user)) // 2 + 1)
    by_row = by_row._replace(split=np.arange(len(log.user)) % 2)
    for log, message in (
      (same, "each slate of 2 rows would show an item twice; expected differe"),
      (by_row, "no user has 2 rows in one split; expected enough for a slate"),
    ):
      with self.assertRaisesRegex(InputError, message):
        interactions.slates(log, num_items, options.Options(slate_size=2))


class PositivesOnlyTest(parameterized.TestCase):
  @parameterized.parameters("uniform", "popularity")
  def test_slates_by_their_rules(self, negatives):
    log, num_items = _log(3)
    log = log._replace(response=np.ones(200, "f"), positives_only=True)
    chosen = options.Options(slate_size=5, negatives=negatives, base_rate=0.1)
    cut = interactions.slates(log, num_items, chosen)
    columns = cut.columns
    self.assertEqual(
      cut.about, feedback.Feedback("implicit", negatives, 4, 0.1, 0)
    )
    self.assertLen(columns["exposed"], 200)
    self.assertTrue((columns["response"].sum(1) == 1).all())
    positive = (columns["exposed"] * columns["response"]).sum(1).astype(int)
    rows = zip(columns["user_id"], positive, columns["timestamp"], strict=True)
    self.assertCountEqual(
      rows, zip(log.user, log.item, log.timestamp, strict=True)
    )
    train = set(
      zip(log.user[log.split == 0], log.item[log.split == 0], strict=True)
    )
    for user, item, shown in zip(
      columns["user_id"], positive, columns["exposed"], strict=True
    ):
      self.assertLen(set(shown.tolist()), 5)
      drawn = {(user, x) for x in shown if x != item}
      self.assertNoCommonElements(drawn, train)
    # The positive is anywhere, evenly.
    places = np.bincount(columns["response"].argmax(1), minlength=5)
    self.assertTrue((places > 20).all(), places)
    again = interactions.slates(log, num_items, chosen).columns["exposed"]
    np.testing.assert_array_equal(again, columns["exposed"])
    other = options.Options(slate_size=5, negatives=negatives, seed=1)
    again = interactions.slates(log, num_items, other).columns["exposed"]
    self.assertTrue((again != columns["exposed"]).any())

  def test_a_user_who_likes_everything(self):
    log, num_items = _log(3, rows=40, users=2, items=6)
    log = log._replace(
      response=np.ones(40, "f"), positives_only=True, split=np.zeros(40, int)
    )
    # Of user 1 everything is liked.
    log = log._replace(
      user=np.append(np.ones(39, int), 2), item=np.arange(40) % num_items + 1
    )
    chosen = options.Options(slate_size=3)
    cut = interactions.slates(log, num_items, chosen)
    self.assertEqual(cut.columns["user_id"].tolist(), [2])
    self.assertIn("39 of 40 rows are in no slate", cut.notes[-1])
    log = log._replace(user=np.ones(40, int))
    with self.assertRaisesRegex(InputError, "no user leaves 2 of 6 items"):
      interactions.slates(log, num_items, chosen)


class LeaveOneOutTest(parameterized.TestCase):
  """By hand: what each user met in order of time, liked or not."""

  def _read(self, rows, size, **columns):
    """Of rows (user, item, response); without responses, positives only."""
    given = {
      "user_id": [x[0] for x in rows],
      "item_id": [x[1] for x in rows],
      "timestamp": list(range(len(rows))),
    }
    if len(rows[0]) > 2:
      given["response"] = [x[2] for x in rows]
    table = tables.Table(
      pathlib.Path("x.csv"), pa.table(given | columns), range(2, len(rows) + 2)
    )
    ids = sorted({x[1] for x in rows})
    chosen = options.Options(slate_size=size, split_by="leave_one_out")
    log = interactions.read(table, ids, chosen)
    return log, interactions.slates(log, len(ids), chosen)

  def _rows(self, cut):
    """(split, user, history, the item) of slates of one item."""
    c = cut.columns
    history = [[int(i) for i in x if i] for x in np.asarray(c["history"])]
    return list(
      zip(
        np.array(source.SPLITS)[c["split"]].tolist(),
        c["user_id"].tolist(),
        history,
        c["exposed"][:, 0].tolist(),
        strict=True,
      )
    )

  def test_single_likes_by_hand(self):
    rows = [
      ("a", "1", 1),
      ("b", "2", 1),
      ("a", "2", 0),
      ("a", "3", 1),
      ("b", "1", 1),
      ("a", "4", 1),
      ("a", "5", 1),
      ("a", "6", 0),
    ]
    log, cut = self._read(rows, 1)
    self.assertEqual(
      self._rows(cut),
      [
        ("train", 1, [], 1),
        ("train", 2, [], 2),
        ("train", 1, [1], 2),
        ("train", 1, [1], 3),
        ("train", 2, [2], 1),
        ("val", 1, [1, 3], 4),
        ("test", 1, [1, 3, 4], 5),
        # Of what was held out nothing is in a history of training.
        ("train", 1, [1, 3], 6),
      ],
    )
    self.assertIn("likes of 1 users; 1 with too few likes", log.rows.notes[-1])

  def test_positives_only(self):
    rows = [(u, str(i)) for i in range(1, 5) for u in "ab"]
    _, cut = self._read(rows + [("c", "9"), ("c", "8"), ("d", "7")], 2)
    split = np.array(source.SPLITS)[cut.columns["split"]]
    user = cut.columns["user_id"]
    for held in (1, 2):
      self.assertEqual(
        split[user == held].tolist(), ["train", "train", "val", "test"]
      )
    self.assertEqual(set(split[user > 2]), {"train"})

  def test_slates_of_several_rows(self):
    """Cut as ever; a slate without a like is for training."""
    likes = [0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0]  # The first is left over.
    rows = [("a", str(i), x) for i, x in enumerate(likes, 1)]
    _, cut = self._read(rows, 2)
    self.assertEqual(
      list(
        zip(
          np.array(source.SPLITS)[cut.columns["split"]].tolist(),
          cut.columns["exposed"].tolist(),
          strict=True,
        )
      ),
      [
        ("train", [4, 5]),  # Items sort as texts: 1, 10, 11, 2, ...
        ("val", [6, 7]),
        ("train", [8, 9]),
        ("test", [10, 11]),
        ("train", [2, 3]),
      ],
    )

  def test_of_equal_times_the_later_row_is_newer(self):
    rows = [("a", str(i), 1) for i in range(1, 5)] + [("a", "5", 0)]
    log, _ = self._read(rows, 1, timestamp=[7] * 5)
    self.assertEqual(log.split.tolist(), [0, 0, 1, 2, 0])

  def test_what_cannot_be(self):
    few = [("a", "1", 1), ("a", "2", 1), ("a", "3", 0)]
    with self.assertRaisesRegex(InputError, "no user has three likes, which"):
      self._read(few, 1)
    with self.assertRaisesRegex(InputError, "three slates of 3 with a like"):
      self._read(few, 3)
    with self.assertRaisesRegex(
      InputError, "column split, and logs.json has split_by 'leave_one_out'"
    ):
      self._read(few, 1, split=["train", "val", "test"])


class FilesTest(folders.DataTest):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.rows = pd.DataFrame(
      {
        "user_id": [f"u{x}" for x in rng.integers(0, 8, 90)],
        "item_id": [f"i{x}" for x in rng.integers(0, 20, 90)],
        "timestamp": np.arange(90),
      }
    )

  def _prepare(self, rows=None, name="interactions", given=None, **kinds):
    rows = self.rows if rows is None else rows
    rows.to_csv(self.raw / f"{name}.csv", index=False)
    if given is not None:
      (self.raw / "logs.json").write_text(json.dumps(given))
    return self.prepared("logs", **kinds)

  def _refused(self, message, *arguments, **named):
    with self.refused(message):
      self._prepare(*arguments, **named)

  def test_a_split_that_is_too_short_for_a_slate_says_so(self):
    rows = pd.DataFrame(
      {
        "user_id": np.repeat(["a", "b"], 10),
        "item_id": [*range(10)] * 2,
        "timestamp": range(20),
        "response": [0, 1] * 10,
        "split": (["train"] * 6 + ["val"] * 2 + ["test"] * 2) * 2,
      }
    )
    self._refused(
      "more data, or smaller slates (interactions.csv: 8 of 20 rows are in no "
      "slate: the oldest of each user, too few for a slate of 3",
      rows,
      given={"slate_size": 3},
    )

  def test_progress_ends_after_the_item_vectors(self):
    calls = []
    self._prepare(
      given={"slate_size": 3}, progress=lambda more=0: calls.append(more)
    )
    self.assertEqual(calls, [0, 0, 1, 0])

  def test_a_file_of_positives_is_enough(self):
    """No items, no features, no responses; what is read back says so."""
    chosen = {"slate_size": 4, "negatives": "popularity", "base_rate": 0.2}
    items, splits = self._prepare(given=chosen)
    self.assertEqual(
      items.external_ids[1:], self.rows["item_id"].unique().tolist()
    )
    self.assertEqual([len(x.user_id) for x in splits.values()], [72, 9, 9])
    about = feedback.read(self.data)
    self.assertEqual(
      about, feedback.Feedback("implicit", "popularity", 3, 0.2, 0)
    )
    self.assertTrue(about.claims_rates)
    count = self.rows[:72]["item_id"].value_counts()
    count = np.array([count.get(x, 0) for x in items.external_ids[1:]]) + 1
    np.testing.assert_allclose(
      items.sampling[1:], count / count.sum(), rtol=1e-6
    )
    self.assertEqual(items.sampling[0], 0)
    # Vectors come out of the train split alone: a newcomer of the rest has 0.
    seen = np.isin(items.external_ids[1:], self.rows[:72]["item_id"])
    self.assertEqual(
      np.linalg.norm(items.features[1:], axis=1).round(4).tolist(),
      seen.astype(float).tolist(),
    )
    positives, vectors = prepare.notes(self.data)
    self.assertIn("each of 90 is shown beside 3 negatives drawn by", positives)
    pairs = self.rows[:72].drop_duplicates(["user_id", "item_id"])
    self.assertIn(f"from {len(pairs)} training likes", vectors)

  def test_by_user_nobody_is_in_two_splits(self):
    """By the flag and by the option alike; another option is refused."""
    rows = self.rows.assign(response=1)
    rows["user_id"] = [f"u{x}" for x in np.arange(90) % 30]
    rows["response"] = np.arange(90) % 2
    found = []
    for given, split_by in (
      ({"slate_size": 1}, "user"),
      ({"slate_size": 1, "split_by": "user"}, "time"),
    ):
      _, splits = self._prepare(rows, given=given, split_by=split_by)
      users = {k: set(x.user_id) for k, x in splits.items()}
      self.assertLen(set.union(*users.values()), 30)
      self.assertEqual(sum(map(len, users.values())), 30)
      found.append(users)
    self.assertEqual(*found)
    self._refused(
      "--split_by=user, but",
      rows,
      given={"split_by": "leave_one_out"},
      split_by="user",
    )
    self._refused(
      "has a column split",
      rows.assign(split="train"),
      given={"split_by": "user"},
    )

  def test_a_dataset_without_such_a_split(self):
    with self.assertRaisesRegex(InputError, "--split_by=user, but .*by time;"):
      prepare.prepare("toy", self.data, split_by="user")

  def test_positives_need_a_negative(self):
    self._refused("positives only and slate_size is 1", given={"slate_size": 1})

  def test_without_a_base_rate_none_is_claimed(self):
    self._prepare(given={"slate_size": 3})
    self.assertFalse(feedback.read(self.data).claims_rates)
    self.assertIn("rates of likes stay unknown", prepare.notes(self.data)[0])

  def test_responses_with_propensities_and_positions(self):
    rng = np.random.default_rng(1)
    rows = self.rows.assign(
      timestamp=pd.date_range("2024-02-28", periods=90, freq="h", tz="UTC"),
      response=rng.integers(0, 2, 90),
      propensity=rng.uniform(0.1, 1, 90),
      position=rng.integers(1, 4, 90),
      profile=[f"{x};0" for x in rng.integers(0, 9, 90)],
      colour="red",
      size=3,
    )
    items, splits = self._prepare(rows, given={"slate_size": 1})
    self.assertTrue(feedback.read(self.data).claims_rates)
    self.assertIsNone(items.sampling)
    part = rows[:72]
    train = splits["train"]
    for name in ("response", "propensity", "position"):
      np.testing.assert_allclose(getattr(train, name)[:, 0], part[name])
    seconds = (part["timestamp"] - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    np.testing.assert_array_equal(train.timestamp, seconds)
    self.assertEqual(train.profile[:, 1].tolist(), [0.0] * 72)
    self.assertEqual(
      prepare.notes(self.data)[0],
      "interactions.csv: columns not used: colour, size",
    )

  def test_ratings_and_a_threshold(self):
    rows = self.rows.assign(rating=np.arange(90) % 5 + 1)
    self._refused("has ratings but no responses; expected a column", rows)
    _, splits = self._prepare(rows, given={"slate_size": 1, "like_from": 4})
    np.testing.assert_array_equal(
      splits["train"].response[:, 0], rows["rating"][:72] >= 4
    )

  def test_responses_that_are_all_one_are_positives_only(self):
    self._prepare(self.rows.assign(response=1), given={"slate_size": 3})
    self.assertEqual(feedback.read(self.data).feedback, "implicit")

  def test_sessions_of_positives_are_interactions(self):
    items, splits = self._prepare(given={"slate_size": 3})
    (self.raw / "interactions.csv").unlink()
    pd.DataFrame({"item_id": items.external_ids[1:]}).to_csv(
      self.raw / "items.csv", index=False
    )
    # Neighbours of the same user and time, together in a cell.
    rows = self.rows.rename(columns={"item_id": "exposed"})
    _, again = self._prepare(rows, name="sessions")
    for name in source.SPLITS:
      for ours, theirs in zip(splits[name][:6], again[name][:6], strict=True):
        np.testing.assert_array_equal(ours, theirs)

  def test_responses_that_are_true_or_false(self):
    liked, given = np.arange(90) % 3 == 0, {"slate_size": 1}
    rows = self.rows.assign(response=liked.astype(int))
    _, splits = self._prepare(rows, given=given)
    _, again = self._prepare(self.rows.assign(response=liked))
    for name in source.SPLITS:
      np.testing.assert_array_equal(again[name].response, splits[name].response)

  def test_a_column_that_is_there_twice(self):
    rows = self.rows.assign(again=1).rename(columns={"again": "item_id"})
    self._refused(
      "interactions.csv cannot be read (the header has item_id twice)", rows
    )

  def test_logs_of_one_action(self):
    one = self.rows.assign(item_id="i1", response=np.arange(90) % 2)
    self._prepare(one, given={"slate_size": 1})
    message = "every row shows the same item; expected at least two: logs of"
    self._refused(message, one.assign(propensity=1))

  def test_slates_keep_propensities_and_name_columns(self):
    pd.DataFrame({"item_id": "abc", "feature": [1, 2, 3]}).assign(
      item_id=list("abc")
    ).to_csv(self.raw / "items.csv", index=False)
    rows = pd.DataFrame(
      {
        "user_id": 1,
        "exposed": ["a;b", "b;c", "c;a"] * 4,
        "response": ["0;1", "1;1", "0;0"] * 4,
        "timestamp": range(12),
        "propensity": ["0.5;0.25"] * 12,
        "device": "phone",
      }
    )
    _, splits = self._prepare(rows, name="sessions")
    np.testing.assert_array_equal(splits["val"].propensity, [[0.5, 0.25]])
    self.assertIsNone(splits["val"].position)
    self.assertEqual(
      prepare.notes(self.data),
      [
        "sessions.csv: columns not used: device; what is known of users goes "
        "into a file users, or a column profile"
      ],
    )
    rows.loc[3, "propensity"] = "0.5;0"
    self._refused("row 5, column propensity: found '0'", rows, "sessions")
    one = rows.assign(exposed="a", response=0, propensity=1)
    self._refused(
      "sessions.csv: every row shows the same item", one, "sessions"
    )
    (self.raw / "logs.json").write_text('{"slate_size": 3}')
    rows.loc[3, "propensity"] = "0.5;1"
    self._refused("logs.json: slate_size is of no use for", rows, "sessions")

  def test_propensities_of_some_rows(self):
    """Rows with and without are in no slate together; notes say how many."""
    rng = np.random.default_rng(2)
    known = rng.random(90) < 0.4
    rows = self.rows.assign(
      user_id=np.arange(90) // 30,
      timestamp=np.arange(90) % 30,
      item_id=[f"i{x}" for x in np.arange(90) % 30],
      response=1 * (rng.random(90) < 0.5),
      propensity=np.where(known, 0.25, np.nan),
    )
    _, splits = self._prepare(rows, given={"slate_size": 2})
    found = np.concatenate([x.propensity for x in splits.values()])
    is_known = np.isfinite(found)
    np.testing.assert_array_equal(is_known[:, 0], is_known[:, 1])
    per_user = known.reshape(3, 30).sum(1)
    self.assertEqual(is_known[:, 0].sum(), (per_user // 2).sum())
    self.assertEqual((~is_known[:, 0]).sum(), ((30 - per_user) // 2).sum())
    self.assertIn(
      f"propensities: {(per_user // 2).sum()} of {len(found)} slates have them",
      "\n".join(prepare.notes(self.data)),
    )

  @parameterized.parameters(
    ("propensity", 0, "found '0'; expected a probability in (0, 1], or an e"),
    ("propensity", 1.5, "found '1.5'; expected a probability in (0, 1]"),
    ("position", -1, "found '-1'; expected a whole number from 0"),
    ("response", 2, "found '2'; expected 0 or 1"),
    ("response", "yes", "found 'yes'; expected 0 or 1"),
    ("timestamp", "noon", "found 'noon'; expected a finite number, or a date:"),
    ("split", "dev", "found 'dev'; expected train, val, test"),
    ("item_id", None, "found ''; expected an integer or a string"),
  )
  def test_a_bad_cell_is_named(self, column, cell, message):
    good = {"propensity": 1, "position": 1, "response": 0, "split": "train"}
    rows = self.rows.assign(**good).astype(object)
    rows.loc[4, column] = cell
    self._refused(f"interactions.csv: row 6, column {column}: {message}", rows)

  @parameterized.parameters(
    ({"slate": 3}, "has the option 'slate'; expected some of slate_size"),
    ({"slate_size": 0}, "slate_size is 0; expected a whole number from 1"),
    ({"slate_size": 2.0}, "slate_size is 2.0; expected a whole number"),
    ({"slate_size": 2**31}, "expected a whole number from 1, below 2^31"),
    ({"like_from": 10**400}, "0; expected a number"),
    ({"negatives": "hard"}, "negatives is 'hard'; expected uniform or"),
    ({"base_rate": 1}, "base_rate is 1; expected a share in (0, 1)"),
    ({"base_rate": True}, "base_rate is True; expected a share"),
    ({"like_from": "4"}, "like_from is '4'; expected a number"),
    ({"normalise": "yes"}, "normalise is 'yes'; expected true or false"),
    (
      {"split_by": "item"},
      "split_by is 'item'; expected time or leave_one_out or user",
    ),
    ([1], "logs.json cannot be read"),
  )
  def test_a_bad_option_is_named(self, given, message):
    self._refused(message, given=given)

  def test_one_kind_of_log(self):
    (self.raw / "sessions.csv").write_text("user_id,exposed,timestamp\n1,1,1\n")
    self._refused("has interactions and sessions; expected interactions.csv")
    for name in ("interactions.csv", "sessions.csv"):
      (self.raw / name).unlink()
    self._refused("has no logs; expected interactions.csv", name="likes")

  def test_items_that_no_file_has(self):
    (self.raw / "items.csv").write_text("item_id\ni1\n")
    self._refused("; expected an item_id of the table of items")
    self.rows.loc[0, "item_id"] = "x" * 9_000
    self._refused(f"item '{'x' * 59}; expected an item_id")

  def test_vectors_that_are_asked_for(self):
    ids = self.rows["item_id"].unique()
    pd.DataFrame(
      {"item_id": ids, "feature": range(len(ids)), "brand": "x"}
    ).to_csv(self.raw / "items.csv", index=False)
    given, _ = self._prepare()
    self.assertEqual(given.features[1:, 0].tolist(), list(range(len(ids))))
    self.assertIn("not in their vectors: brand", prepare.notes(self.data)[-1])
    joined, _ = self._prepare(item_vectors="logs")
    # A direction for each user, the feature, and one that all brands share.
    users = self.rows["user_id"].nunique()
    self.assertEqual(joined.features.shape, (len(ids) + 1, users + 1 + 1))
    again, _ = self._prepare()
    np.testing.assert_array_equal(again.features, given.features)
    (self.raw / "items.csv").unlink()
    self._refused("items have no features; expect", item_vectors="given")


if __name__ == "__main__":
  absltest.main()
