"""Mode `collect`: each slate in one file, whatever happens, and as logs."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
import pyarrow.parquet
from absl.testing import absltest, parameterized

from hsrl_jax import serving
from hsrl_jax.data import source
from hsrl_jax.server import store as store_lib
from hsrl_jax.server.store import Feedback, Slate, writer
from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.stages import collect, export
from tests.command import ROOT, run
from tests.serving import toy_export

# Shows slates, answers them, and prints what is acknowledged.
LOAD = """
import asyncio, json, sys
from hsrl_jax.server import store as store_lib
from hsrl_jax.server.store import Feedback, Slate

async def client(work, name):
  for i in range(10**9):
    r = f"{name}-{i:06d}"
    await work.record(Slate(r, name, None, 0, 1.0, 2, '["id-1", "id-2"]',
      "[0.5, 1.0]", "[]", "[]", "1", "stable"))
    await work.answer(Feedback(r, [i % 2, 1]))
    print(r, flush=True)

async def main():
  work = store_lib.Writer(store_lib.open_store(sys.argv[1]))
  work.start()
  await asyncio.gather(*(client(work, f"c{i}") for i in range(8)))

asyncio.run(main())
"""


class CollectTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(tempfile.mkdtemp())
    cls.export = cls.root / "export"
    tags = [[], ["tea", "hot", "region=eu"], *[["cold"]] * 39]
    made = toy_export.make(cls.export, tags=tags)
    cls.catalogue = made.catalogue.add_items(
      [41], made.catalogue.features[[3]], ["id-41"], tags=[["hot", "x;y"]]
    )
    serving.write_catalogue(cls.export, cls.catalogue)
    cls.say(cls.export, genres=["cold", "hot"])

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.root)
    super().tearDownClass()

  @staticmethod
  def say(folder, **about):
    """Writes what the manifest of an export tells beside."""
    manifest = folder_lib.read_manifest(folder)
    changed = dataclasses.replace(manifest, about=about)
    folder_lib.write_manifest(folder, changed)

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(tempfile.mkdtemp(dir=self.root))
    self.where, self.logs = self.folder / "store.db", self.folder / "logs"
    self.store = store_lib.open_store(str(self.where))
    self.addCleanup(self.store.close)

  def _show(self, name, items=(1, 2), **fields):
    """Records a slate; `fields` replace those of Slate."""
    texts = [f"id-{i}" for i in items]
    shown = Slate(
      *(name, "ann", None, 0, 1.0, len(items), json.dumps(texts)),
      *(json.dumps([0.5] * len(items)), "[]", "[0.5, 1]", "1", "stable"),
    )
    self.assertEqual(
      writer.apply(self.store, [shown._replace(**fields)]), [None]
    )

  def _answer(self, name, *feedback):
    (outcome,) = writer.apply(self.store, [Feedback(name, *feedback)])
    self.assertIsInstance(outcome, store_lib.Outcome)
    return outcome

  def _collect(self, *flags):
    return run(
      "--mode=collect",
      f"--from={self.where}",
      f"--workdir={self.logs}",
      f"--export_dir={self.export}",
      *flags,
    )

  def _rows(self, width=2):
    """Rows by request id, each of which is there once."""
    folder = self.logs / f"slates_{width}" / collect.SESSIONS
    rows = pyarrow.parquet.read_table(folder).to_pylist()
    by_id = {row["request_id"]: row for row in rows}
    self.assertLen(by_id, len(rows))
    return by_id

  def test_rows_by_hand(self):
    self._show("a", session_id="s", step=2, history='["id-3"]', time=5.0)
    self._show("b", (4, 3))
    self._show("c", (1, 2, 3))
    self._show("open")
    self._answer("a", [1, 0], 0.25, True)
    self._answer("b", {"id-3": 1})
    self._answer("c", [0, 0, 0])
    status, out, err = self._collect()
    self.assertEqual(status, 0, err)
    self.assertIn("collect: 3 slates that are new", out)
    rows = self._rows()
    self.assertEqual(
      rows["a"],
      {
        "user_id": "ann",
        "session_id": "s",
        "step": 2,
        "timestamp": 5.0,
        "exposed": ["id-1", "id-2"],
        "position": [0, 1],
        "response": [1, 0],
        "propensity": [0.5, 0.5],
        "history": ["id-3"],
        "profile": [0.5, 1.0],
        "reward": 0.25,
        "terminated": 1,
        "request_id": "a",
      },
    )
    self.assertEqual(rows["b"]["response"], [0, 1])
    self.assertEqual(rows["b"]["session_id"], "/b")
    self.assertIsNone(rows["b"]["reward"])
    self.assertEqual([*self._rows(3)], ["c"])
    items = pyarrow.parquet.read_table(self.logs / "slates_2" / collect.ITEMS)
    self.assertEqual(
      items["item_id"].to_pylist(),
      [self.catalogue.item_ids.of(i) for i in range(1, 42)],
    )
    np.testing.assert_array_equal(
      np.array(items["feature"].to_pylist(), np.float32),
      self.catalogue.features[1:42],
    )
    genres, tags = (items[x].to_pylist() for x in ("genres", "tags"))
    self.assertEqual(genres, ["hot", *["cold"] * 39, "hot"])
    self.assertEqual(tags, [["region=eu", "tea"], *[[]] * 39, ["x;y"]])
    self.assertEqual(items["added"].to_pylist(), [0] * 40 + [1])

  def _prepared(self, logs):
    """Stage `data` of logs: output, and the dataset."""
    workdir = self.folder / "run"
    status, out, err = run(
      "--mode=data",
      "--dataset=logs",
      f"--raw_data_dir={logs}",
      f"--workdir={workdir}",
    )
    self.assertEqual(status, 0, err)
    return out, source.load(workdir / "data")

  def _data(self):
    """The same of what was collected: output, and how many slates."""
    out, dataset = self._prepared(self.logs / "slates_2")
    return out, sum(len(x.user_id) for x in dataset.splits.values())

  def test_together_with_the_first_logs(self):
    """The block of docs/loop.md: rows of both, and which propensities."""
    for number in range(12):
      self._show(f"a{number}", (1 + number, 20 + number), time=100.0 + number)
      self._answer(f"a{number}", [1, 0])
    self.assertEqual(self._collect()[0], 0)
    _, block = re.findall(
      r"```py\n(.*?)```", (ROOT / "docs" / "loop.md").read_text(), re.S
    )
    collected = self.folder / "runs" / "quickstart_logs" / "slates_10"
    shutil.copytree(self.logs / "slates_2", collected)
    (self.folder / "my_logs").mkdir()
    lines = [f"{1 + i % 3},id-{1 + i},{i},{i % 2}" for i in range(30)]
    (self.folder / "my_logs" / "interactions.csv").write_text(
      "\n".join(["user_id,item_id,timestamp,response", *lines])
    )
    with contextlib.chdir(self.folder):
      exec(compile(block, "loop.md", "exec"), {})
    (self.folder / "my_both" / "logs.json").write_text('{"slate_size": 2}')
    out, dataset = self._prepared(self.folder / "my_both")
    self.assertIn("propensities: 12 of 27 slates have them", out)
    self.assertIn("41 items", out)
    splits = dataset.splits.values()
    found = np.concatenate([x.propensity for x in splits])
    self.assertEqual(np.isfinite(found).sum(), 24)
    np.testing.assert_array_equal(found[np.isfinite(found)], 0.5)
    # The first ones come first, and are in no slate with what was served.
    users = np.concatenate([x.user_id for x in splits])
    self.assertLen(np.unique(users), 4)

  def test_no_client_can_give_a_session_the_name_of_another(self):
    """`s` has two parts; what clients call theirs is no part of it."""
    names = ("s", "s", "s/1", "s%2F1", "%", None, "a4")
    for number, name in enumerate(names):
      self._show(f"a{number}", session_id=name, time=1.0 + number)
      self._answer(f"a{number}", [1, 0], None, name != "a4")
    for number in range(10):
      self._show(f"z{number}", user_id="bob", time=9.0 + number)
      self._answer(f"z{number}", [1, 0])
    self.assertEqual(self._collect()[0], 0)
    rows = self._rows()
    found = [rows[f"a{i}"]["session_id"] for i in range(len(names))]
    self.assertEqual(found[:2], ["s", "s/1"])
    self.assertLen({*found}, len(names))
    self.assertEqual(self._data()[1], 17)

  def test_a_session_that_contradicts_itself_is_left_out(self):
    """As an older version collected it, where `s/1` may be two sessions."""
    for number, step in enumerate((0, 1, 0, 0)):
      self._show(
        f"a{number}", session_id=f"s{number}", step=step, time=1.0 + number
      )
      self._answer(f"a{number}", [1, 0], None, number == 3)
    for number in range(10):
      self._show(f"z{number}", user_id="bob", time=9.0 + number)
      self._answer(f"z{number}", [1, 0])
    self.assertEqual(self._collect()[0], 0)
    (path,) = (self.logs / "slates_2" / collect.SESSIONS).iterdir()
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for row in rows[:3]:
      row["session_id"] = "s/1"
    rows[-1]["profile"] = [1e20, 0.0]
    rows[-2]["reward"] = 3.4e38
    table = pyarrow.Table.from_pylist(rows, collect._SCHEMA)
    pyarrow.parquet.write_table(table, path)
    out, count = self._data()
    self.assertEqual(count, 9)
    self.assertIn(
      "sessions.parquet: 2 slates left out, whose profile, reward or "
      "propensity no training holds; the first is row 13",
      out,
    )
    self.assertIn(
      "sessions.parquet: 1 sessions with 3 slates left out, which contradict "
      "themselves; the first since row 3, column step: found 0, as in row 1",
      out,
    )

  def test_numbers_that_no_training_holds_are_left_out(self):
    for name, fields, reward in (
      ("large", {"profile": "[1e20, 0]"}, None),
      ("rich", {}, 3.4e38),
      ("rare", {"propensities": "[1e-60, 0.5]"}, None),
      ("good", {"profile": "[1e6, -1e6]"}, 1.0),
    ):
      self._show(name, session_id=name, **fields)
      self._answer(name, [1, 0], reward)
    status, out, err = self._collect()
    self.assertEqual(status, 0, err)
    self.assertEqual([*self._rows()], ["good"])
    self.assertRegex(out, "  3 slates of 2 left out, the first since 'large' ")
    self.assertIn("number 1e+20 in its profile; expected at most 1e+06", out)
    self.assertIn("0 slates", self._collect()[1])

  def test_a_reward_is_one_of_the_run(self):
    self.export = self.folder / "export"
    shutil.copytree(type(self).export, self.export)
    low, high = -0.25, 2.0
    manifest = folder_lib.read_manifest(self.export)
    ranges = manifest.ranges | {"reward": (low, high)}
    manifest = dataclasses.replace(manifest, ranges=ranges)
    folder_lib.write_manifest(self.export, manifest)
    for name, reward in (
      *(("a", low), ("b", high), ("c", low - 0.01), ("d", high + 0.01)),
      ("none", None),
    ):
      self._show(name)
      self._answer(name, [1, 0], reward)
    status, out, err = self._collect()
    self.assertEqual(status, 0, err)
    self.assertEqual({*self._rows()}, {"a", "b", "none"})
    self.assertIn(f"; expected {low:g} to {high:g}, or no reward", out)

  def test_partial_feedback_waits_and_then_takes_no_more(self):
    self._show("a", time=time.time())
    self._answer("a", [1, None])
    self.assertIn("0 slates", self._collect("--collect_after=60")[1])
    self.assertFalse(self.logs.exists())
    self.assertIn("1 slates", self._collect("--collect_after=0")[1])
    self.assertEqual(self._rows()["a"]["response"], [1, 0])
    outcome = self._answer("a", [1, 1])
    self.assertEqual(outcome, store_lib.Outcome(0, 1, 1, True))
    self.assertIn("0 slates", self._collect("--collect_after=0")[1])

  def test_each_is_collected_once_and_nothing_leaves_the_store(self):
    for number in range(9):
      self._show(f"r{number}")
      self._answer(f"r{number}", [0, 1])
      if number % 3 == 2:
        self.assertEqual(self._collect()[0], 0)
        self.assertLen(self._rows(), number + 1)
    self.assertIn("collect: 0 slates", self._collect()[1])
    parts = sorted((self.logs / "slates_2" / collect.SESSIONS).iterdir())
    self.assertLen(parts, 3)
    self.assertLen(self.store.find([f"r{i}" for i in range(9)]), 9)
    self.assertEqual(self.store.about()["collected_2"], "9")
    # What lies there is the cursor: without the last file, it comes again.
    content = parts[-1].read_bytes()
    parts[-1].unlink()
    self.assertIn("collect: 3 slates", self._collect()[1])
    self.assertEqual(parts[-1].read_bytes(), content)

  def test_several_stores_go_to_one_folder(self):
    self._show("a")
    self._answer("a", [0, 1])
    self.assertEqual(self._collect()[0], 0)
    self.where = self.folder / "other.db"
    self.store = store_lib.open_store(str(self.where))
    self.addCleanup(self.store.close)
    self._show("b")
    self._answer("b", [0, 1])
    for _ in range(2):
      self.assertEqual(self._collect()[0], 0)
      self.assertEqual({*self._rows()}, {"a", "b"})

  @parameterized.parameters(
    *("os.fsync", "pathlib.Path.replace", "pyarrow.parquet.write_table"),
    *("pyarrow.parquet.ParquetWriter.write_table", "os.open"),
  )
  def test_stopped_at_any_step_it_goes_on(self, step):
    for number in range(4):
      self._show(f"r{number}")
      self._answer(f"r{number}", [0, 1])
    failing = mock.patch(step, side_effect=KeyboardInterrupt)
    with failing, self.assertRaises(KeyboardInterrupt):
      collect.run(str(self.where), self.logs, str(self.export), 0.0)
    self._show("later")
    self._answer("later", [0, 1])
    self.assertEqual(self._collect()[0], 0)
    self.assertLen(self._rows(), 5)

  def test_files_are_read_as_logs(self):
    rng = random.Random(0)
    for number in range(60):
      user, name = f"u{number % 5}", f"r{number:03d}"
      self._show(
        name,
        rng.sample(range(1, 41), 3),
        user_id=user,
        session_id=f"{user}-{number // 20}",
        time=float(number),  # Two slates of a session may claim one step.
        history=json.dumps([f"id-{rng.randrange(1, 41)}"]),
      )
      likes = [rng.randrange(2) for _ in range(3)]
      ends = rng.random() < 0.2
      reward = rng.choice([None, 0.0])
      self._answer(name, likes, reward, ends or None)
      if number == 30:
        self.assertEqual(self._collect()[0], 0)
    status, _, err = self._collect()
    self.assertEqual(status, 0, err)
    out, dataset = self._prepared(self.logs / "slates_3")
    self.assertIn("columns not used: request_id", out)
    self.assertIn(
      "items.parquet: tags that requests may include: genres, t", out
    )
    self._check_tags(dataset.items)
    rows, names = self._rows(3), dataset.items.external_ids
    found = 0
    for split in dataset.splits.values():
      for row, moment in enumerate(split.timestamp):
        want = rows[f"r{int(moment):03d}"]
        shown = [names[i] for i in split.exposed[row]]
        self.assertEqual(shown, want["exposed"])
        self.assertEqual(split.response[row].tolist(), want["response"])
        np.testing.assert_array_equal(split.propensity[row], [0.5] * 3)
        self.assertEqual(split.step[row], want["step"])
        self.assertEqual(split.terminated[row], want["terminated"])
        reward = want["reward"]
        self.assertEqual(np.isnan(split.reward[row]), reward is None)
        found += 1
    self.assertEqual(found, 60)
    self.assertGreater(max(x["step"] for x in rows.values()), 2)

  def _check_tags(self, items):
    """Compares what would be exported with what was."""
    tags, genres, left_out = export.tags_of(items)
    want = self.catalogue.tags
    self.assertEqual(
      [sorted(x) for x in tags], [sorted(want.of(i)) for i in range(42)]
    )
    self.assertEqual((genres, left_out), (["cold", "hot"], 0))
    np.testing.assert_array_equal(items.added, want.added[:42])

  def test_killed_under_load_nothing_acknowledged_is_lost(self):
    """The real server is killed in tests/server/store/kill_test.py."""
    process = subprocess.Popen(
      [sys.executable, "-c", LOAD, str(self.where)],
      stdout=subprocess.PIPE,
      text=True,
    )
    lines = [process.stdout.readline() for _ in range(300)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines(keepends=True)
    process.stdout.close()
    process.wait()
    acknowledged = {x.strip() for x in lines if x.endswith("\n")}
    self.assertEqual(self._collect()[0], 0)
    rows = self._rows()
    self.assertEmpty(acknowledged - rows.keys())
    for name, row in rows.items():
      self.assertEqual(row["response"], [int(name[-6:]) % 2, 1])

  @parameterized.parameters(
    ((), "--mode=collect needs --from"),
    (("--from=/nowhere/x.db",), "/nowhere/x.db is missing"),
    (("--from=mysql://ann:pw@host/x",), "mysql://***@host/x' has an unknown"),
    (("--from=x", "--mode=policy"), "--from with --mode=policy"),
    (("--collect_after=0", "--mode=data"), "--collect_after with --mode=data"),
    (("--collect_after=nan",), "expected a finite number"),
    (("--collect_after=-1",), "expected a finite number"),
  )
  def test_bad_flags(self, given, words):
    status, _, err = run("--mode=collect", f"--workdir={self.logs}", *given)
    self.assertEqual(status, 2, err)
    self.assertIn(words, err)
    self.assertLen(err.splitlines(), 1)

  def test_what_does_not_belong_is_refused_and_left(self):
    self._show("a")
    self._answer("a", [0, 1])
    self.assertEqual(self._collect()[0], 0)
    mine = self.logs / "slates_2" / collect.SESSIONS / "mine.parquet"
    mine.write_text("x")
    status, _, err = self._collect()
    self.assertEqual(status, 2)
    self.assertIn("holds 'mine.parquet'", err)
    mine.unlink()
    self._show("b", (1, 42))  # Of no export.
    self._answer("b", [0, 1])
    status, _, err = self._collect()
    self.assertEqual(status, 2)
    self.assertIn("the item 'id-42'", err)
    self.assertEqual([*self._rows()], ["a"])
    self.assertLen(os.listdir(mine.parent), 1)


if __name__ == "__main__":
  absltest.main()
