"""The example server on loopback: answers, limits, swaps, bad requests."""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import itertools
import json
import pathlib
import random
import shutil
import socket
import tempfile
import threading
import time

from absl.testing import absltest

from hsrl_jax import serving
from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.serving import server as server_lib
from tests import toy
from tests.benchmarks import serving_bad_requests
from tests.serving import toy_export

_PATIENCE = 120.0  # Seconds until a test gives up on the server.


@contextlib.contextmanager
def _serving(recommender, **settings):
  """Yields (Server, uvicorn's server, port) of a server in a thread."""
  server = server_lib.Server(
    recommender, server_lib.Settings(port=0, watch=0.02, **settings)
  )
  running = server_lib.make_uvicorn(server)
  thread = threading.Thread(target=running.run)
  thread.start()
  try:
    _until(lambda: running.started)
    yield server, running, running.servers[0].sockets[0].getsockname()[1]
  finally:
    running.should_exit = True
    thread.join(_PATIENCE)


def _until(holds):
  end = time.monotonic() + _PATIENCE
  while not holds():
    if time.monotonic() > end:
      raise TimeoutError
    time.sleep(0.01)


def _call(port, method, path, body=None):
  """Status, headers and body."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
  with contextlib.closing(connection):
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def _ask(port, **values):
  status, _, body = _call(port, "POST", "/recommend", json.dumps(values))
  return status, json.loads(body)


class SettingsTest(absltest.TestCase):
  def test_help_has_whole_texts(self):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), self.assertRaises(SystemExit):
      server_lib._settings(["--help"])
    shown = " ".join(out.getvalue().split())
    self.assertIn("must be there (408), and then an answer (503).", shown)
    self.assertEndsWith(shown, 'next start is quick; "": none.')


class ServerTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp()) / "export"
    cls.made = toy_export.make(cls.folder)
    cls.recommender = serving.load(cls.folder)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.folder.parent)
    super().tearDownClass()

  def test_answers_are_those_of_the_recommender(self):
    requests = toy_export.requests(40)
    want = self.recommender.recommend(*requests)
    with (
      _serving(self.recommender, folder=self.folder, linger=0.05) as (
        _,
        _,
        port,
      ),
      concurrent.futures.ThreadPoolExecutor(20) as pool,
    ):
      answers = list(
        pool.map(
          lambda x: _ask(port, history=x[0], profile=x[1], seen=x[2]),
          zip(*requests, strict=True),
        )
      )
      status, _, health = _call(port, "GET", "/health")
      metrics = _call(port, "GET", "/metrics")[2].decode()
    for row, (code, answer) in enumerate(answers):
      self.assertEqual(code, 200, answer)
      self.assertEqual(answer["items"], want.items[row].tolist())
      self.assertEqual(answer["sids"], want.sids[row].tolist())
      self.assertSequenceAlmostEqual(
        answer["log_probs"], want.log_probs[row], places=5
      )
      self.assertEqual(
        answer["titles"], [f"Título {i}" for i in answer["items"]]
      )
      self.assertEqual(answer["item_ids"], [f"id-{i}" for i in answer["items"]])
    self.assertEqual(status, 200)
    self.assertEqual(json.loads(health)["catalogue"], self.recommender.version)
    values = dict(
      line.rsplit(" ", 1)
      for line in metrics.splitlines()
      if not line.startswith("#")
    )
    self.assertEqual(float(values['hsrl_requests_total{status="200"}']), 40)
    self.assertEqual(float(values["hsrl_request_seconds_count"]), 40)
    self.assertEqual(float(values["hsrl_batch_size_sum"]), 40)
    # They were decoded together.
    self.assertLess(float(values["hsrl_batch_size_count"]), 30)
    self.assertEqual(float(values["hsrl_items"]), toy.ITEMS)

  def test_bad_requests_get_a_4xx_that_says_why(self):
    sizes = self.made.manifest.sizes
    cases = serving_bad_requests.cases(random.Random(1), sizes)
    with _serving(self.recommender, folder=self.folder, timeout=2.0) as (
      _,
      _,
      port,
    ):
      for name, raw in itertools.islice(cases, 300):
        status, body = serving_bad_requests.answer(port, raw)
        case = f"{name}: {raw[:300]} -> {status} {body}"
        self.assertBetween(status, 400, 499, case)
        if name == "line":  # Of what is no HTTP the framework says so.
          self.assertGreater(len(body), 10, case)
        else:
          self.assertGreater(len(json.loads(body)["error"]), 8, case)
        if name in ("large", "chunked"):
          self.assertEqual(status, 413, case)
      name, raw = serving_bad_requests.huge()
      status, _ = serving_bad_requests.answer(port, raw, 10_000_000)
      self.assertEqual(status, 413)
      # A body that does not come.
      raw = serving_bad_requests.post(b"{}").replace(b": 2", b": 3")
      status, body = serving_bad_requests.answer(port, raw)
      self.assertEqual(status, 408, body)
      with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(raw)  # And leaves.
      status, _ = _ask(port, history=[1], profile=[0.0] * toy.GROUPS)
      self.assertEqual(status, 200)

  def test_who_finds_the_queue_full_is_told_when_to_come_back(self):
    good = {"history": [1], "profile": [0.0] * toy.GROUPS}
    with _serving(self.recommender, folder=self.folder) as (server, _, port):
      server.settings = dataclasses.replace(server.settings, max_queue=0)
      status, headers, body = _call(
        port, "POST", "/recommend", json.dumps(good)
      )
      self.assertEqual((status, headers["retry-after"]), (503, "1"), body)
      server.settings = dataclasses.replace(server.settings, max_queue=1)
      self.assertEqual(_ask(port, **good)[0], 200)

  def test_the_folder_takes_over_and_no_request_fails(self):
    folder = pathlib.Path(self.create_tempdir().full_path) / "export"
    shutil.copytree(self.folder, folder)
    recommender = serving.load(folder)
    good = {"history": [1, 2], "profile": [0.5, 0.0, 0.0, 0.0]}
    answers, stop = [], threading.Event()
    with _serving(recommender, folder=folder) as (server, _, port):

      def ask():
        while not stop.is_set():
          answers.append(_ask(port, **good))

      threads = [threading.Thread(target=ask) for _ in range(2)]
      for thread in threads:
        thread.start()
      catalogue, gone = self.made.catalogue, []
      try:
        for _ in range(3):
          # What is best now leaves.
          gone.append(_ask(port, **good)[1]["items"][0])
          catalogue = catalogue.remove_items(gone[-1:])
          version = serving.write_catalogue(folder, catalogue)
          version = version.files["catalogue"].sha256[:12]
          _until(lambda v=version: server.recommender.version == v)
          status, answer = _ask(port, **good)
          self.assertEqual(answer["catalogue"], version)
          self.assertEmpty(set(answer["items"]) & set(gone))
        # One that is damaged does not take over.
        last = server.recommender.version
        damaged = folder_lib.File("catalogue-x.npz", "0" * 64, 1)
        (folder / damaged.name).write_bytes(b"x")
        manifest = server.recommender.manifest
        folder_lib.write_manifest(
          folder,
          dataclasses.replace(
            manifest, files=manifest.files | {"catalogue": damaged}
          ),
        )
        errors = server.measures.swap_errors._value.get
        _until(lambda: errors() > 0)
      finally:
        stop.set()
        for thread in threads:
          thread.join()
      status, answer = _ask(port, **good)
      self.assertEqual(answer["catalogue"], last)
    self.assertGreater(len(answers), 10)
    self.assertEqual({status for status, _ in answers}, {200})
    self.assertLen(gone, len(set(gone)))
    self.assertLessEqual(len(list(folder.glob("catalogue-*"))), 3)

  def test_what_has_begun_is_finished(self):
    good = {"history": [1], "profile": [0.0] * toy.GROUPS}
    with (
      _serving(self.recommender, folder=self.folder, linger=1.0) as (
        server,
        running,
        port,
      ),
      concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
      answer = pool.submit(_ask, port, **good)
      _until(lambda: server._waiting)
      running.should_exit = True
      self.assertEqual(answer.result()[0], 200)


if __name__ == "__main__":
  absltest.main()
