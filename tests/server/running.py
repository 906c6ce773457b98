"""The example server in a thread of the test, and requests to it."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time

from hsrl_jax.server import __main__ as server_lib

PATIENCE = 120.0  # Seconds until a test gives up on the server.


@contextlib.contextmanager
def serving(recommender, opened=None, token="", **settings):
  """Yields (Server, function that stops it, port) of a server in a thread."""
  server = server_lib.Server(
    recommender,
    server_lib.Settings(port=0, watch=0.02, **{"ids": "rows"} | settings),
    opened,
    token,
  )
  listening = server_lib.listen("127.0.0.1", 0)
  port = listening.getsockname()[1]
  http_server = server_lib.make_http_server(server, listening)
  loop = asyncio.new_event_loop()

  def run():
    with contextlib.closing(loop):
      loop.run_until_complete(http_server.serve())

  thread = threading.Thread(target=run)
  thread.start()

  def stop():
    if thread.is_alive():
      loop.call_soon_threadsafe(http_server.stop)

  try:
    until(lambda: listens(port))
    yield server, stop, port
  finally:
    stop()
    thread.join(PATIENCE)


@contextlib.contextmanager
def in_thread(server):
  """Lets a server of `http.server` answer in a thread, until the block ends."""
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield
  finally:
    server.shutdown()
    thread.join()


def listens(port):
  """Whether somebody answers there."""
  with contextlib.closing(socket.socket()) as connection:
    return connection.connect_ex(("127.0.0.1", port)) == 0


def until(holds):
  """Waits until a condition holds."""
  end = time.monotonic() + PATIENCE
  while not holds():
    if time.monotonic() > end:
      raise TimeoutError
    time.sleep(0.01)


def call(port, method, path, body=None, headers=None):
  """Status, headers and body."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
  with contextlib.closing(connection):
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def ask(port, **values):
  """Status and answer of a request for a slate."""
  return post(port, "/recommend", values)


def post(port, path, values, headers=None):
  """Status and answer, both JSON."""
  status, _, body = call(port, "POST", path, json.dumps(values), headers)
  return status, json.loads(body)


def metrics(port):
  """Name with labels to value."""
  text = call(port, "GET", "/metrics")[2].decode()
  lines = [x for x in text.splitlines() if not x.startswith("#")]
  return {x.rsplit(" ", 1)[0]: float(x.rsplit(" ", 1)[1]) for x in lines}
