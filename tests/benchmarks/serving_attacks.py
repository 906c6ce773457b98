"""Attacks the example server, which has 256 file descriptors, as clients might.

  python tests/benchmarks/serving_attacks.py [--only=heads,trailers]

Each attack tells what the server did: how much it read, whether and when it
closed the connection, how much memory it took; and whether it answers a good
request afterwards.
"""

import argparse
import contextlib
import json
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

FILES, HALVES, PIPELINED = 256, 400, 256
_PATIENCE = 30.0  # Seconds until an attack counts as not ended by the server.

HEAD = b"POST /recommend HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
# Name: (how the request begins, what is sent again and again).
FLOODS = {
  "trailers": (CHUNKED + b"0\r\n", b"A: b\r\n" * 10_000),
  "one trailer": (CHUNKED + b"0\r\nA: ", b"b" * 65_536),
  "chunk extension": (CHUNKED + b"1;", b"b" * 65_536),
  "chunks": (CHUNKED, b"1\r\n \r\n" * 10_000),
  "headers": (HEAD, b"A: b\r\n" * 10_000),
  "one header": (HEAD + b"A: ", b"b" * 65_536),
  "request line": (b"GET /", b"b" * 65_536),
  "body of no path": (
    b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
    b"b" * 65_536,
  ),
}
# Name: (what is sent at once, what follows every 0.1 s).
SLOW = {
  "nothing": (b"", b""),
  "half a head": (HEAD, b""),
  "a head byte by byte": (HEAD + b"A: ", b"b"),
  "half a body": (HEAD + b"Content-Length: 9\r\n\r\n", b""),
  "a body byte by byte": (CHUNKED, b"1\r\n \r\n"),
  "trailers byte by byte": (CHUNKED + b"0\r\nA: ", b"b"),
}


def flood(port: int, start: bytes, piece: bytes, most: int) -> int:
  """Sends `start`, then `piece` until the server closes.

  Args:
    port: of the server on this machine.
    start: how the request begins.
    piece: of what has no end.
    most: bytes after which we give up.

  Returns:
    Bytes that were sent; `most` or more where the server took them all.
  """
  sent = 0
  with _connect(port) as connection:
    try:
      connection.sendall(start)
      while sent < most:
        sent += connection.send(piece)
    except OSError:
      pass
  return sent


def seconds_open(port: int, start: bytes, piece: bytes, most: float) -> float:
  """Sends `start`, then `piece` every 0.1 s; returns when the server closes.

  Args:
    port: of the server on this machine.
    start: how the request begins.
    piece: what keeps it going; may be empty.
    most: seconds after which we give up, and return infinity.
  """
  begin = time.monotonic()
  with _connect(port) as connection:
    connection.settimeout(0.1)
    try:
      connection.sendall(start)
      while time.monotonic() < begin + most:
        with contextlib.suppress(TimeoutError):
          if not connection.recv(65_536):
            return time.monotonic() - begin
        connection.sendall(piece)
    except OSError:
      return time.monotonic() - begin
  return float("inf")


@contextlib.contextmanager
def half_sent(port: int, count: int, start: bytes) -> Iterator[None]:
  """Holds `count` connections on each of which a request has begun."""
  with contextlib.ExitStack() as stack:
    connections = [
      stack.enter_context(contextlib.closing(socket.socket()))
      for _ in range(count)
    ]
    for connection in connections:
      connection.setblocking(False)
      with contextlib.suppress(BlockingIOError):
        connection.connect(("127.0.0.1", port))
    time.sleep(0.5)
    for connection in connections:
      with contextlib.suppress(OSError):
        connection.send(start)
    yield


def pipelined(port: int, one: bytes, count: int) -> int:
  """Sends requests at once, of the last the first half, then its end.

  Returns:
    How many were answered with 200.
  """
  received, answered = b"", 0
  with _connect(port) as connection:

    def send():
      with contextlib.suppress(OSError):
        connection.sendall(one * (count - 1) + one[:20])
        time.sleep(0.3)
        connection.sendall(one[20:])

    sender = threading.Thread(target=send)
    sender.start()
    with contextlib.suppress(OSError):
      while answered < count and (piece := connection.recv(65_536)):
        received += piece
        answered = received.count(b"HTTP/1.1 200")
    with contextlib.suppress(OSError):
      connection.shutdown(socket.SHUT_RDWR)
    sender.join()
  return answered


