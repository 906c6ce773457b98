"""What one client sends, and what is done to files, harms nobody else."""

import concurrent.futures
import contextlib
import io
import json
import os
import pathlib
import shutil
import sqlite3
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from hsrl_jax import serving
from hsrl_jax.errors import InputError
from hsrl_jax.server import __main__ as server_lib
from hsrl_jax.server import bodies
from hsrl_jax.server import store as store_lib
from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.serving import versions
from tests import toy
from tests.server import running
from tests.serving import toy_export

_USER = {"history": ["id-1"], "profile": [0.5, 0.0, 0.0, -1.0]}
_FAR = 401.0  # 100 times what toy_export.RANGES has, and more.


class AttacksTest(parameterized.TestCase):
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
    self.store = pathlib.Path(tempfile.mkdtemp(dir=self.root)) / "store.db"
    opened = store_lib.open_store(str(self.store))
    given = {"ids": "source", "folder": self.folder, "store": str(self.store)}
    return running.serving(self.recommender, opened, **given | settings)

  def _check_alone(self, port, path, bad, words):
    """A bad request gets its 422, alone and in a list, where others stand."""
    good = _USER
    if path == "/feedback":
      name = running.ask(port, **_USER)[1]["request_id"]
      good, bad = {"responses": [0, 0, 1]}, {"request_id": name} | bad
      good = {"request_id": running.ask(port, **_USER)[1]["request_id"]} | good
    status, body = running.post(port, path, bad)
    self.assertEqual(status, 422, body)
    self.assertIn(words, body["error"])
    self.assertLen(body["error"].splitlines(), 1)
    status, (one, two) = running.post(port, path, [bad, good])
    self.assertEqual((status, one["status"]), (200, 422), one)
    self.assertNotIn("error", two)

  def test_ids_are_text_that_any_store_takes(self):
    with self._serving() as (_, _, port):
      for text in ("a\0", "", "x" * 257):
        self._check_alone(
          port, "/feedback", {"request_id": text, "responses": [1]}, "1 to 256"
        )
        for name in ("user_id", "session_id"):
          given = _USER | {name: text}
          self._check_alone(port, "/recommend", given, "1 to 256")
      lone = json.dumps({"request_id": "\ud800", "responses": [1]})
      status, _, body = running.call(port, "POST", "/feedback", lone)
      self.assertEqual(status, 400, body)

  def test_numbers_far_from_what_training_saw(self):
    with self._serving() as (_, _, port):
      for value in (1e25, -1e25, _FAR):
        given = _USER | {"profile": [0.0, value, 0.0, 0.0]}
        self._check_alone(port, "/recommend", given, "from -400 to 400")
      for value in (1e25, -301.0):
        given = {"responses": [0, 1, 0], "reward": value}
        self._check_alone(port, "/feedback", given, "from -300 to 300")
      answer = running.ask(port, **_USER | {"profile": [400.0, 0, 0, -400]})
      self.assertLen(answer[1]["items"], toy.SLATE)
      given = {"request_id": answer[1]["request_id"], "responses": [0, 1, 0]}
      status, body = running.post(port, "/feedback", given | {"reward": 299.0})
      self.assertEqual((status, body["accepted"]), (200, 4))

  @parameterized.parameters("source", "rows")
  def test_nesting(self, ids):
    deep = "[" * 1_000 + "]" * 1_000
    user = _USER | {"history": [1]} if ids == "rows" else _USER
    with self._serving(ids=ids) as (_, _, port):
      shown = running.ask(port, **user)[1]["request_id"]
      for path, good, fields in (
        ("/recommend", user, bodies._FIELDS),
        ("/feedback", {"request_id": shown}, bodies._FEEDBACK),
      ):
        for name in fields:
          for value in (deep, f"[{deep}]", f'{{"a": {deep}}}'):
            bad = json.dumps(good | {name: "@"}).replace('"@"', value)
            status, _, body = running.call(port, "POST", path, bad)
            self.assertEqual(status, 422, (name, body))
            both = f"[{bad}, {json.dumps(user)}]"
            status, _, body = running.call(port, "POST", path, both)
            self.assertEqual(status, 200, (name, body))
            self.assertEqual(json.loads(body)[0]["status"], 422, name)

  def test_what_fails_in_a_list_fails_alone(self):
    ask = bodies.ask

    def fail(values, ids):
      if values.get("user_id") == "bad":
        raise ZeroDivisionError
      return ask(values, ids)

    with (
      self._serving() as (_, _, port),
      mock.patch.object(bodies, "ask", fail),
      self.assertLogs(level="ERROR"),
    ):
      users = [_USER, _USER | {"user_id": "bad"}, _USER]
      status, answers = running.post(port, "/recommend", users)
    self.assertEqual(status, 200)
    self.assertEqual([x.get("status") for x in answers], [None, 500, None])

  def test_nobody_is_told_what_the_database_says(self):
    with self._serving() as (server, _, port):
      shown = running.ask(port, **_USER)[1]["request_id"]
      given = {"request_id": shown, "responses": [1, 0, 0]}
      for error in (store_lib.StoreError, store_lib.Undecided):
        told = error("CONTEXT: id-of-others")
        with mock.patch.object(server.store, "find", side_effect=told):
          status, body = running.post(port, "/feedback", given)
        self.assertEqual(status, 507)
        self.assertNotIn("others", body["error"])
        self.assertIn("send it again", body["error"])
      refused = store_lib.StoreError("CONTEXT: id-of-others")
      with mock.patch.object(server.store, "touch", side_effect=refused):
        status, _, body = running.call(port, "GET", "/health")
      self.assertEqual(status, 503)
      self.assertNotIn(b"others", body)
      self.assertEqual(running.call(port, "GET", "/health")[0], 200)

  def test_a_file_that_is_gone_takes_nothing(self):
    with self._serving() as (_, _, port):
      slates = [running.ask(port, **_USER)[1] for _ in range(3)]

      def answer(number):
        name = slates[number]["request_id"]
        given = {"request_id": name, "responses": [0, 1, 0]}
        return running.post(port, "/feedback", given)[0]

      def health():
        return running.call(port, "GET", "/health")[0]

      self.assertEqual((answer(0), health()), (200, 200))
      elsewhere = self.store.with_name("elsewhere.db")
      self.store.rename(elsewhere)
      self.assertEqual((answer(1), health()), (507, 503))
      status, slate = running.ask(port, **_USER)
      self.assertEqual((status, slate["request_id"]), (200, None))
      self.store.touch()  # Another file is not the store, either.
      self.assertEqual((answer(1), health()), (507, 503))
      elsewhere.rename(self.store)
      self.assertEqual((answer(1), health()), (200, 200))
      log = self.store.with_name("store.db-wal")
      log.rename(elsewhere)
      self.assertEqual((answer(2), health()), (507, 503))
      elsewhere.rename(log)
      self.assertEqual((answer(2), health()), (200, 200))
      with contextlib.closing(sqlite3.connect(self.store)) as connection:
        query = "SELECT count(*) FROM slates WHERE responses IS NOT NULL"
        self.assertEqual(connection.execute(query).fetchone(), (3,))

  def test_a_locked_store_keeps_nothing_of_what_it_refuses(self):
    with (
      self._serving(timeout=0.5) as (_, _, port),
      concurrent.futures.ThreadPoolExecutor(4) as pool,
      contextlib.closing(
        sqlite3.connect(
          self.store, isolation_level=None, check_same_thread=False
        )
      ) as other,
    ):
      names = [running.ask(port, **_USER)[1]["request_id"] for _ in range(4)]

      def answer(name):
        given = {"request_id": name, "responses": [0, 1, 0]}
        return running.post(port, "/feedback", given)

      other.execute("BEGIN IMMEDIATE")
      refused = list(pool.map(answer, names[:3]))
      self.assertEqual({status for status, _ in refused}, {507}, refused)
      other.execute("ROLLBACK")
      self.assertEqual(answer(names[3])[0], 200)
      query = "SELECT request_id FROM slates WHERE responses IS NOT NULL"
      self.assertEqual(other.execute(query).fetchall(), [(names[3],)])

  def test_health_is_that_of_users_with_a_history_too(self):
    with self._serving() as (server, _, port):
      decode = server.recommender.decode

      def fail(queries):
        slates = decode(queries)
        for row, query in enumerate(queries):
          if query.history.any():
            slates.valid[row], slates.items[row] = False, 0
        return slates

      writable = mock.Mock(wraps=server.recommender)
      writable.configure_mock(
        batch_sizes=(4,), manifest=server.recommender.manifest, version="x"
      )
      writable.decode = fail
      server.recommender = writable
      status, _, body = running.call(port, "GET", "/health")
    self.assertEqual(status, 503, body)


class WatchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.create_tempdir().full_path)
    self.folder = root / "export"
    for salt in (1, 2):
      new = versions.next_folder(self.folder)
      toy_export.make(new, salt)
      versions.publish(new)

  def test_anything_may_stand_in_place_of_current(self):
    current, looks = self.folder / folder_lib.POINTER, []

    def looked(settings, signature=server_lib.arms_lib.signature):
      looks.append(1)
      return signature(settings)

    def after(count):
      count += len(looks)
      running.until(lambda: len(looks) > count)

    def put(make):
      if current.is_dir() and not current.is_symlink():
        current.rmdir()
      else:
        current.unlink()
      make()

    def files():
      return len(os.listdir("/proc/self/fd"))

    saved = current.read_bytes()
    recommender = serving.load(self.folder, [1])
    with (
      mock.patch.object(server_lib.arms_lib, "signature", looked),
      running.serving(recommender, folder=self.folder) as (server, _, port),
      self.assertLogs("hsrl_jax", "INFO") as logs,
    ):
      after(2)
      before, refused = files(), server.measures.swap_errors._value.get
      makes = (
        current.mkdir,
        lambda: os.mkfifo(current),
        lambda: current.symlink_to(current),
        lambda: current.symlink_to("/dev/zero"),
        lambda: current.write_bytes(b"\xff" * 99),
        lambda: current.write_text('{"version": 1e999, "before": null}'),
        lambda: current.write_text(f'{{"version": {"9" * 400}, "before": 1}}'),
        lambda: current.write_text("[" * 100_000),
      )
      for make in makes:
        told = refused()
        put(make)
        running.until(lambda told=told: refused() > told)
        after(2)
        told = refused()
        after(30)
        # It is refused once, and each look leaves nothing open.
        self.assertEqual(refused(), told)
        self.assertLess(files(), before + 10)
        given = {"history": [1], "profile": [0] * 4}
        self.assertEqual(running.ask(port, **given)[0], 200)
      put(lambda: current.write_bytes(saved))
      versions.rollback(self.folder)
      running.until(lambda: server.arms.stable.version == "1")
    lines = [x for x in logs.output if "takes over" in x]
    self.assertLen(lines, server.measures.swaps._value.get())
    self.assertIn("stable is version 1, policy ", lines[-1])


