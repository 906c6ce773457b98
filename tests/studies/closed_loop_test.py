"""The closed loop: clients against a server of a few lines, and all of it."""

import contextlib
import dataclasses
import http.server
import io
import json
import pathlib
import tempfile

import numpy as np
import pyarrow.parquet
import pytest
from absl.testing import absltest

from hsrl_jax import config as config_lib
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import jobs
from hsrl_jax.studies import clients, closed_loop
from hsrl_jax.studies.registry import ClosedLoop
from tests import toy
from tests.server import running

NAMES = ["", *(f"item-{i}" for i in range(1, toy.ITEMS + 1))]


OF_REPLAY = ("batch_size", "buffer_size", "temperature")


class _Server:
  """Shows the first items that were not seen, and keeps what it is told."""

  def __init__(self, refused=""):
    self.asked, self.told = {}, {}
    self._refused = refused

  def _slate(self, value):
    items = [x for x in NAMES[1:] if x not in value["seen"]][: toy.SLATE]
    name = f"{value['session_id']}:{len(value['earlier'])}"
    self.asked[name] = value
    return {"request_id": name, "item_ids": items}

  def _keep(self, value):
    if value["request_id"] == self._refused:
      return {"status": 507, "error": "the disk is full"}
    self.told[value["request_id"]] = value
    return {"accepted": 1}

  @contextlib.contextmanager
  def running(self):
    """Yields host and port; waits for clients to leave their connections."""
    answers = {"/recommend": self._slate, "/feedback": self._keep}

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"
      timeout = 60
      disable_nagle_algorithm = True

      def do_POST(self):
        size = int(self.headers["Content-Length"])
        values = json.loads(self.rfile.read(size))
        body = json.dumps([answers[self.path](x) for x in values]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

      def log_message(self, *args):
        del args

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
      server.daemon_threads = False
      with running.in_thread(server):
        yield server.server_address


class ClientsTest(absltest.TestCase):
  def test_sessions_are_those_of_the_world(self):
    server, rows = _Server(), np.array([3, 8, 3, 13, 22])
    names = [f"user-{x}" for x in range(toy.USERS)]
    world = clients.World(toy.env(no_repeat=True), toy.users(), names, NAMES)
    with (
      server.running() as where,
      contextlib.redirect_stderr(io.StringIO()),
    ):
      rewards = clients.play(
        where, world, rows, temperature=0.7, seed=0, label="a"
      )
    self.assertEqual(server.asked.keys(), server.told.keys())
    for number, (row, reward) in enumerate(zip(rows, rewards, strict=True)):
      keys = sorted(x for x in server.told if x.startswith(f"a/{number}:"))
      told = [server.told[x] for x in keys]
      self.assertAlmostEqual(sum(x["reward"] for x in told), reward, places=5)
      ends = [x["terminated"] for x in told]
      self.assertEqual(sum(ends), ends[-1])
      shown = []
      for place, key in enumerate(keys):
        asked = server.asked[key]
        self.assertEqual(asked["user_id"], names[row])
        self.assertEqual(asked["temperature"], 0.7)
        self.assertEqual(np.argmax(asked["profile"]), row % toy.GROUPS)
        self.assertEqual(asked["seen"], sum((x["items"] for x in shown), []))
        self.assertEqual(asked["earlier"], shown)
        likes = [
          item
          for x in shown
          for item, y in zip(x["items"], x["responses"], strict=True)
          if y
        ]
        self.assertEqual(
          asked["history"][-len(likes) :] if likes else [], likes
        )
        items = NAMES[1 + place * toy.SLATE : 1 + (place + 1) * toy.SLATE]
        shown.append({"items": items, "responses": told[place]["responses"]})
        mean = np.mean([1.0 if x else -0.1 for x in shown[-1]["responses"]])
        self.assertAlmostEqual(told[place]["reward"], mean, places=5)

  def test_an_answer_that_is_an_error_ends_it(self):
    world = clients.World(toy.env(), toy.users(), ["a"] * toy.USERS, NAMES)
    with (
      _Server(refused="a/1:1").running() as where,
      contextlib.redirect_stderr(io.StringIO()),
      self.assertRaisesRegex(clients.ServerError, "refused: the disk is full"),
    ):
      clients.play(
        where, world, np.arange(3), temperature=0.7, seed=0, label="a"
      )

  def test_a_server_that_ends_is_named(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    with (
      self.assertRaisesRegex(
        clients.ServerError, r"did not start \(error: .*see .*log"
      ),
      clients.server(folder / "no", folder / "store", folder / "log"),
    ):
      pass
    self.assertIn("error: ", (folder / "log").read_text())


class ArmsTest(absltest.TestCase):
  def test_the_twin_is_there_unless_others_are_named(self):
    config = ClosedLoop
    twin = {"discount": 0.0}
    for names, want in (
      (None, {"hsrl": {}, "myopic": twin}),
      ((), {"hsrl": {}}),
      (("myopic",), {"hsrl": {}, "myopic": twin}),
    ):
      self.assertEqual(closed_loop.arms(config(variants=names)), want)
    with self.assertRaisesRegex(InputError, "has 'x'; expected some of myopic"):
      closed_loop.arms(config(variants=("x",)))


class TableTest(absltest.TestCase):
  def test_table_is_80_columns(self):
    row = {"mean": 123.456, "ci95": [-123.4, 130.1]}
    results = {
      **{"dataset": "movielens_latest_small", "rounds": 10, "sessions": 20_000},
      **{"temperature": 0.5, "in_world": row, "share": {"mean": 0.71}},
      "curves": {"hsrl": [row] * 10, "myopic": [row] * 10},
    }
    text = closed_loop.table(results)
    self.assertLessEqual(max(map(len, text.splitlines())), 80, text)
    self.assertIn("earns 71% of that", text.replace("\n", " "))
    closed_loop.figure(results)


@pytest.mark.slow
class WholeTest(absltest.TestCase):
  def test_from_popularity_to_a_policy_of_logs_alone(self):
    root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    base = toy.config(iterations=8, curve_every=8, save_every=8, seeds=(0,))
    base = dataclasses.replace(
      base,
      data=config_lib.DataConfig("toy"),
      quantizer=config_lib.QuantizerConfig(
        levels=2, vocab_size=16, topic_weight=1.0
      ),
      simulator=config_lib.SimulatorConfig(
        **{"epochs": 1, "max_steps": 3, "leave": "length"},
        **{"observed": "interactions", "protocol": "no_repeat"},
      ),
      # What a replay alone reads is not kept of a round, so it has defaults.
      train=dataclasses.replace(
        base.train,
        recipe="on_policy",
        segment=2,
        minibatches=1,
        **{x: getattr(config_lib.TrainConfig(), x) for x in OF_REPLAY},
      ),
    )
    config = ClosedLoop(rounds=3, sessions=30, variants=())
    experiment = jobs.Experiment("closed_loop", base, config, root, "")
    with (
      contextlib.redirect_stdout(io.StringIO()) as out,
      contextlib.redirect_stderr(io.StringIO()),
    ):
      closed_loop.run(experiment)
      self.assertRegex(out.getvalue(), r"hsrl/0:( \d+\.\d\d){3}\n")
      log = (root / "logs" / "hsrl_0.log").read_text()
      self.assertIn("hsrl, seed 0, round 3: ", log)
      results = json.loads((root / "results.json").read_text())
      out.truncate(0)
      closed_loop.run(experiment)  # What is there is kept.
    self.assertNotIn("hsrl/0", out.getvalue())
    # A number, as the page of results wants it.
    self.assertGreater(results["seconds"], 0.0)
    curve = results["curves"]["hsrl"]
    self.assertLen(curve, 3)
    logs = pyarrow.parquet.read_table(
      next((root / "hsrl/0/logs").glob("slates_*/sessions.parquet"))
    ).to_pandas()
    self.assertLen(set(logs["request_id"]), len(logs))
    for number, row in enumerate(curve, start=1):
      own = logs[logs["session_id"].str.startswith(f"round {number}%2F")]
      self.assertEqual(own["session_id"].nunique(), 30)
      total = own.groupby("session_id")["reward"].sum().mean()
      self.assertAlmostEqual(total, row["mean"], places=4)
    shares = np.concatenate(logs["propensity"].to_list())
    self.assertTrue(((shares > 0) & (shares <= 1)).all())


if __name__ == "__main__":
  absltest.main()
