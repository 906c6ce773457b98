"""An example server for an export, by Starlette and granian (extra `serve`).

  python -m hsrl_jax.server --folder=runs/quickstart/export --port=8000

  POST /recommend   {"history": ["i12", "i7"], "profile": [...], "seen": ["i3"]}
  POST /feedback    {"request_id": "...", "responses": [0, 1, ...]}
  GET  /health      whether requests are answered, and what is served
  GET  /metrics     for Prometheus

Requests that arrive together are decoded together, in a thread of its own. A
catalogue or parameters that appear in the folder (serving.write_catalogue) are
checked and take over between two batches. One process, no TLS, no
authentication but for POST /admin/rollback and /admin/promote, whose token is
in the environment, HSRL_ADMIN_TOKEN: put a proxy before it.

granian bounds what a connection may hold: head, trailers, time to send a head,
time without a request. `http` bounds bodies and the time to answer.
"""

import argparse
import asyncio
import dataclasses
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from typing import NoReturn

import jax
import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.net import SocketHolder
from granian.server import embed

from hsrl_jax import docstrings, errors
from hsrl_jax.errors import InputError
from hsrl_jax.server import arms as arms_lib
from hsrl_jax.server.application import make_app
from hsrl_jax.server.batches import Server
from hsrl_jax.server.settings import IDS, Settings
from hsrl_jax.server.store.database import Store, StoreError, open_store

_HEAD = 32_768  # Bytes of a request's line and headers, at most.
_HEAD_SECONDS = 60.0  # To send them, at most: granian takes no more.
_CONNECTIONS = 1_024  # At a time; more wait until one is closed.
_BACKLOG = 1_024  # Of those that wait.
_OTHER_FILES = 64  # File descriptors that are left for anything else.
_SWITCH = 5e-4  # Seconds after which Python's threads take turns.
# Least and largest value of a flag.
_RANGES = {
  "port": (0, 65_535),
  "linger": (0, 60),
  "max_body": (1, 2**30),
  "max_queue": (1, 10**6),
  "timeout": (0.001, 3_600),
  "watch": (0.001, 86_400),
  "retention": (0, 36_500),
  "canary": (0, 1),
}
_TOKEN = "HSRL_ADMIN_TOKEN"


def listen(host: str, port: int) -> socket.socket:
  """Returns a socket that listens, whose port nobody else can have.

  Clients who come before requests are answered wait.

  Args:
    host: name or address of this machine.
    port: 0 for any that is free.

  Raises:
    InputError: the address is not of this machine, or the port is taken.
  """
  try:
    if not host:
      raise OSError("no host")
    family, *_, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM
    )[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
  except (OSError, UnicodeError) as error:
    raise InputError(
      f"--host={host} --port={port} cannot be listened at ({error}); expected "
      "an address of this machine and a free port"
    ) from error


class _HttpServer(embed.Server):
  """Listens at a socket that is there, where granian would share its port."""

  def __init__(self, application, listening: socket.socket, **settings):
    super().__init__(application, *listening.getsockname()[:2], **settings)
    self._listening = listening

  def _init_shared_socket(self) -> None:
    number = self._listening.detach()
    self._ssp, self._shd = None, SocketHolder(number, False, _BACKLOG)


def make_http_server(server: Server, listening: socket.socket) -> embed.Server:
  """Returns the HTTP server to run; `stop` lets it finish what it has begun.

  Args:
    server: answers.
    listening: of `listen`, which it takes over.
  """
  files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  connections = _CONNECTIONS
  if files != resource.RLIM_INFINITY:
    connections = max(1, min(connections, files - _OTHER_FILES))
  seconds = min(server.settings.timeout, _HEAD_SECONDS)
  return _HttpServer(
    make_app(server),
    listening,
    interface=Interfaces.ASGI,
    http=HTTPModes.http1,
    websockets=False,
    backlog=_BACKLOG,
    backpressure=connections,
    http1_settings=HTTP1Settings(
      header_read_timeout=max(1, round(1e3 * seconds)),
      max_buffer_size=_HEAD,
    ),
    log_level=LogLevels.error,
    # Logs as the program does: no handlers of granian's own.
    log_dictconfig={"incremental": True, "handlers": {}, "loggers": {}},
  )


async def _run(http_server: embed.Server) -> None:
  """Serves until SIGTERM or SIGINT; exits with 1 if the server ends alone."""
  stopped = asyncio.Event()

  def stop():
    stopped.set()
    http_server.stop()

  loop = asyncio.get_running_loop()
  for number in (signal.SIGTERM, signal.SIGINT):
    loop.add_signal_handler(number, stop)
  await http_server.serve()
  if not stopped.is_set():
    sys.exit(1)


class _Parser(argparse.ArgumentParser):
  """Reports a bad flag in one line."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f"{errors.line(message)}\n")


def _settings(arguments: list[str]) -> Settings:
  """Returns the settings of a command line; exits with 2 if a flag is bad."""
  parser = _Parser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,  # Else a new flag could change what an old line means.
  )
  for field in dataclasses.fields(Settings):
    required = field.default is dataclasses.MISSING
    parser.add_argument(
      f"--{field.name}",
      type=field.type,
      required=required,
      default=None if required else field.default,
      help=docstrings.attribute(Settings, field.name),
    )
  settings = Settings(**vars(parser.parse_args(arguments)))
  for name, (least, largest) in _RANGES.items():
    value = getattr(settings, name)
    if not least <= value <= largest:  # NaN is not, either.
      parser.error(
        f"--{name}={value}; expected a value from {least} to {largest}"
      )
  if settings.ids not in IDS:
    parser.error(f"--ids={settings.ids}; expected {' or '.join(IDS)}")
  return settings


def _opened(settings: Settings, arms: arms_lib.Arms) -> Store | None:
  """Returns the store, which knows what it is of."""
  if not settings.store:
    return None
  store = open_store(settings.store)
  profile = arms.stable.recommender.manifest.sizes["profile"]
  try:
    arms_lib.check_profiles(arms, int(store.note("profile", str(profile))))
  except InputError:
    store.close()
    raise
  store.note("folder", os.path.abspath(settings.folder), replace=True)
  return store


def main(arguments: list[str]) -> None:
  """Loads and serves until it is told to stop."""
  settings = _settings(arguments)
  start = time.monotonic()
  logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
  logging.getLogger("hsrl_jax").setLevel(logging.INFO)
  try:
    listening = listen(settings.host, settings.port)
    if settings.cache:
      jax.config.update("jax_compilation_cache_dir", settings.cache)
    print(
      f"loading {settings.folder}: compiling for each batch size takes a while",
      flush=True,
    )
    arms = arms_lib.load(settings)
    store = _opened(settings, arms)
  except (InputError, StoreError) as error:
    print(errors.line(error), file=sys.stderr)
    sys.exit(2)
  sys.setswitchinterval(_SWITCH)
  gc.collect()
  gc.freeze()  # The garbage collector need not look at what stays.
  print(
    f"loaded {settings.folder} in {time.monotonic() - start:.1f} s; "
    f"serving at http://{settings.host}:{listening.getsockname()[1]}",
    flush=True,
  )
  server = Server(arms, settings, store, os.environ.get(_TOKEN, ""))
  uvloop.run(_run(make_http_server(server, listening)))


if __name__ == "__main__":
  main(sys.argv[1:])
