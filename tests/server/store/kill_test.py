"""The real server, killed under load again and again, and its collector."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time

import pyarrow.parquet
import pytest
from absl.testing import absltest

from hsrl_jax.stages import collect
from tests import toy
from tests.command import ROOT, environment, run
from tests.server import running
from tests.serving import toy_export

# HSRL_TEST_KILLS=20 for a thorough run.
KILLS, CLIENTS = int(os.environ.get("HSRL_TEST_KILLS", 4)), 8


class Client:
  """Asks and answers until the server is gone; keeps what was acknowledged."""

  def __init__(self, port, number, acknowledged):
    self.port, self.number, self.acknowledged = port, number, acknowledged

  def run(self):
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
    rng = random.Random(self.number)

    def post(path, values):
      connection.request("POST", path, json.dumps(values))
      answer = connection.getresponse()
      return answer.status, json.loads(answer.read())

    user = {"history": [], "profile": [0.0] * toy.GROUPS}
    try:
      while True:
        asked = user | {"user_id": rng.randrange(50), "session_id": "s"}
        status, slate = post("/recommend", asked)
        responses = [rng.randrange(2) for _ in slate["items"]]
        given = {"request_id": slate["request_id"], "responses": responses}
        status, outcome = post("/feedback", given)
        if status == 200 and outcome["accepted"] == len(responses):
          self.acknowledged[slate["request_id"]] = responses
    except (OSError, http.client.HTTPException, ValueError):
      connection.close()


class KillTest(absltest.TestCase):
  @pytest.mark.slow
  def test_every_acknowledged_feedback_is_in_one_file(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    toy_export.make(folder / "export")
    store, logs = folder / "store.db", folder / "logs"
    acknowledged, rng = {}, random.Random(0)
    collector = [
      *(sys.executable, "-m", "hsrl_jax.launch", "--mode=collect"),
      *(f"--from={store}", f"--workdir={logs}"),
    ]
    for kill in range(KILLS):
      with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
      server = subprocess.Popen(
        [sys.executable, "-m", "hsrl_jax.server"]
        + [f"--folder={folder}/export", f"--port={port}", f"--store={store}"]
        + [f"--cache={folder}/cache"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
      )
      running.until(lambda p=port: running.listens(p))
      before = len(acknowledged)
      with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        for number in range(CLIENTS):
          client = Client(port, kill * CLIENTS + number, acknowledged)
          pool.submit(client.run)
        running.until(lambda n=before: len(acknowledged) > n + 20)
        collecting = None
        if kill % 4 == 1:  # Collects meanwhile, and is killed too.
          collecting = subprocess.Popen(
            collector, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
          )
          running.until(
            lambda p=collecting: (
              p.poll() is not None or list(logs.rglob(".pa*"))
            )
          )
        time.sleep(rng.uniform(0, 0.5))
        server.kill()
        server.wait()
        if collecting is not None:
          collecting.kill()
          collecting.wait()
      if kill % 4 == 3:
        status, _, err = run(*collector[3:])
        self.assertEqual(status, 0, err)
    status, _, err = run(*collector[3:])
    self.assertEqual(status, 0, err)
    table = logs / f"slates_{toy.SLATE}" / collect.SESSIONS
    rows = pyarrow.parquet.read_table(table).to_pylist()
    by_id = {row["request_id"]: row["response"] for row in rows}
    self.assertLen(by_id, len(rows))
    self.assertGreater(len(acknowledged), 20 * KILLS)
    self.assertEmpty(acknowledged.keys() - by_id.keys())
    for name, responses in acknowledged.items():
      self.assertEqual(by_id[name], responses)
    # Sessions that many clients shared are still logs.
    status, _, err = run(
      *("--mode=data", "--dataset=logs", f"--workdir={folder}/run"),
      f"--raw_data_dir={table.parent}",
    )
    self.assertEqual(status, 0, err)


if __name__ == "__main__":
  absltest.main()
