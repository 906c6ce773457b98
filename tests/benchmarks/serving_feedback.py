"""The example server with a store: slates and feedback a second.

  taskset -c 0,1 python tests/benchmarks/serving_feedback.py [--seconds=60]

10^5 items, 64 clients on loopback, each of which asks for a slate, answers all
its items, and asks again. Server and clients (one process) share the cores.
Every answer is durable: --store=PATH is an SQLite file beside the export
(--folder; on a disk, not in memory, for figures that mean something), or
--store=postgresql://... Measures requests/s, latency, CPU of a slate with its
feedback (other programs change it little), errors, memory, and whether the
store has as many answers as were acknowledged.
"""

import argparse
import asyncio
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
import serving_bad_requests
import serving_export
import serving_load

from hsrl_jax.serving import store as store_lib

CLIENTS, BATCHES = 64, (8, 32)
RECOMMEND, FEEDBACK = "recommend", "feedback"


class Answer(NamedTuple):
  """An answer.

  Attributes:
    path: that was asked.
    seconds: until it came.
    ok: whether it is a 200.
  """

  path: str
  seconds: float
  ok: bool


class Client(asyncio.Protocol):
  """Asks for a slate, answers it, and so on; keeps its connection."""

  def __init__(self, payloads: list[bytes], first: int, answers, end: float):
    """Asks for the payloads by turns, from `first`, until `end`."""
    self.payloads, self.turn, self.end = payloads, first, end
    self.answers, self.received, self.length = answers, b"", None
    self.path = FEEDBACK  # The last one: a slate is next.
    self.done = asyncio.get_running_loop().create_future()

  def connection_made(self, transport: asyncio.Transport) -> None:
    self.transport = transport
    self.ask(b"")

  def ask(self, body: bytes) -> None:
    if self.path == FEEDBACK:
      self.path = RECOMMEND
      self.turn = (self.turn + 1) % len(self.payloads)
      payload = self.payloads[self.turn]
    else:
      self.path = FEEDBACK
      slate = json.loads(body)
      likes = [int(x % 3 == 0) for x in slate["items"]]
      given = {"request_id": slate["request_id"], "responses": likes}
      payload = post(f"/{FEEDBACK}", given)
    self.start = time.perf_counter()
    self.transport.write(payload)

  def data_received(self, data: bytes) -> None:
    self.received += data
    if self.length is None:
      head = self.received.find(b"\r\n\r\n")
      if head < 0:
        return
      lower = self.received[:head].lower()
      size = lower.split(b"content-length: ")[1].split(b"\r\n")[0]
      self.head, self.length = head + 4, head + 4 + int(size)
    if len(self.received) < self.length:
      return
    now = time.perf_counter()
    body = self.received[self.head : self.length]
    ok = self.received.startswith(b"HTTP/1.1 200")
    ok = ok and not body.startswith(b'{"request_id":null')
    self.answers.append(Answer(self.path, now - self.start, ok))
    self.received, self.length = b"", None
    if ok and (now < self.end or self.path == RECOMMEND):
      self.ask(body)
    else:
      self.done.set_result(None)
      self.transport.close()

  def connection_lost(self, error: Exception | None) -> None:
    if not self.done.done():
      self.answers.append(Answer(self.path, 0.0, False))
      self.done.set_result(None)


def post(path: str, values: dict) -> bytes:
  """A request of a connection that stays."""
  raw = serving_bad_requests.post(json.dumps(values).encode(), path)
  return raw.replace(b"Connection: close\r\n", b"")


async def load(port: int, payloads: list[bytes], seconds: float) -> list:
  """All answers."""
  answers, loop = [], asyncio.get_running_loop()
  end = time.perf_counter() + seconds
  clients = [
    (
      await loop.create_connection(
        lambda i=i: Client(payloads, 31 * i, answers, end), "127.0.0.1", port
      )
    )[1]
    for i in range(CLIENTS)
  ]
  await asyncio.gather(*(client.done for client in clients))
  return answers


def cpu(pid: int) -> float:
  """Seconds of CPU that a process has used."""
  stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
  return sum(map(int, stat.split()[11:13])) / os.sysconf("SC_CLK_TCK")


async def run(server, port: int, payloads, seconds: float) -> dict:
  """Loads, and returns what was seen."""
  warm = await load(port, payloads, 3.0)
  memories = [round(serving_bad_requests.rss(server.pid), 1)]
  watching = asyncio.create_task(serving_load.memory(server.pid, memories))
  start, pids = time.perf_counter(), (server.pid, os.getpid())
  used = [cpu(pid) for pid in pids]
  answers = await load(port, payloads, seconds)
  used = [cpu(pid) - x for pid, x in zip(pids, used, strict=True)]
  took = time.perf_counter() - start
  watching.cancel()
  half = len(memories) // 2
  result = {"clients": CLIENTS, "seconds": took}
  for path in (RECOMMEND, FEEDBACK):
    own = [x for x in answers if x.path == path]
    times = 1e3 * np.array([x.seconds for x in own if x.ok])
    result |= {
      f"{path}_per_s": len(own) / took,
      f"{path}_p50_ms": float(np.median(times)),
      f"{path}_p99_ms": float(np.percentile(times, 99)),
    }
  pairs = len(answers) / 2
  return result | {
    "server_cpu_ms_a_pair": 1e3 * used[0] / pairs,
    "clients_cpu_ms_a_pair": 1e3 * used[1] / pairs,
    "errors": sum(not x.ok for x in answers),
    "acknowledged": sum(x.ok and x.path == FEEDBACK for x in warm + answers),
    "rss_start_mb": memories[0],
    "rss_half_mb": max(memories[1:half]),
    "rss_end_mb": max(memories[half:]),
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--items", type=int, default=100_000)
  parser.add_argument("--users", type=int, default=100_000)
  parser.add_argument("--seconds", type=float, default=60.0)
  parser.add_argument("--folder", type=pathlib.Path)
  parser.add_argument("--store")
  options = parser.parse_args()
  rng = np.random.default_rng(0)
  payloads = []
  for _ in range(2_000):
    values = serving_export.request(rng, options.items)
    values |= {"user_id": int(rng.integers(options.users))}
    payloads.append(post("/recommend", values | {"session_id": "s"}))
  result = {"items": options.items, "cores": len(os.sched_getaffinity(0))}
  with tempfile.TemporaryDirectory(dir=options.folder) as name:
    folder = pathlib.Path(name) / "export"
    where = options.store or str(pathlib.Path(name) / "store.db")
    serving_export.write(folder, options.items, BATCHES)
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    server = subprocess.Popen(
      [sys.executable, "-m", "hsrl_jax.serving.server"]
      + [f"--folder={folder}", f"--port={port}", f"--store={where}"],
      cwd=pathlib.Path(__file__).parents[2],
    )
    try:
      serving_bad_requests.wait(port)
      result |= asyncio.run(run(server, port, payloads, options.seconds))
      for name in ("batch", "commit"):
        total, count = (
          serving_load.metric(port, f"hsrl_{name}_size_{x}")
          for x in ("sum", "count")
        )
        result[f"mean_{name}"] = total / count
    finally:
      server.terminate()
      result["exit_status"] = server.wait(30)
    opened = store_lib.open_store(where)
    closed = 0
    while count := opened.close_done(0.0, 10_000):
      closed += count
    opened.close()
    result["kept"] = closed
    if not options.store:
      result["store_mb"] = pathlib.Path(where).stat().st_size / 1e6
  result = {k: round(v, 2) for k, v in result.items()}
  for key, value in result.items():
    print(f"{key:28} {value}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