def reset(port: int, raw: bytes, wait: float) -> None:
  """Sends, waits so many seconds, and resets the connection."""
  with _connect(port) as connection:
    connection.sendall(raw)
    time.sleep(wait)
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def zeros(good: bytes, count: int) -> bytes:
  """The request `good` with so many zeros before its content length."""
  name = b"Content-Length: "
  return good.replace(name, name + b"0" * count)


def _connect(port: int) -> socket.socket:
  return socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)


def attacks(port: int, pid: int, good: bytes) -> dict[str, Callable[[], str]]:
  """The attacks by name.

  Args:
    port: of the server on this machine.
    pid: of the server.
    good: a request that it answers; the connection stays.
  """
  import serving_bad_requests  # Beside this file, where it is the program.

  def flooded(start, piece):
    before = serving_bad_requests.rss(pid)
    sent = flood(port, start, piece, 100_000_000)
    more = serving_bad_requests.rss(pid) - before
    return f"{sent / 1e6:.1f} MB sent, memory {more:+.0f} MB"

  def shut_out(start):
    with half_sent(port, HALVES, start):
      begin = time.monotonic()
      try:
        status, _ = serving_bad_requests.answer(port, _closing(good))
      except OSError as error:
        status = error
      return f"another client: {status}, {time.monotonic() - begin:.1f} s"

  def resets():
    for raw in (good[:-9], good, HEAD, good * 3):
      for wait in (0, 0.001, 0.02, 0.2):
        reset(port, raw, wait)
    time.sleep(0.5)
    raw = serving_bad_requests.post(b"", "/metrics", "GET")
    text = serving_bad_requests.answer(port, raw)[1].decode()
    lines = [x for x in text.splitlines() if 'status="5' in x]
    return f"counted as errors of the server: {lines or 'none'}"

  def zeros_sent():
    statuses = {
      count: serving_bad_requests.answer(port, zeros(_closing(good), count))[0]
      for count in (5, 30, 5_000)
    }
    return f"zeros before the length: status {statuses}"

  return {
    **{
      f"flood: {name}": lambda given=given: flooded(*given)
      for name, given in FLOODS.items()
    },
    **{
      f"slow: {name}": lambda given=given: (
        f"open for {seconds_open(port, *given, _PATIENCE):.1f} s"
      )
      for name, given in SLOW.items()
    },
    f"{HALVES} heads": lambda: shut_out(HEAD),
    f"{HALVES} connections": lambda: shut_out(b""),
    f"{HALVES} bodies": lambda: shut_out(good[:-9]),
    "pipelined": lambda: (
      f"{pipelined(port, good, PIPELINED)} of {PIPELINED} answered"
    ),
    "50 kB at once": lambda: f"{pipelined(port, good, 55)} of 55 answered",
    "resets": resets,
    "zeros": zeros_sent,
  }


def _closing(raw: bytes) -> bytes:
  return raw.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n")


def main() -> None:
  """Attacks and prints."""
  import serving_bad_requests
  import serving_export

  parser = argparse.ArgumentParser()
  parser.add_argument("--only", default="")
  only = parser.parse_args().only.split(",")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "export"
    serving_export.write(folder, 10_000, (8,))
    sizes = json.loads((folder / "manifest.json").read_text())["sizes"]
    values = {"history": [1] * 200, "profile": [0.5] * sizes["profile"]}
    good = serving_bad_requests.post(json.dumps(values).encode())
    good = good.replace(b"Connection: close\r\n", b"")
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    limited = ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh"]
    with open(pathlib.Path(name) / "log", "w+") as log:
      server = subprocess.Popen(
        [*limited, sys.executable, "-m", "hsrl_jax.server"]
        + [f"--folder={folder}", f"--port={port}"],
        cwd=pathlib.Path(__file__).parents[2],
        stderr=log,
      )
      try:
        serving_bad_requests.wait(port)
        for title, attack in attacks(port, server.pid, good).items():
          if any(part in title for part in only):
            outcome = attack()
            after, _ = serving_bad_requests.answer(port, _closing(good))
            print(f"{title:28} {outcome}; afterwards {after}", flush=True)
      finally:
        server.terminate()
        print(f"{'exit status':28} {server.wait(30)}")
      log.seek(0)
      print(f"{'tracebacks':28} {log.read().count('Traceback')}")


if __name__ == "__main__":
  main()
