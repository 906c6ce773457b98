"""Sends 10,000 generated bad requests: each gets a 4xx that says why.

  python tests/benchmarks/serving_bad_requests.py [--requests=10000]

Beside it: how the server's memory grows, and whether it answers afterwards.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

HUGE = 100_000_000  # Bytes of the largest bodies.
_EACH = 2_000  # Requests between two such.

Case = tuple[str, bytes]  # What is wrong, and the raw request without its end.


def post(body: bytes, path: str = "/recommend", method: str = "POST") -> bytes:
  """A raw request."""
  head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
  return head.encode() + b"\r\nConnection: close\r\n\r\n" + body


def cases(rng: random.Random, sizes: dict[str, int]) -> Iterator[Case]:
  """Bad requests without end, each of another kind than the one before.

  Args:
    rng: draws them.
    sizes: of the export's manifest.
  """
  capacity = sizes["capacity"]

  def good() -> dict:
    return {
      "history": [1] * rng.randrange(sizes["history"]),
      "profile": [rng.gauss(0, 1) for _ in range(sizes["profile"])],
      "seen": [1] * rng.randrange(sizes["seen"]),
    }

  def put(name: str, value) -> bytes:
    return post(json.dumps(good() | {name: value}).encode())

  def truncated() -> bytes:
    text = json.dumps(good()).encode()
    return post(text[: rng.randrange(len(text))])

  def noise() -> bytes:
    return post(b"\xff" + rng.randbytes(rng.randrange(2_000)))

  def literal() -> bytes:
    text = json.dumps(good() | {"profile": "@"})
    value = rng.choice(["NaN", "Infinity", "-Infinity", "nan", "1e999", "01"])
    return post(text.replace('"@"', f"[{value}]").encode())

  def odd_value():
    return rng.choice(
      ["1", "", None, True, False, [], [1], {}, 1.5, -0.5, "\x00", 2**63]
    )

  def odd_id():
    return rng.choice(
      [-1, -(2**31), capacity + 1, 2**31, 2**62, odd_value(), 1e300]
    )

  def ids(name: str) -> bytes:
    row = [1] * rng.randrange(min(sizes["history"], sizes["seen"] or 1))
    row.insert(rng.randrange(len(row) + 1), odd_id())
    return put(name, row)

  def profile() -> bytes:
    row = good()["profile"]
    if row and rng.random() < 0.7:
      bad = rng.choice(["1", None, True, [], {}, 1e39, -1e300])
      row[rng.randrange(len(row))] = bad
    else:
      row = row + [0.0] * rng.randrange(1, 50)
    return put("profile", row)

  def no_list() -> bytes:
    value = rng.choice([1, "abc", None, True, {"a": 1}, 2.5])
    return put(rng.choice(["history", "profile", "seen"]), value)

  def no_object() -> bytes:
    value = rng.choice([[], 3, "history", None, True])
    return post(json.dumps(value).encode())

  def no_history() -> bytes:
    return post(json.dumps({"profile": good()["profile"]}).encode())

  def deep() -> bytes:
    depth = rng.randrange(1, 20_000)
    return post(b'{"history": ' + b"[" * depth + b"]" * depth + b"}")

  def large() -> bytes:
    return post(b" " * rng.randrange(70_000, 1_000_000))

  def chunked() -> bytes:
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    piece = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + piece * 5

  def line() -> bytes:
    return rng.choice(
      [
        b"\x16\x03\x01 hello\r\n\r\n",
        b"POST\r\n\r\n",
        b"POST /recommend HTTP/9.9\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nA: " + b"b" * 100_000,
        b"GET /" + b"a" * 100_000,
      ]
    )

  def method() -> bytes:
    name = rng.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
    return post(b"", method=name)

  def path() -> bytes:
    place = rng.choice(
      ["/..", "/recommend/", "/recommen", "/recommend/1", "/a%00b", "/../x"]
    )
    return post(json.dumps(good()).encode(), place)

  makers: list[tuple[str, Callable[[], bytes]]] = [
    ("truncated", truncated),
    ("noise", noise),
    ("literal", literal),
    ("history", lambda: ids("history")),
    ("seen", lambda: ids("seen")),
    ("too many seen", lambda: put("seen", [1] * (sizes["seen"] + 1))),
    ("profile", profile),
    ("no list", no_list),
    ("no object", no_object),
    ("no history", no_history),
    ("field", lambda: put(rng.choice(["", "user", "History"]), [])),
    ("deep", deep),
    ("large", large),
    ("chunked", chunked),
    ("line", line),
    ("method", method),
    ("path", path),
  ]
  while True:
    for name, make in makers:
      yield name, make()


def answer(port: int, raw: bytes, more: int = 0) -> tuple[int, bytes]:
  """Status and body that a raw request gets; status 0 where there is none.

  Args:
    port: of the server on this machine.
    raw: the request.
    more: bytes of blanks that follow it.
  """
  with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
    try:
      connection.sendall(raw)
      while more > 0:
        more -= connection.send(b" " * min(more, 2**16))
    except OSError:
      pass  # It may answer and close before it has read everything.
    received = b""
    try:
      while piece := connection.recv(2**16):
        received += piece
    except ConnectionResetError:
      pass
  head, _, body = received.partition(b"\r\n\r\n")
  status = head.split(b" ")[1:2]
  return (int(status[0]) if status else 0), body


def huge() -> Case:
  """A body of HUGE bytes; they are to follow."""
  head = f"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: {HUGE}\r\n"
  return "huge", head.encode() + b"Connection: close\r\n\r\n"


def rss(pid: int) -> float:
  """Resident memory of a process, MB."""
  text = pathlib.Path(f"/proc/{pid}/statm").read_text()
  return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
  """Measures and prints."""
  import serving_export

  parser = argparse.ArgumentParser()
  parser.add_argument("--requests", type=int, default=10_000)
  count = parser.parse_args().requests
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "export"
    serving_export.write(folder, 10_000, (8,))
    manifest = json.loads((folder / "manifest.json").read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    server = subprocess.Popen(
      [sys.executable, "-m", "hsrl_jax.server"]
      + [f"--folder={folder}", f"--port={port}"],
      cwd=pathlib.Path(__file__).parents[2],
      stderr=subprocess.DEVNULL,
    )
    try:
      result = _send(server, port, manifest["sizes"], count)
    finally:
      server.terminate()
      code = server.wait(20)
  result["exit_status"] = code
  for name, value in result.items():
    print(f"{name:28} {value}")
  print(json.dumps(result))


def _send(server, port: int, sizes: dict[str, int], count: int) -> dict:
  good = {"history": [1, 2, 3], "profile": [0.0] * sizes["profile"]}
  good = post(json.dumps(good).encode())
  wait(port)
  bad = cases(random.Random(0), sizes)
  statuses, wrong, memory = collections.Counter(), [], []
  start = time.monotonic()
  for number in range(count):
    name, raw = huge() if number % _EACH == _EACH - 1 else next(bad)
    status, body = answer(port, raw, HUGE if name == "huge" else 0)
    statuses[status] += 1
    # What is no HTTP gets the status alone.
    if not 400 <= status < 500 or (name != "line" and len(body) < 10):
      wrong.append((name, status, raw[:200], body[:200]))
    if number % 1_000 == 999:
      memory.append(round(rss(server.pid), 1))
  for case in wrong[:10]:
    print("wrong:", *case)
  return {
    "requests": count,
    "seconds": round(time.monotonic() - start, 1),
    "wrong": len(wrong),
    "statuses": {str(k): v for k, v in sorted(statuses.items())},
    "rss_mb": memory,
    "good_afterwards": answer(port, good)[0],
    "alive": server.poll() is None,
  }


def wait(port: int) -> None:
  """Waits until the server answers."""
  for _ in range(3_000):
    try:
      if answer(port, post(b"", "/health", "GET"))[0] == 200:
        return
    except OSError:
      pass
    time.sleep(0.1)
  raise TimeoutError("the server does not answer")


if __name__ == "__main__":
  main()
