"""The example server with a store: slates and feedback a second.

  taskset -c 0,1 python tests/benchmarks/serving_feedback.py [--seconds=60]
    [--store=postgresql]

10^5 items, 64 clients on loopback, each of which asks for a slate, answers all
its items, and asks again. Server and clients (one process) share the cores.
Every answer is durable: --store=PATH is an SQLite file beside the export
(--folder; on a disk, not in memory, for figures that mean something), or
--store=postgresql://USER@HOST/DATABASE, or --store=postgresql, a server that is
started for it on the same cores. Measures requests/s, latency, CPU of a slate
with its feedback (other programs change it little; that of PostgreSQL is not in
it), errors, memory, and whether the store has as many answers as were
acknowledged.

--writers=1,2 measures the store alone instead, by so many processes at a time:
each commit takes 32 slates and answers to the 32 before, of 10^5 users. --rows
are slates that are there before, of others.
"""

import argparse
import asyncio
import atexit
import json
import multiprocessing
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

from hsrl_jax.server import store as store_lib
from hsrl_jax.server.store import writer

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "server/store"))

import postgres

CLIENTS, BATCHES = serving_load.CLIENTS, serving_load.BATCHES
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


class Client(serving_load.Client):
  """Asks for a slate, answers it, and so on; keeps its connection."""

  path = FEEDBACK  # The last one: a slate is next.

  def ask(self, body: bytes) -> None:
    if self.path == RECOMMEND:
      self.path = FEEDBACK
      slate = json.loads(body)
      likes = [int(x % 3 == 0) for x in slate["items"]]
      given = {"request_id": slate["request_id"], "responses": likes}
      payload = post(f"/{FEEDBACK}", given)
      self.start = time.perf_counter()
      self.transport.write(payload)
    else:
      self.path = RECOMMEND
      super().ask(body)

  def goes_on(self, body: bytes, ok: bool, now: float) -> bool:
    ok = ok and not body.startswith(b'{"request_id":null')
    self.answers.append(Answer(self.path, now - self.start, ok))
    return ok and (now < self.end or self.path == RECOMMEND)

  def failed(self) -> Answer:
    return Answer(self.path, 0.0, False)


def post(path: str, values: dict) -> bytes:
  """A request of a connection that stays."""
  raw = serving_bad_requests.post(json.dumps(values).encode(), path)
  return raw.replace(b"Connection: close\r\n", b"")


def cpu(pid: int) -> float:
  """Seconds of CPU that a process has used."""
  stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
  return sum(map(int, stat.split()[11:13])) / os.sysconf("SC_CLK_TCK")


def slates(name: str, first: int, count: int, users: int) -> list:
  """Slates of ten items, of sessions of random users."""
  rng = np.random.default_rng([first, *name.encode()])
  texts = json.dumps([f"item-{i}" for i in range(10)]), json.dumps([0.5] * 10)
  history = json.dumps([f"item-{i}" for i in range(50)])
  rest = *texts, history, "[0.5, 1.0]", "1", "stable"
  return [
    store_lib.Slate(
      *(f"{name}-{first + i}", f"{name[:1]}{user}", "s", 0, time.time(), 10),
      *rest,
    )
    for i, user in enumerate(rng.integers(users, size=count))
  ]


def write(where: str, name: str, seconds: float, barrier, results) -> None:
  """Writes for some time; puts how long each commit took."""
  opened, times, before, first = store_lib.open_store(where), [], [], 0
  barrier.wait()
  end = time.perf_counter() + seconds
  while (start := time.perf_counter()) < end:
    shown = slates(name, first, 32, 100_000)
    first += 32
    start = time.perf_counter()
    given = [store_lib.Feedback(x.request_id, [0, 1] * 5) for x in before]
    outcomes = writer.apply(opened, [*shown, *given])
    if any(isinstance(x, Exception) for x in outcomes):
      raise ValueError(outcomes)
    times.append(time.perf_counter() - start)
    before = shown
  opened.close()
  results.put(times)


def write_together(where: str, writers: int, seconds: float, rows: int) -> dict:
  """Runs processes that write, beside what was there before."""
  context, name = multiprocessing.get_context("spawn"), time.monotonic_ns()
  barrier, results = context.Barrier(writers), context.Queue()
  processes = [
    context.Process(
      target=write, args=(where, f"w{name}-{i}", seconds, barrier, results)
    )
    for i in range(writers)
  ]
  for process in processes:
    process.start()
  times = np.concatenate([results.get() for _ in processes])
  for process in processes:
    process.join()
  return {
    "writers": writers,
    "rows_before": rows,
    "slates_with_answers_per_s": 32 * len(times) / seconds,
    "commit_p50_ms": 1e3 * float(np.median(times)),
    "commit_p99_ms": 1e3 * float(np.percentile(times, 99)),
  }


def measure_store(where: str, options: argparse.Namespace) -> None:
  """Measures the store alone, and prints."""
  opened, there = store_lib.open_store(where), 0
  for rows in map(int, options.rows.split(",")):
    while there < rows:
      count = min(10_000, rows - there)
      writer.apply(opened, slates("before", there, count, rows))
      there += count
    for writers in map(int, options.writers.split(",")):
      print(
        json.dumps(write_together(where, writers, options.seconds, rows)),
        flush=True,
      )
  opened.close()


async def run(server, port: int, payloads, seconds: float) -> dict:
  """Loads, and returns what was seen."""
  warm = await serving_load.load(port, payloads, 3.0, Client)
  memories = [round(serving_bad_requests.rss(server.pid), 1)]
  watching = asyncio.create_task(serving_load.memory(server.pid, memories))
  start, pids = time.perf_counter(), (server.pid, os.getpid())
  used = [cpu(pid) for pid in pids]
  answers = await serving_load.load(port, payloads, seconds, Client)
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
  parser.add_argument("--writers", default="")
  parser.add_argument("--rows", default="0")
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
    if where == "postgresql":
      cluster = postgres.Cluster(postgres.programs(), durable=True)
      atexit.register(cluster.remove)
      where = cluster.url("benchmark")
    if options.writers:
      measure_store(where, options)
      return
    serving_export.write(folder, options.items, BATCHES)
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    server = subprocess.Popen(
      [sys.executable, "-m", "hsrl_jax.server"]
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
