"""The store: what is kept, what wins, what is numbered; against a plain model.

Each case runs on SQLite, and on a real PostgreSQL where it is installed.
"""

import asyncio
import concurrent.futures
import json
import pathlib
import random
import sqlite3
import subprocess
import sys
import threading
from unittest import mock

from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError
from hsrl_jax.server import store as store_lib
from hsrl_jax.server.store import (
  Feedback,
  Outcome,
  Slate,
  engines,
  records,
  writer,
)
from tests.command import ROOT
from tests.server import running
from tests.server.store import postgres

ENGINES = ("sqlite", "postgres")


def slate(name, user="ann", session=None, step=0, time=100.0, items="abc", **k):
  """A slate of one-letter items."""
  return Slate(
    name,
    user,
    session,
    step,
    time,
    len(items),
    json.dumps([*items]),
    json.dumps([0.5] * len(items)),
    "[]",
    "[]",
    k.get("version", "1"),
    k.get("arm", "stable"),
  )


def made(name):
  """A slate and its feedback, which follow from its name."""
  rng = random.Random(name)
  user, time = rng.choice("abc"), rng.randrange(99)
  step = rng.choice([0, 0, 0, 3])
  end = rng.choice([None, None, None, True])
  responses = [rng.randrange(2) for _ in "abc"]
  arm = rng.choice(["stable", "canary"])
  shown = slate(name, user, "s", step, time, arm=arm)
  return shown, Feedback(name, responses, terminated=end)


class Model:
  """First wins, written down once more: by value, without merging."""

  def __init__(self, items):
    self.items, self.values = items, {}

  def take(self, responses, reward, terminated):
    given = {("item", i): x for i, x in responses.items()}
    given |= {"reward": reward, "terminated": terminated}
    counts = [0, 0, 0]
    for key, value in given.items():
      if value is None:
        continue
      if key not in self.values:
        self.values[key] = value
        counts[0] += 1
      else:
        counts[1 if self.values[key] == value else 2] += 1
    return tuple(counts)


