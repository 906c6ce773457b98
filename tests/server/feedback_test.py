"""Feedback over HTTP: slates that are kept, and what came of them."""

import concurrent.futures
import json
import pathlib
import shutil
import tempfile
import time
from unittest import mock

import numpy as np
from absl.testing import absltest

from hsrl_jax import serving, sid
from hsrl_jax.server import batches
from hsrl_jax.server import ids as ids_lib
from hsrl_jax.server import store as store_lib
from tests import toy
from tests.server import running
from tests.serving import toy_export

_USER = {"profile": [0.5, 0.0, 0.0, -1.0]}

_BAD_FEEDBACK = (
  ({}, "request_id is missing"),
  ({"request_id": 3, "responses": [1]}, "request_id is 3"),
  ({"responses": [0, 1]}, "2 entries; expected 3"),
  ({"responses": [0, 1, 2]}, "expected 0 or 1"),
  ({"responses": "101"}, "expected a list in the order"),
  ({"responses": {"id-999": 1}}, "did not show"),
  ({"responses": []}, "the feedback is empty"),
  ({"reward": float("1e39")}, "expected a finite number"),
  ({"reward": "1"}, "expected a finite number"),
  ({"reward": 1}, "no response is positive"),
  ({"terminated": "yes"}, "expected true or false"),
  ({"rewards": 1}, "is no field"),
)
_BAD_REQUESTS = (
  ({"k": 0}, "k is 0"),
  ({"k": toy.SLATE + 1}, "k is 4"),
  ({"k": True}, "k is True"),
  ({"user_id": ""}, "user_id"),
  ({"user_id": "a\0"}, "user_id"),
  ({"user_id": ["a"]}, "user_id"),
  ({"session_id": "x" * 257}, "session_id"),
  ({"temperature": -1}, "temperature is -1"),
  ({"temperature": "1"}, "temperature is '1'"),
  ({"earlier": [[1]]}, "earlier holds"),
  ({"earlier": [{"items": ["id-1"], "responses": []}]}, "1 items with 0"),
  ({"earlier": [{"items": ["x"], "responses": [1]}]}, "earlier holds 'x'"),
  ({"earlier": [{"items": ["id-1"], "responses": [3]}]}, "0 to 1"),
  ({"include": [1]}, "include holds"),
  ({"include": "Drama"}, "include is no list"),
  ({"since": [1]}, "since is [1]"),
)


def _send(port, **values):
  return running.post(port, "/feedback", values)


class IdsTest(absltest.TestCase):
  def test_rows_of_a_catalogue_that_changes(self):
    made = serving.make_catalogue(
      sid.build_index(np.array([[0], [1], [2]]), 9),
      np.zeros((1, 9, 2), np.float32),
      np.zeros((4, 2), np.float32),
      ["", "tea", "Käse", "x"],
      [""] * 4,
      capacity=6,
    )
    first = ids_lib.of_catalogue(made)
    self.assertEqual(first.rows, {"tea": 1, "Käse": 2, "x": 3})
    # Where items leave nothing is built anew.
    gone = made.remove_items([2])
    self.assertIs(ids_lib.of_catalogue(gone, first), first)
    # An id that comes back in another row is that of the active item.
    both = gone.add_items([5], np.ones((1, 2), np.float32), ["Käse"])
    rows = ids_lib.of_catalogue(both, first).rows
    self.assertEqual(rows, {"tea": 1, "Käse": 5, "x": 3})


class FeedbackTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(tempfile.mkdtemp())
    cls.folder = cls.root / "export"
    toy_export.make(cls.folder)
    cls.recommender = serving.load(cls.folder)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.root)
    super().tearDownClass()

  def _serving(self, **settings):
    """A server with a store, whose path is `self.store`."""
    folder = tempfile.mkdtemp(dir=self.root)
    self.store = str(pathlib.Path(folder) / "store.db")
    opened = store_lib.open_store(self.store)
    given = {"ids": "source", "folder": self.folder, "store": self.store}
    return running.serving(self.recommender, opened, **given | settings)

  def _rows(self):
    """Columns of all slates, by request id."""
    opened = store_lib.open_store(self.store)
    engine = opened._engine
    names = ("request_id", *store_lib.Slate._fields[1:], "responses", "reward")
    try:
      rows = engine.read(f"SELECT {', '.join(names)} FROM slates", len(names))
    finally:
      opened.close()
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}

  def test_items_are_those_of_the_source(self):
    with self._serving() as (_, _, port):
      status, by_source = running.ask(
        port, history=["id-1", "id-2"], seen=["id-3"], **_USER
      )
      self.assertEqual(status, 200, by_source)
      for field, item, words in (
        ("history", "nobody", "history holds 'nobody', which is no known"),
        ("seen", 1, "seen holds '1', which is no known"),
        ("history", 1.5, "history holds 1.5; expected item ids"),
        ("history", True, "history holds True; expected item ids"),
      ):
        status, answer = running.ask(
          port, **{"history": ["id-1"]} | _USER | {field: [item]}
        )
        self.assertEqual(status, 422, answer)
        self.assertIn(words, answer["error"])
    with self._serving(ids="rows") as (_, _, port):
      status, by_row = running.ask(port, history=[1, 2], seen=[3], **_USER)
    self.assertEqual(by_source["item_ids"], by_row["item_ids"])
    want = self.recommender.recommend([[1, 2]], [_USER["profile"]], [[3]])
    self.assertEqual(by_row["items"], want.items[0].tolist())

  def test_what_is_shown_is_kept_before_it_is_answered(self):
    with self._serving() as (server, _, port):
      _, plain = running.ask(port, history=["id-1"] * 20, **_USER)
      earlier = [{"items": ["id-4", "id-5", "id-6"], "responses": [1, 0, 0]}]
      _, in_session = running.ask(
        port,
        history=[],
        earlier=earlier,
        user_id=7,
        session_id="s",
        k=2,
        **_USER,
      )
      rows = self._rows()
    self.assertLen(rows, 2)
    self.assertLen(plain["items"], toy.SLATE)
    self.assertEqual(in_session["items"], in_session["items"][:2])
    self.assertLen(in_session["propensities"], 2)
    for answer, want in (
      (plain, (plain["request_id"], None, 0, ["id-1"] * toy.HISTORY)),
      (in_session, ("7", "s", 1, [])),
    ):
      row = rows[answer["request_id"]]
      self.assertEqual(
        (
          *(row["user_id"], row["session_id"], row["step"]),
          json.loads(row["history"]),
        ),
        want,
      )
      self.assertEqual(json.loads(row["items"]), answer["item_ids"])
      self.assertEqual(json.loads(row["propensities"]), answer["propensities"])
      self.assertEqual(json.loads(row["profile"]), _USER["profile"])
      self.assertEqual(row["version"], answer["version"])
      self.assertEqual(row["width"], len(answer["items"]))
      self.assertIsNone(row["responses"])

  def test_first_wins_partial_fills_and_unknown_is_404(self):
    with self._serving() as (_, _, port):
      _, answer = running.ask(port, history=["id-1"], user_id="ann", **_USER)
      name, items = answer["request_id"], answer["item_ids"]
      said = []
      for given in (
        {"responses": {items[1]: 1}},
        {"responses": {items[1]: 1}},
        {"responses": [0, 0, None]},
        {"responses": [0, 1, 1], "reward": 0.3, "terminated": True},
        {"responses": [0, 1, 1], "reward": 0.3, "terminated": True},
        {"responses": [1, 1, 1], "reward": 0.4},
      ):
        status, body = _send(port, request_id=name, **given)
        self.assertEqual(status, 200, body)
        said.append((body["known"], body["accepted"], body["ignored"]))
      self.assertEqual(
        said,
        [
          (False, 1, 0),
          (True, 0, 0),
          (False, 1, 1),
          (False, 3, 0),
          (True, 0, 0),
          (True, 0, 2),
        ],
      )
      status, body = _send(port, request_id="0" * 32, responses=[1, 1, 1])
      self.assertEqual(status, 404, body)
      values = running.metrics(port)
    self.assertEqual(values['hsrl_feedback_total{outcome="ignored"}'], 3)
    self.assertEqual(values['hsrl_feedback_total{outcome="accepted"}'], 5)
    arm = f'{{arm="stable",version="{answer["version"]}"}}'
    self.assertAlmostEqual(values[f"hsrl_reward{arm}"], 0.3)
    self.assertEqual(values[f"hsrl_reward_users{arm}"], 1)
    row = self._rows()[name]
    self.assertEqual(json.loads(row["responses"]), [0, 1, 1])

  def test_a_list_of_requests_gets_as_many_answers(self):
    users = [
      {"history": [f"id-{i}"], "user_id": f"user-{i}"} | _USER
      for i in range(1, 6)
    ]
    users.insert(2, {"history": ["nobody"]} | _USER)
    users.append(None)
    with self._serving(max_queue=7) as (_, _, port):
      status, slates = running.post(port, "/recommend", users)
      self.assertEqual(status, 200, slates)
      alone = [running.ask(port, **x) for x in users[:-1]]
      told = [
        {"request_id": x["request_id"], "responses": [1, 0, i % 2]}
        for i, x in enumerate(slates)
        if "request_id" in x
      ]
      told.insert(1, {"request_id": "0" * 32, "responses": [1, 1, 1]})
      status, answers = running.post(port, "/feedback", told)
      self.assertEqual(status, 200, answers)
      for path in ("/recommend", "/feedback"):
        for body in ([], [{}] * 8):
          status, answer = running.post(port, path, body)
          self.assertEqual(status, 422, answer)
          self.assertIn("expected 1 to 7", answer["error"])
      values = running.metrics(port)
    self.assertLen(slates, 7)
    for got, (status, want) in zip(slates[:-1], alone, strict=True):
      self.assertEqual(got.get("status", 200), status)
      self.assertEqual(got.get("item_ids"), want.get("item_ids"))
      self.assertEqual(got.get("error"), want.get("error"))
    self.assertEqual(slates[-1]["status"], 400)
    self.assertEqual(
      [x.get("accepted", x.get("status")) for x in answers],
      [3, 404, 3, 3, 3, 3],
    )
    rows = self._rows()
    for said in told[:1] + told[2:]:
      row = rows[said["request_id"]]
      self.assertEqual(json.loads(row["responses"]), said["responses"])
    self.assertEqual(values['hsrl_requests_total{status="404"}'], 1)
    self.assertEqual(values['hsrl_requests_total{status="422"}'], 2 + 4)

  def test_rows_name_the_items_of_feedback_where_requests_have_rows(self):
    with self._serving(ids="rows") as (_, _, port):
      _, answer = running.ask(port, history=[1], **_USER)
      given = {str(answer["items"][2]): 1}
      name = answer["request_id"]
      status, body = _send(port, request_id=name, responses=given)
      self.assertEqual((status, body["accepted"]), (200, 1))
      for item in ("x", "0", "9999999999"):
        status, body = _send(port, request_id=name, responses={item: 1})
        self.assertEqual(status, 422, body)
    self.assertEqual(
      json.loads(self._rows()[name]["responses"]), [None, None, 1]
    )

  def test_bad_feedback_gets_a_422_that_says_why(self):
    with self._serving() as (_, _, port):
      _, answer = running.ask(port, history=["id-1"], **_USER)
      for given, words in _BAD_FEEDBACK:
        if given and "request_id" not in given:
          given = {"request_id": answer["request_id"]} | given
        status, body = _send(port, **given)
        self.assertEqual(status, 422, (given, body))
        self.assertIn(words, body["error"])
    (row,) = self._rows().values()
    self.assertIsNone(row["responses"])

  def test_bad_fields_of_a_request_get_a_422(self):
    with self._serving() as (_, _, port):
      for given, words in _BAD_REQUESTS:
        status, body = running.ask(
          port, **{"history": ["id-1"]} | _USER | given
        )
        self.assertEqual(status, 422, (given, body))
        self.assertIn(words, body["error"])
    self.assertEmpty(self._rows())

  def test_drawn_slates_are_kept_with_their_propensities(self):
    with self._serving() as (_, _, port):
      answers = [
        running.ask(port, history=["id-1"], temperature=3, **_USER)[1]
        for _ in range(12)
      ]
      _, best = running.ask(port, history=["id-1"], temperature=0, **_USER)
      status, refused = running.ask(
        port, history=["id-1"], include=["no tag"], **_USER
      )
    self.assertEqual(status, 422, refused)
    self.assertEqual(best["propensities"], [1.0] * toy.SLATE)
    chances = {}
    for answer in answers:
      row = self._rows()[answer["request_id"]]
      kept = json.loads(row["propensities"])
      np.testing.assert_allclose(kept, answer["propensities"])
      self.assertTrue(all(0 < x < 1 for x in kept), kept)
      # The first place of all is drawn from one distribution.
      chances.setdefault(answer["items"][0], set()).add(round(kept[0], 5))
    self.assertGreater(len(chances), 1)
    self.assertEqual({len(x) for x in chances.values()}, {1})
    self.assertLess(sum(min(x) for x in chances.values()), 1.001)

  @mock.patch.object(batches, "_OLD", 0.01)
  @mock.patch.object(batches, "_REWARDS", 0.0)
  def test_old_slates_go_whatever_came_of_them(self):
    now, days = time.time(), [0]
    with (
      mock.patch.object(time, "time", lambda: now + 86_400 * days[0]),
      self._serving(retention=1) as (_, _, port),
    ):
      _, unanswered = running.ask(port, history=["id-1"], **_USER)
      _, first = running.ask(port, history=["id-1"], **_USER)
      _send(port, request_id=first["request_id"], responses=[1, 1, 1])
      days[0] = 0.9
      _, last = running.ask(port, history=["id-1"], **_USER)
      _send(port, request_id=last["request_id"], responses=[1, 0, 0])
      before = running.metrics(port)
      with self.assertLogs(batches.__name__, "WARNING") as said:
        days[0] = 1.1
        running.until(lambda: len(self._rows()) == 1)
        running.until(lambda: said.output)
      self.assertEqual({*self._rows()}, {last["request_id"]})
      self.assertIn("deleted 1 old slates with feedback", said.output[0])
      after = running.metrics(port)
    arm = f'{{arm="stable",version="{last["version"]}"}}'
    for name, old, new in (("", 2, 1), ("_slates", 2, 1), ("_users", 2, 1)):
      values = [x[f"hsrl_reward{name}{arm}"] for x in (before, after)]
      self.assertEqual(values, [old, new], name)
    counters = {x for x in before if "_total" in x}
    self.assertNotEmpty(counters)
    for name in counters:  # What was counted stays.
      self.assertGreaterEqual(after[name], before[name], name)

  def test_without_a_store_nothing_is_known(self):
    with running.serving(self.recommender, folder=self.folder) as (_, _, port):
      _, answer = running.ask(port, history=[1], **_USER)
      self.assertIsNone(answer["request_id"])
      status, body = _send(port, request_id="x", responses=[1])
    self.assertEqual(status, 404)
    self.assertIn("--store", body["error"])

  def test_a_full_disk_gives_507_and_the_server_goes_on(self):
    with self._serving() as (server, _, port):
      _, answer = running.ask(port, history=["id-1"], **_USER)
      connection = server.store._engine._connection
      (pages,) = connection.execute("PRAGMA page_count").fetchone()
      connection.execute(f"PRAGMA max_page_count = {pages}")
      asked = None
      for _ in range(2_000):  # Until the free room of the pages is used up.
        _, asked = running.ask(port, history=["id-1"] * 10, **_USER)
        if asked["request_id"] is None:
          break
      self.assertIsNone(asked["request_id"])
      self.assertLen(asked["items"], toy.SLATE)
      keep, large = server.store.update, "SET profile = hex(zeroblob(1000000))"

      def more(rows):  # As if feedback itself were so large.
        keep(rows)
        connection.execute(f"UPDATE slates {large}")

      server.store.update = more
      given = {"request_id": answer["request_id"], "responses": [1, 0, 0]}
      status, body = running.post(port, "/feedback", given)
      self.assertEqual(status, 507, body)
      server.store.update = keep
      connection.execute("PRAGMA max_page_count = 1000000")
      status, body = running.post(port, "/feedback", given)
      self.assertEqual((status, body["accepted"]), (200, 3), body)
      _, asked = running.ask(port, history=["id-1"], **_USER)
      self.assertIsNotNone(asked["request_id"])
      self.assertGreater(running.metrics(port)["hsrl_store_errors_total"], 1)

  def test_many_at_once_share_commits(self):
    with (
      self._serving(linger=0.05) as (_, _, port),
      concurrent.futures.ThreadPoolExecutor(20) as pool,
    ):
      users = range(60)
      answers = list(
        pool.map(
          lambda i: running.ask(port, history=[], user_id=i, **_USER)[1], users
        )
      )
      said = list(
        pool.map(
          lambda x: _send(
            port, request_id=x["request_id"], responses=[0, 0, 1]
          ),
          answers,
        )
      )
      values = running.metrics(port)
    self.assertEqual({status for status, _ in said}, {200})
    self.assertEqual(values["hsrl_commit_size_sum"], 120)
    self.assertLess(values["hsrl_commit_size_count"], 100)
    self.assertLen(self._rows(), 60)


if __name__ == "__main__":
  absltest.main()
