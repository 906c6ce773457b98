"""The example server on loopback: answers, limits, swaps, bad requests."""

import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import json
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from unittest import mock

import prometheus_client as prometheus
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import serving
from hsrl_jax.server import __main__ as server_lib
from hsrl_jax.serving import folder as folder_lib
from tests import toy
from tests.benchmarks import serving_attacks, serving_bad_requests
from tests.server import running
from tests.serving import toy_export

_GOOD = {"history": [1, 2], "profile": [0.0] * toy.GROUPS}
_RAW = (  # The same; the connection stays.
  serving_bad_requests.post(json.dumps(_GOOD).encode()).replace(
    b"Connection: close\r\n", b""
  )
)


class SettingsTest(parameterized.TestCase):
  def test_help_has_whole_texts(self):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), self.assertRaises(SystemExit):
      server_lib._settings(["--help"])
    shown = " ".join(out.getvalue().split())
    self.assertIn("then a body (408), and then an answer (503).", shown)
    self.assertIn('next start is quick; "": none.', shown)

  def _status(self, *flags):
    """Exit status of the server's program; 0 where it would serve."""
    err = io.StringIO()
    with (
      contextlib.redirect_stderr(err),
      contextlib.redirect_stdout(io.StringIO()) as out,
      mock.patch.object(server_lib.arms_lib, "load") as load,
      mock.patch.object(server_lib, "Server"),
      mock.patch.object(server_lib, "make_http_server"),
      mock.patch.object(server_lib, "_run", mock.Mock()),
      mock.patch.object(server_lib.uvloop, "run"),
      mock.patch.object(server_lib, "gc"),
      mock.patch.object(server_lib.sys, "setswitchinterval"),
      mock.patch.object(server_lib.jax.config, "update"),
    ):
      said = []

      def loaded(settings):
        said.append(out.getvalue())
        if "--folder=export" not in flags:
          serving.load(settings.folder)
        return mock.DEFAULT

      load.side_effect = loaded
      try:
        server_lib.main(list(flags))
      except SystemExit as stopped:
        self.assertEqual(len(err.getvalue().splitlines()), 1, err.getvalue())
        self.assertStartsWith(err.getvalue(), "error: ")
        return stopped.code
    self.assertEmpty(err.getvalue())
    # The first line comes before anything is loaded.
    self.assertStartsWith(said[0], "loading ")
    return 0

  @parameterized.parameters(
    ("port", "0"),
    ("host", "0"),
    ("linger", "0"),
    ("max_body", ""),
    ("max_queue", ""),
    ("timeout", ""),
    ("watch", ""),
    ("canary", "0"),
    ("ids", ""),
    ("cache", "0 -1 nan inf 100000000000000000000"),
  )
  def test_values_of_flags(self, name, good):
    values = ["0", "-1", "nan", "inf", "1" + "0" * 20, "", "x"]
    if name == "port":
      values.append("99999")
    for value in values:
      works = value in good.split() or name == "cache"
      status = self._status("--folder=export", f"--{name}={value}", "--port=0")
      if name == "port":
        status = self._status("--folder=export", f"--port={value}")
      self.assertEqual(status, 0 if works else 2, (name, value))
    self.assertEqual(self._status("--folder=export", f"--{name}"), 2)

  @parameterized.parameters("0", "-1", "nan", "inf", "", "/dev/null")
  def test_folders_that_are_no_export(self, value):
    self.assertEqual(self._status(f"--folder={value}", "--port=0"), 2)

  def test_a_port_that_is_taken_is_refused(self):
    with socket.create_server(("127.0.0.1", 0)) as taken:
      port = taken.getsockname()[1]
      self.assertEqual(self._status("--folder=export", f"--port={port}"), 2)


class ServerTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp()) / "export"
    cls.exported = toy_export.make(cls.folder)
    cls.recommender = serving.load(cls.folder)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.folder.parent)
    super().tearDownClass()

  def test_answers_are_those_of_the_recommender(self):
    requests = toy_export.requests(40)
    want = self.recommender.recommend(*requests)
    with (
      running.serving(self.recommender, folder=self.folder, linger=0.05) as (
        _,
        _,
        port,
      ),
      concurrent.futures.ThreadPoolExecutor(20) as pool,
    ):
      answers = list(
        pool.map(
          lambda x: running.ask(port, history=x[0], profile=x[1], seen=x[2]),
          zip(*requests, strict=True),
        )
      )
      status, _, health = running.call(port, "GET", "/health")
      metrics = running.call(port, "GET", "/metrics")[2].decode()
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
    # And those of /health; they were decoded together.
    probes = len(self.recommender.probes())
    self.assertEqual(float(values["hsrl_batch_size_sum"]), 40 + probes)
    self.assertLess(float(values["hsrl_batch_size_count"]), 30)
    self.assertEqual(float(values["hsrl_items"]), toy.ITEMS)

  def test_bad_requests_get_a_4xx_that_says_why(self):
    sizes = self.exported.manifest.sizes
    cases = serving_bad_requests.cases(random.Random(1), sizes)
    with running.serving(self.recommender, folder=self.folder, timeout=2.0) as (
      _,
      _,
      port,
    ):
      for name, raw in itertools.islice(cases, 300):
        status, body = serving_bad_requests.answer(port, raw)
        case = f"{name}: {raw[:300]} -> {status} {body}"
        self.assertBetween(status, 400, 499, case)
        if name != "line":  # What is no HTTP gets the status alone.
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
      status, _ = running.ask(port, history=[1], profile=[0.0] * toy.GROUPS)
      self.assertEqual(status, 200)

  @parameterized.parameters(*serving_attacks.FLOODS)
  def test_what_has_no_end_is_cut_off(self, name):
    most = 20_000_000
    with running.serving(self.recommender, folder=self.folder) as (_, _, port):
      start, piece = serving_attacks.FLOODS[name]
      sent = serving_attacks.flood(port, start, piece, most)
      self.assertLess(sent, most)
      self.assertEqual(running.ask(port, **_GOOD)[0], 200)

  def test_who_is_slow_is_cut_off(self):
    with (
      running.serving(self.recommender, folder=self.folder, timeout=0.5) as (
        _,
        _,
        port,
      ),
      concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
      waits = {
        name: pool.submit(serving_attacks.seconds_open, port, *given, 10.0)
        for name, given in serving_attacks.SLOW.items()
      }
      for name, wait in waits.items():
        self.assertLess(wait.result(), 10.0, name)

  @parameterized.parameters(b"", serving_attacks.HEAD, _RAW[:-9])
  def test_half_sent_requests_shut_nobody_out(self, start):
    with (
      mock.patch.object(server_lib, "_CONNECTIONS", 4),
      running.serving(self.recommender, folder=self.folder, timeout=0.5) as (
        _,
        _,
        port,
      ),
      serving_attacks.half_sent(port, 10, start),
    ):
      self.assertEqual(running.ask(port, **_GOOD)[0], 200)

  def test_many_requests_in_one_segment_are_all_answered(self):
    with running.serving(self.recommender, folder=self.folder) as (_, _, port):
      self.assertEqual(serving_attacks.pipelined(port, _RAW, 256), 256)
      values = _GOOD | {"history": [1] * 400}  # 55 of them are 50 kB.
      raw = serving_bad_requests.post(json.dumps(values).encode())
      raw = raw.replace(b"Connection: close\r\n", b"")
      self.assertEqual(serving_attacks.pipelined(port, raw, 55), 55)

  def test_a_reset_is_no_error_of_the_server(self):
    with (
      running.serving(self.recommender, folder=self.folder) as (
        server,
        _,
        port,
      ),
      self.assertNoLogs(level="WARNING"),
    ):
      for raw in (_RAW[:-9], _RAW, serving_attacks.HEAD, _RAW * 3):
        for wait in (0.0, 0.001, 0.02):
          serving_attacks.reset(port, raw, wait)
      self.assertEqual(running.ask(port, **_GOOD)[0], 200)
      text = prometheus.generate_latest(server.measures.registry).decode()
    self.assertNotIn('status="5', text)

  def test_zeros_before_the_content_length_do_no_harm(self):
    raw = serving_bad_requests.post(json.dumps(_GOOD).encode())
    with running.serving(self.recommender, folder=self.folder) as (_, _, port):
      for zeros in (1, 30, 5_000):
        many = serving_attacks.zeros(raw, zeros)
        status, body = serving_bad_requests.answer(port, many)
        self.assertIn(status, (200, 400), body)

  def test_health_fails_where_answers_fail(self):
    with running.serving(self.recommender, folder=self.folder) as (
      server,
      _,
      port,
    ):
      failing = mock.Mock(wraps=self.recommender)
      failing.configure_mock(
        batch_sizes=(4,), manifest=self.exported.manifest, version="x"
      )
      failing.decode.side_effect = RuntimeError("no device")
      server.recommender = failing
      self.assertEqual(running.ask(port, **_GOOD)[0], 500)
      status, _, body = running.call(port, "GET", "/health")
      self.assertEqual(status, 503)
      self.assertIn("no device", json.loads(body)["error"])
      server.recommender = self.recommender
      self.assertEqual(running.call(port, "GET", "/health")[0], 200)

  def test_who_finds_the_queue_full_is_told_when_to_come_back(self):
    good = {"history": [1], "profile": [0.0] * toy.GROUPS}
    with running.serving(self.recommender, folder=self.folder) as (
      server,
      _,
      port,
    ):
      server.settings = dataclasses.replace(server.settings, max_queue=0)
      status, headers, body = running.call(
        port, "POST", "/recommend", json.dumps(good)
      )
      self.assertEqual((status, headers["retry-after"]), (503, "1"), body)
      server.settings = dataclasses.replace(server.settings, max_queue=1)
      self.assertEqual(running.ask(port, **good)[0], 200)

  def test_the_folder_takes_over_and_no_request_fails(self):
    folder = pathlib.Path(self.create_tempdir().full_path) / "export"
    shutil.copytree(self.folder, folder)
    recommender = serving.load(folder)
    good = {"history": [1, 2], "profile": [0.5, 0.0, 0.0, 0.0]}
    answers, stop = [], threading.Event()
    with running.serving(recommender, folder=folder) as (server, _, port):

      def ask():
        while not stop.is_set():
          answers.append(running.ask(port, **good))

      threads = [threading.Thread(target=ask) for _ in range(2)]
      for thread in threads:
        thread.start()
      catalogue, gone = self.exported.catalogue, []
      try:
        for _ in range(3):
          # What is best now leaves.
          gone.append(running.ask(port, **good)[1]["items"][0])
          catalogue = catalogue.remove_items(gone[-1:])
          version = serving.write_catalogue(folder, catalogue)
          version = version.files["catalogue"].sha256[:12]
          running.until(lambda v=version: server.recommender.version == v)
          status, answer = running.ask(port, **good)
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
        running.until(lambda: errors() > 0)
      finally:
        stop.set()
        for thread in threads:
          thread.join()
      status, answer = running.ask(port, **good)
      self.assertEqual(answer["catalogue"], last)
    self.assertGreater(len(answers), 10)
    self.assertEqual({status for status, _ in answers}, {200})
    self.assertLen(gone, len(set(gone)))
    self.assertLessEqual(len(list(folder.glob("catalogue-*"))), 3)

  def test_what_has_begun_is_finished(self):
    good = {"history": [1], "profile": [0.0] * toy.GROUPS}
    with (
      running.serving(self.recommender, folder=self.folder, linger=1.0) as (
        server,
        stop,
        port,
      ),
      concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
      answer = pool.submit(running.ask, port, **good)
      running.until(lambda: server._waiting)
      stop()
      self.assertEqual(answer.result()[0], 200)

  @pytest.mark.slow
  def test_a_process_with_256_files_stays_and_keeps_its_memory(self):
    ran = subprocess.run(
      [sys.executable, serving_attacks.__file__, "--only=400,trailer,resets"],
      capture_output=True,
      text=True,
      check=True,
    )
    lines = dict(
      re.split("  +", x, maxsplit=1) for x in ran.stdout.splitlines()[2:]
    )
    for name in ("400 heads", "400 connections", "400 bodies"):
      self.assertStartsWith(lines[name], "another client: 200")
    for name in ("flood: trailers", "flood: one trailer"):
      memory = int(re.search(r"memory ([+-]\d+) MB", lines[name])[1])
      self.assertLess(memory, 50)
    self.assertIn("none", lines["resets"])
    self.assertEqual(lines["tracebacks"], "0")
    self.assertEqual(lines["exit status"], "0")


if __name__ == "__main__":
  absltest.main()
