"""The example server under load, while its catalogue changes.

  taskset -c 0,1 python tests/benchmarks/serving_load.py [--seconds=60]

10^5 items, 64 clients on loopback, each of which sends its next request as soon
as it has an answer. Server, clients (one process) and the writer of catalogues
share the cores. In equal steps the catalogue changes ten times: 1,000 items
leave, or come back. Measures requests/s, latency, errors, the server's memory,
and whether each catalogue took over.
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

import numpy as np
import serving_bad_requests
import serving_export

from hsrl_jax import serving
from hsrl_jax.serving import folder as folder_lib

CLIENTS, SWAPS, LEAVE, BATCHES = 64, 10, 1_000, (8, 32)


class Client(asyncio.Protocol):
  """One client that keeps its connection; times in seconds."""

  def __init__(
    self, payloads: list[bytes], first: int, answers: list, end: float
  ):
    """Asks for the payloads by turns, from `first`, until `end`."""
    self.payloads, self.turn, self.end = payloads, first, end
    self.answers, self.received, self.length = answers, b"", None
    self.done = asyncio.get_running_loop().create_future()

  def connection_made(self, transport: asyncio.Transport) -> None:
    self.transport = transport
    self.ask(b"")

  def ask(self, body: bytes) -> None:
    """Sends the next request, after an answer with this body."""
    del body
    self.turn = (self.turn + 1) % len(self.payloads)
    self.start = time.perf_counter()
    self.transport.write(self.payloads[self.turn])

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
    self.received, self.length = b"", None
    if self.goes_on(body, ok, now):
      self.ask(body)
    else:
      self.done.set_result(None)
      self.transport.close()

  def goes_on(self, body: bytes, ok: bool, now: float) -> bool:
    """Keeps an answer; whether another request follows."""
    del body
    self.answers.append((now - self.start, ok))
    return now < self.end

  def failed(self):
    """The answer that a lost connection counts as."""
    return 0.0, False

  def connection_lost(self, error: Exception | None) -> None:
    if not self.done.done():
      self.answers.append(self.failed())
      self.done.set_result(None)


async def load(
  port: int, payloads: list[bytes], seconds: float, client: type = Client
) -> list:
  """What clients keep; of Client (seconds, whether it was a 200) a request."""
  answers, loop = [], asyncio.get_running_loop()
  end = time.perf_counter() + seconds
  clients = [
    (
      await loop.create_connection(
        lambda i=i: client(payloads, 31 * i, answers, end), "127.0.0.1", port
      )
    )[1]
    for i in range(CLIENTS)
  ]
  await asyncio.gather(*(client.done for client in clients))
  return answers


async def memory(pid: int, sizes: list[float]) -> None:
  """Appends the memory of a process, MB, once a second."""
  while True:
    await asyncio.sleep(1.0)
    sizes.append(round(serving_bad_requests.rss(pid), 1))


def change(folder: pathlib.Path, seconds: float) -> None:
  """Changes the catalogue SWAPS times, from when a line comes in."""
  manifest = folder_lib.read_manifest(folder)
  whole = folder_lib.read_catalogue(folder, manifest)
  print("ready", flush=True)
  sys.stdin.readline()
  start = time.monotonic()
  for swap in range(SWAPS):
    gone = np.arange(1 + swap * LEAVE, 1 + (swap + 1) * LEAVE)
    changed = whole if swap % 2 else whole.remove_items(gone)
    time.sleep(
      max(0, start + (swap + 0.5) * seconds / SWAPS - time.monotonic())
    )
    serving.write_catalogue(folder, changed)


async def run(server, port: int, writer, payloads, seconds: float) -> dict:
  """Loads, and returns what was seen."""
  await load(port, payloads, 3.0)  # Warm-up.
  memories = [round(serving_bad_requests.rss(server.pid), 1)]
  watching = asyncio.create_task(memory(server.pid, memories))
  writer.stdin.write("go\n")
  writer.stdin.flush()
  start = time.perf_counter()
  answers = await load(port, payloads, seconds)
  took = time.perf_counter() - start
  watching.cancel()
  milliseconds = 1e3 * np.array([x for x, ok in answers if ok])
  half = len(memories) // 2
  return {
    "clients": CLIENTS,
    "seconds": took,
    "requests": len(answers),
    "requests_per_s": len(answers) / took,
    "errors": sum(not ok for _, ok in answers),
    "p50_ms": float(np.median(milliseconds)),
    "p99_ms": float(np.percentile(milliseconds, 99)),
    "max_ms": float(milliseconds.max()),
    "rss_start_mb": memories[0],
    "rss_half_mb": max(memories[1:half]),
    "rss_end_mb": max(memories[half:]),
  }


def metric(port: int, name: str) -> float:
  """A value of /metrics."""
  raw = serving_bad_requests.post(b"", "/metrics", "GET")
  text = serving_bad_requests.answer(port, raw)[1].decode()
  lines = [x for x in text.splitlines() if x.startswith(name + " ")]
  return float(lines[0].split()[1])


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--items", type=int, default=100_000)
  parser.add_argument("--seconds", type=float, default=60.0)
  parser.add_argument("--change", type=pathlib.Path)
  options = parser.parse_args()
  if options.change:
    return change(options.change, options.seconds)
  rng = np.random.default_rng(0)
  payloads = [
    serving_bad_requests.post(
      json.dumps(serving_export.request(rng, options.items)).encode()
    ).replace(b"Connection: close\r\n", b"")
    for _ in range(500)
  ]
  result = {"items": options.items, "cores": len(os.sched_getaffinity(0))}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "export"
    serving_export.write(folder, options.items, BATCHES)
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    root = pathlib.Path(__file__).parents[2]
    start = time.monotonic()
    server = subprocess.Popen(
      [sys.executable, "-m", "hsrl_jax.server"]
      + [f"--folder={folder}", f"--port={port}"],
      cwd=root,
    )
    writer = None
    try:
      serving_bad_requests.wait(port)
      result["start_s"] = time.monotonic() - start
      writer = subprocess.Popen(
        [sys.executable, __file__]
        + [f"--change={folder}", f"--seconds={options.seconds}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
      )
      writer.stdout.readline()
      result |= asyncio.run(
        run(server, port, writer, payloads, options.seconds)
      )
      time.sleep(2)
      result["swaps"] = metric(port, "hsrl_swaps_total")
      result["swap_errors"] = metric(port, "hsrl_swap_errors_total")
      result["mean_batch"] = metric(port, "hsrl_batch_size_sum") / metric(
        port, "hsrl_batch_size_count"
      )
    finally:
      server.terminate()
      result["exit_status"] = server.wait(30)
      if writer:
        writer.kill()
  result = {k: round(v, 2) for k, v in result.items()}
  for key, value in result.items():
    print(f"{key:28} {value}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