class StoreTest(parameterized.TestCase):
  def _open(self, engine):
    if engine == "postgres":
      where = self.enter_context(postgres.database(self))
    else:
      where = str(pathlib.Path(self.create_tempdir().full_path) / "store.db")
    opened = store_lib.open_store(where)
    self.addCleanup(opened.close)
    self.where = where
    return opened

  @parameterized.parameters(*ENGINES)
  def test_first_wins_as_in_the_model(self, engine):
    opened, rng = self._open(engine), random.Random(0)
    names = [f"r{i}" for i in range(6)]
    writer.apply(opened, [slate(x) for x in names])
    models = {x: Model("abc") for x in names}
    seen = set()
    for _ in range(40):
      batch, want = [], []
      for _ in range(rng.randrange(1, 5)):
        name = rng.choice(names)
        responses = {
          item: rng.randrange(2) for item in "abc" if rng.random() < 0.3
        }
        reward = rng.choice([None, None, 0.0])
        ends = rng.choice([None, None, True])
        given = responses
        if rng.random() < 0.5:
          given = [responses.get(item) for item in "abc"]
        batch.append(Feedback(name, given, reward, ends))
        want.append(Outcome(*models[name].take(responses, reward, ends), False))
      self.assertEqual(writer.apply(opened, batch), want)
      seen |= {i for x in want for i in range(3) if x[i]}
    self.assertEqual(seen, {0, 1, 2})
    # Opened again, all of it is there.
    again = store_lib.open_store(self.where)
    self.addCleanup(again.close)
    for name, *values in again.find(names):
      kept, model = records.kept_of(*values), models[name].values
      self.assertEqual(kept.responses, [model.get(("item", i)) for i in "abc"])
      self.assertEqual(kept.reward, model.get("reward"))
      self.assertEqual(kept.terminated, model.get("terminated"))

  @parameterized.parameters(*ENGINES)
  def test_unknown_and_wrong_feedback_leaves_the_rest_of_its_batch(
    self, engine
  ):
    opened = self._open(engine)
    results = writer.apply(
      opened,
      [
        slate("r"),
        Feedback("x", [1, 1, 1]),
        Feedback("r", [1]),
        Feedback("r", {"z": 1}),
        Feedback("r", [None, 0, None], 0.5),
        Feedback("r", [1, 1, 1], -0.5),
        Feedback("r", [None, 0, None]),
      ],
    )
    self.assertIsNone(results[0])
    self.assertIsInstance(results[1], store_lib.UnknownRequest)
    for result, words in zip(
      results[2:6],
      ("1 entries; expected 3", "'z'", "no response is pos", "all responses"),
      strict=True,
    ):
      self.assertIsInstance(result, InputError)
      self.assertIn(words, str(result))
    self.assertEqual(results[6], Outcome(1, 0, 0, False))

  @parameterized.parameters(*ENGINES)
  def test_a_record_that_cannot_be_kept_fails_alone(self, engine):
    opened = self._open(engine)
    writer.apply(opened, [slate("a"), slate("b")])
    batch = [slate("c"), slate("a"), slate("d"), slate("e"), slate("b")]
    results = writer.apply(opened, [*batch, Feedback("b", [1, 0, 1])])
    failed = [isinstance(x, store_lib.StoreError) for x in results]
    self.assertEqual(failed, [False, True, False, False, True, False])
    self.assertEqual(results[-1], Outcome(3, 0, 0, False))
    self.assertLen(opened.find([*"abcde"]), 5)
    # PostgreSQL has no NUL; SQLite knows no such request.
    wrong = slate("f", "user\0") if engine == "postgres" else slate("a")
    others = [Feedback(x, [0, None, 1]) for x in "acde"]
    results = writer.apply(
      opened, [*others[:2], wrong, *others[2:], Feedback("x\0", [1, 0, 0])]
    )
    self.assertEqual(
      [isinstance(x, Outcome) for x in results],
      [True, True, False, True, True, False],
    )

  def test_what_fails_everybody_is_not_tried_for_each(self):
    opened = self._open("sqlite")
    writer.apply(opened, [slate("a")])
    away = engines.Away("locked")
    with mock.patch.object(opened, "find", side_effect=away) as find:
      results = writer.apply(opened, [Feedback("a", [1, 0, 0])] * 9)
    self.assertEqual(results, [away] * 9)
    self.assertEqual(find.call_count, 1)

  def test_who_waits_too_long_is_told_whether_it_can_be_kept(self):
    opened = self._open("sqlite")
    names = [*"abcd"]
    writer.apply(opened, [slate(x) for x in names])
    begun, go_on, update = threading.Event(), threading.Event(), opened.update

    def wait(rows):
      begun.set()
      go_on.wait(60)
      update(rows)

    async def use():
      work = writer.Writer(opened, seconds=0.2)
      work.start()
      opened.update = wait
      written = asyncio.create_task(work.answer(Feedback("a", [1, 0, 0])))
      await asyncio.to_thread(begun.wait)
      # It waits behind what is being written, and is never written.
      with self.assertRaises(store_lib.StoreError) as told:
        await work.answer(Feedback("b", [1, 0, 0]))
      self.assertNotIsInstance(told.exception, store_lib.Undecided)
      with self.assertRaises(store_lib.Undecided):
        await written
      opened.update = update
      go_on.set()
      kept = await work.answer(Feedback("c", [1, 0, 0]))
      self.assertEqual(kept, Outcome(3, 0, 0, False))
      work.stop()

    asyncio.run(use())
    rows = {name: responses for name, _, responses, *_ in opened.find(names)}
    kept = "[1, 0, 0]"
    self.assertEqual(rows, {"a": kept, "b": None, "c": kept, "d": None})

  def test_a_lock_and_a_lost_commit_of_postgres(self):
    with mock.patch.object(engines, "WAIT", 0.5):
      opened = self._open("postgres")
      other = store_lib.open_store(self.where)
      self.addCleanup(other.close)
    writer.apply(opened, [slate("a")])
    given = [Feedback("a", [1, 0, 1])]
    with other._engine.transaction():
      writer._write(other, given)
      (locked,) = writer.apply(opened, given)
    self.assertIsInstance(locked, engines.Away)
    self.assertEqual(writer.apply(opened, given), [Outcome(0, 3, 0, False)])

    def stop():
      opened.touch()
      postgres.cluster().stop()

    try:
      with self.assertRaises(store_lib.Undecided):
        opened.transact(stop)
    finally:
      postgres.cluster().start()
    self.assertEqual(writer.apply(opened, given), [Outcome(0, 3, 0, False)])

  @parameterized.parameters(*ENGINES)
  def test_steps_of_a_session_go_on_with_time_and_end_once(self, engine):
    opened = self._open(engine)
    writer.apply(
      opened,
      [
        slate("a", session="s"),
        slate("b", session="s", time=90.0),  # The clock went back.
        slate("c", session="s", step=5),
        slate("d", session="s", user="bob"),
        slate("e"),
        slate("f"),
      ],
    )
    # A later slate was shown: the user had not left.
    end = Feedback("b", [1, 0, 0], terminated=True)
    self.assertEqual(writer.apply(opened, [end]), [Outcome(3, 0, 1, False)])
    end = Feedback("c", [0, 0, 0], terminated=True)
    self.assertEqual(writer.apply(opened, [end]), [Outcome(4, 0, 0, False)])
    # What follows an end is another session.
    writer.apply(opened, [slate("g", session="s"), slate("h", session="s")])
    writer.apply(opened, [Feedback(x, [0, 0, 1]) for x in "adefgh"])
    opened.close_done(0.0, 99)
    rows = {
      name: (part, step, time)
      for _, name, _, _, part, step, time, *_ in opened.closed(3, 0, 99, 99)
    }
    self.assertEqual(
      rows,
      {
        "a": (0, 0, 100.0),
        "b": (0, 1, 100.0),
        "c": (0, 5, 100.0),
        "d": (0, 0, 100.0),
        "e": (0, 0, 100.0),
        "f": (0, 0, 100.0),
        "g": (1, 0, 100.0),
        "h": (1, 1, 100.0),
      },
    )

  @parameterized.parameters(*ENGINES)
  def test_what_is_done_is_numbered_once_and_takes_no_more(self, engine):
    opened = self._open(engine)
    writer.apply(opened, [slate(x, time=i) for i, x in enumerate("abcdef")])
    writer.apply(
      opened,
      [
        Feedback("e", [1, 0, 1]),
        Feedback("d", [], terminated=True),
        Feedback("b", [1, None, None]),
        Feedback("f", [None, 1, None]),
      ],
    )

    def numbers():
      return {row[1]: row[0] for row in opened.closed(3, 0, 99, 99)}

    self.assertEqual(opened.close_done(5.0, 2), 2)
    self.assertEqual(opened.close_done(5.0, 2), 1)
    self.assertEqual(numbers(), {"b": 1, "d": 2, "e": 3})
    self.assertEqual(opened.close_done(5.0, 2), 0)
    late = writer.apply(opened, [Feedback("b", [1, 1, None])])
    self.assertEqual(late, [Outcome(0, 1, 1, True)])
    self.assertEqual(opened.close_done(5.1, 2), 1)
    self.assertEqual(numbers(), {"b": 1, "d": 2, "e": 3, "f": 4})
    self.assertEqual([tuple(x) for x in opened.widths()], [(3, 4)])
    self.assertLen(opened.closed(3, 1, 3, 99), 2)
    self.assertLen(opened.closed(3, 0, 99, 1), 1)

  @parameterized.parameters(*ENGINES)
  def test_earned_is_what_a_scan_of_all_slates_sums(self, engine):
    opened = self._open(engine)

    def use(seed):
      mine, rng = store_lib.open_store(self.where), random.Random(seed)
      for number in range(15):
        names = [f"{seed}-{number}-{i}" for i in range(3)]
        arms = [rng.choice(["stable", "canary"]) for _ in names]
        shown = [
          slate(x, rng.choice("xyz"), arm=arm)
          for x, arm in zip(names, arms, strict=True)
        ]
        writer.apply(mine, shown)
        given = []
        for name in rng.choices(names, k=rng.randrange(6)):  # Some twice.
          responses = [rng.choice([0, 1, None]) for _ in "abc"]
          reward = 0.25 if any(responses) and rng.random() < 0.3 else None
          given.append(Feedback(name, responses, reward))
        writer.apply(mine, given)
        if number == 7:  # It starts anew.
          mine.close()
          mine = store_lib.open_store(self.where)
      mine.close()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      list(pool.map(use, range(3)))
    self._check_earned(opened)
    self.assertEqual(opened.earned("stable", "1")[0], 3)
    self.assertEqual(opened.earned("stable", "2")[0], 0)

  def _check_earned(self, opened):
    """Compares with a scan."""
    totals = {"stable": {}, "canary": {}}
    query = "SELECT arm, user_id, earned FROM slates WHERE earned IS NOT NULL"
    for arm, user, earned in opened._engine.read(query, 3):
      own = totals[arm].setdefault(user, [0, 0])
      own[0] += earned
      own[1] += 1
    for arm, own in totals.items():
      r, n = zip(*own.values(), strict=True) if own else ((), ())
      want = [len(own), sum(r), sum(n), sum(x * x for x in r)]
      want += [sum(x * y for x, y in own.values()), sum(x * x for x in n)]
      self.assertSequenceAlmostEqual(opened.earned(arm, "1"), want)

  @parameterized.parameters(*ENGINES)
  def test_whatever_is_old_is_forgotten(self, engine):
    opened, rng = self._open(engine), random.Random(2)
    times = [rng.randrange(9) + 0.5 for _ in range(60)]
    names = [f"{records.first_id(x)}{i:02d}" for i, x in enumerate(times)]
    shown = [
      slate(
        *(x, rng.choice("xyz"), rng.choice(["s", None]), 0, time),
        items=rng.choice(["abc", "ab"]),
        arm=rng.choice(["stable", "canary"]),
      )
      for x, time in zip(names, times, strict=True)
    ]
    writer.apply(opened, shown)
    answered = [x for x in names if rng.random() < 0.7]
    writer.apply(opened, [Feedback(x, {"a": 1, "b": 0}) for x in answered])
    writer.apply(opened, [Feedback(x, {"c": 0}) for x in answered[::2]])
    closed = opened.close_done(0.0, 99)
    self.assertGreater(closed, 20)
    query = "SELECT request_id, width, closed, responses FROM slates"
    before = opened._engine.read(query, 4)
    for width, last in ((3, 20), (3, 9), (2, 30)):  # 9 is an older one.
      opened.transact(lambda k=width, n=last: opened.mark(f"collected_{k}", n))
    old = {x for x, time in zip(names, times, strict=True) if time < 5}
    unread = {
      name
      for name, width, number, responses in before
      if responses and not (number and number <= {2: 30, 3: 20}[width])
    }
    self.assertGreater(len(old & unread), 2)
    pieces = []
    while not pieces or pieces[-1][0]:
      pieces.append(opened.forget(5.0, 7))
      self._check_earned(opened)
    self.assertEqual([x for x, _ in pieces[:-2]], [7] * (len(old) // 7))
    counts = tuple(map(sum, zip(*pieces, strict=True)))
    self.assertEqual(counts, (len(old), len(old & unread)))
    left = {row[0] for row in opened._engine.read(query, 4)}
    self.assertEqual(left, {*names} - old)
    # The rest goes too; then numbers and parts are new ones all the same.
    opened.forget(99.0, 99)
    for table in ("slates", "sessions", "users"):
      self.assertEqual(opened._engine.read(f"SELECT 1 FROM {table}", 1), [])
    self._check_earned(opened)
    writer.apply(opened, [slate("r", "new", "s"), Feedback("r", [1, 1, 0])])
    self.assertEqual(opened.close_done(0.0, 99), 1)
    ((number, *_), *_) = opened.closed(3, 0, 999, 99)
    self.assertGreater(number, closed)

  @parameterized.parameters(*ENGINES)
  def test_a_session_that_comes_back_is_another(self, engine):
    opened = self._open(engine)

    def show(names):
      for name in names:
        writer.apply(opened, [slate(name, session="s")])
        writer.apply(opened, [Feedback(name, [0, 0, 0], None, name != "d")])
      opened.close_done(0.0, 99)
      rows = opened.closed(3, 0, 999, 99)
      opened.forget(1e9, 99)
      return {(row[4], row[5]) for row in rows}

    writer.apply(opened, [slate("x", session="s")])  # Nobody answers it.
    parts = [show(names) for names in ("abcd", "ef", "g", "hijklm")]
    self.assertLen(set.union(*parts), 13)
    # Whether the user had left after it, is known no longer.
    late = Feedback("x", [0, 0, 0], terminated=True)
    self.assertEqual(writer.apply(opened, [late]), [Outcome(3, 0, 1, False)])

  def test_coroutines_share_commits_and_a_full_disk_loses_nothing(self):
    opened, sizes = self._open("sqlite"), []
    connection = opened._engine._connection

    def limit(pages):
      connection.execute(f"PRAGMA max_page_count = {pages}")

    async def use():
      work = writer.Writer(opened, on_batch=sizes.append)
      work.start()
      names = [f"r{i}" for i in range(200)]
      await asyncio.gather(*(work.record(slate(x)) for x in names))
      yield_ = [work.answer(Feedback(x, [1, 0, None])) for x in names]
      outcomes = await asyncio.gather(*yield_)
      self.assertEqual(set(outcomes), {Outcome(2, 0, 0, False)})
      limit(connection.execute("PRAGMA page_count").fetchone()[0])
      large = slate("large", items="x" * 10_000)
      with self.assertRaisesRegex(store_lib.StoreError, "full"):
        await work.record(large)
      limit(2**30)
      await work.record(large)
      known = await work.answer(Feedback("r0", [1, 0, None]))
      self.assertEqual(known, Outcome(0, 2, 0, False))
      work.stop()
      with self.assertRaises(store_lib.StoreError):
        await work.record(large)

    asyncio.run(use())
    self.assertLess(len(sizes), 50)
    self.assertEqual(sum(sizes), 403)
    self.assertEqual(
      connection.execute("SELECT count(*) FROM slates").fetchone(), (201,)
    )

  def test_a_full_file_system_is_an_error_and_no_more(self):
    """A process whose files may not grow; the system says so, not SQLite."""
    path = pathlib.Path(self.create_tempdir().full_path) / "store.db"
    ran = subprocess.run(
      [sys.executable, "-c", _FULL, str(path)],
      capture_output=True,
      text=True,
      check=True,
    )
    kept, refused, after = json.loads(ran.stdout)
    self.assertGreater(kept, 10)
    self.assertEqual(refused, "Away")
    self.assertEqual(after, 1)
    opened = store_lib.open_store(str(path))
    self.addCleanup(opened.close)
    names = [f"r{i}" for i in range(kept)]
    self.assertLen(opened.find(names), kept)
    self.assertLen(opened.find([f"r{kept}"]), 1)

  def test_postgres_may_go_and_come_back(self):
    opened = self._open("postgres")
    self.assertEqual(writer.apply(opened, [slate("a")]), [None])
    postgres.cluster().stop()
    given = [Feedback("a", [1, 0, 1])]
    (failed,) = writer.apply(opened, given)
    self.assertIsInstance(failed, store_lib.StoreError)
    with self.assertRaisesRegex(InputError, "cannot be opened") as caught:
      store_lib.open_store(self.where)
    self.assertLen(str(caught.exception).splitlines(), 1)
    postgres.cluster().start()
    self.assertEqual(writer.apply(opened, given), [Outcome(3, 0, 0, False)])

  @parameterized.parameters(
    (slate("b", session="s", step=5), (0, 6)),
    (Feedback("a", [0, 0, 0], terminated=True), (1, 0)),
  )
  def test_servers_wait_for_each_other_in_one_session_alone(self, first, want):
    opened = self._open("postgres")
    other = store_lib.open_store(self.where)
    self.addCleanup(other.close)
    writer.apply(opened, [slate("a", session="s")])

    def blocked():
      query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
      return other._engine.read(query, 1)[0][0]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      with other._engine.transaction():
        writer._write(other, [first])
        # In another session, for another user, nothing waits.
        free = [slate("d", "bob", session="s"), Feedback("d", [1, 0, 1])]
        self.assertEqual(
          writer.apply(opened, free), [None, Outcome(3, 0, 0, False)]
        )
        last = pool.submit(writer.apply, opened, [slate("c", session="s")])
        running.until(blocked)
      self.assertEqual(last.result(), [None])
    writer.apply(opened, [Feedback("c", [0, 0, 0])])
    opened.close_done(0.0, 99)
    rows = {row[1]: row[4:6] for row in opened.closed(3, 0, 99, 99)}
    self.assertEqual(tuple(rows["c"]), want)

  def test_two_writers_one_killed_are_as_one_after_the_other(self):
    opened = self._open("postgres")
    writers = []
    for name in "xy":
      pairs = json.dumps([made(f"{name}{i}") for i in range(120)])
      process = subprocess.Popen(
        [sys.executable, "-c", _WRITES, self.where, pairs],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
      )
      writers.append(self.enter_context(process))
    killed, goes_on = writers
    told = [killed.stdout.readline() for _ in range(90)]
    killed.kill()
    told += [*killed.stdout, *goes_on.stdout]  # The last may be cut off.
    killed.wait()
    self.assertEqual(goes_on.wait(), 0)
    names = ("request_id", "user_id", "session_id", "part", "step", "time")
    names += ("responses", "terminated")
    query = f"SELECT {', '.join(names)} FROM slates ORDER BY part, step"
    rows = opened._engine.read(query, len(names))
    found = {row[0]: tuple(row[1:]) for row in rows}
    for line in told:
      if line.endswith("\n"):
        name, accepted = line.split()
        self.assertIsNotNone(found[name][-2])
        self.assertEqual(int(accepted), 3 + (found[name][-1] or 0))
    self._check_earned(opened)
    # The same again in the order of steps, by one that has it for itself: an
    # end that was accepted was told before the next slate, others at the end.
    again = self._open("sqlite")
    late = []
    for name, *_, responses, terminated in rows:
      writer.apply(again, [made(name)[0]])
      late += [made(name)[1]] if responses is not None else []
      if terminated:
        writer.apply(again, [late.pop()])
    writer.apply(again, late)
    rows = again._engine.read(query, len(names))
    self.assertEqual(found, {row[0]: tuple(row[1:]) for row in rows})
    for column, values in ((0, "abc"), (2, range(2, 9)), (-1, [None, 1])):
      self.assertContainsSubset(values, {row[column] for row in found.values()})
    for user in "abc":  # Both wrote to it.
      both = {name[0] for name, row in found.items() if row[0] == user}
      self.assertEqual(both, {"x", "y"})

  def test_what_is_no_store_is_refused_and_left(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    text, other = folder / "text", folder / "other.db"
    text.write_text("no database, but a text that is long enough" * 99)
    with sqlite3.connect(other) as connection:
      connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for where, words in (
      (text, "not a database"),
      (other, "the table 'mine'"),
      (folder / "missing" / "x.db", "unable to open"),
      ("mysql://host/x", "unknown scheme"),
    ):
      with self.assertRaisesRegex(InputError, words) as caught:
        store_lib.open_store(str(where))
      self.assertLen(str(caught.exception).splitlines(), 1)
    with sqlite3.connect(other) as connection:
      tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    connection.close()
    self.assertEqual(tables, [("mine",)])


_FULL = """
import json, os, resource, sys
from hsrl_jax.server import store
from hsrl_jax.server.store import Slate, writer

opened = store.open_store(sys.argv[1])
limit = lambda size: resource.setrlimit(
  resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)
)
limit(400_000)

def record(number):
  row = Slate(f"r{number}", "u", "s", 0, 1.0, 1, '["a"]', "[1]", '"' +
    "x" * 2000 + '"', "[]", "1", "stable")
  (result,) = writer.apply(opened, [row])
  return result

kept = 0
while (result := record(kept)) is None:
  kept += 1
limit(10**9)
print(json.dumps([kept, type(result).__name__, int(record(kept) is None)]))
"""


# Shows slates, answers them, and prints what of each answer was accepted.
_WRITES = """
import json, sys
from hsrl_jax.server import store
from hsrl_jax.server.store import Feedback, Slate, writer

opened, pairs = store.open_store(sys.argv[1]), json.loads(sys.argv[2])
for first in range(0, len(pairs), 2):
  slates, given = zip(*pairs[first:first + 2])
  results = writer.apply(opened, [Slate(*x) for x in slates])
  assert results == [None, None], results
  given = [Feedback(*x) for x in given]
  for feedback, outcome in zip(given, writer.apply(opened, given)):
    print(feedback.request_id, outcome.accepted, flush=True)
"""


if __name__ == "__main__":
  absltest.main()