class StartTest(parameterized.TestCase):
  def test_a_port_is_one_servers(self):
    first = self.enter_context(server_lib.listen("127.0.0.1", 0))
    with self.assertRaisesRegex(InputError, "cannot be listened at"):
      server_lib.listen(*first.getsockname())

  def test_the_port_is_taken_before_anything_is_loaded(self):
    def load(settings):
      self.assertTrue(running.listens(settings.port))
      raise InputError("enough")

    with server_lib.listen("127.0.0.1", 0) as free:
      port = free.getsockname()[1]
    with mock.patch.object(server_lib.arms_lib, "load", load):
      self.assertIn("enough", self._error(f"--port={port}"))

  @parameterized.parameters(
    "--store=postgresql://ann:s3cret@127.0.0.1:1/x",
    "--store=postgresql://ann:s3cret/x@127.0.0.1:1/x",
    "--store=postgresql:/ann:s3cret@127.0.0.1:1/x",
    "--store=mysql://ann:s3cret@127.0.0.1:1/x",
    "--store=mysql://127.0.0.1/x?user=ann&password=s3cret",
    "--shop=postgresql://ann:s3cret@127.0.0.1:1/x",
    "postgresql://ann:s3cret@127.0.0.1:1/x",
  )
  def test_no_password_is_printed(self, given):
    arms = mock.Mock()
    with mock.patch.object(server_lib.arms_lib, "load", return_value=arms):
      self.assertNotIn("s3cret", self._error(given))

  @parameterized.parameters("--stor=kept.sqlite", "--retent=1", "--can=0.5")
  def test_a_flag_is_not_abbreviated(self, given):
    with mock.patch.object(server_lib.arms_lib, "load") as load:
      load.side_effect = InputError("it is taken")
      self.assertIn(f"unrecognized arguments: {given}", self._error(given))

  @parameterized.parameters(":memory:", "./:memory:")
  def test_a_store_in_memory_is_refused(self, where):
    with mock.patch.object(server_lib.arms_lib, "load"):
      self.assertIn("gone with its process", self._error(f"--store={where}"))

  def _error(self, *arguments):
    """The one line that the program ends with."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), self.assertRaises(SystemExit) as end:
      server_lib.main(["--folder=x", "--port=0", *arguments])
    self.assertEqual(end.exception.code, 2)
    self.assertLen(err.getvalue().splitlines(), 1)
    return err.getvalue()


if __name__ == "__main__":
  absltest.main()
