"""An example server for an export, by Starlette and uvicorn (extra `serve`).

  python -m hsrl_jax.serving.server --folder=runs/quickstart/export --port=8000

  POST /recommend   {"history": [12, 7], "profile": [...], "seen": [3]}
  GET  /health      what is served
  GET  /metrics     for Prometheus

Requests that arrive together are decoded together, in a thread of its own. A
catalogue or parameters that appear in the folder (serving.write_catalogue) take
over between two batches. One process, no TLS, no authentication: put a proxy
before it.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import dataclasses
import gc
import logging
import pathlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import jax
import numpy as np
import orjson
import prometheus_client as prometheus
import uvicorn
from starlette import applications, exceptions, requests, responses, routing
from uvicorn.protocols.http import httptools_impl

from hsrl_jax import docstrings
from hsrl_jax.errors import InputError
from hsrl_jax.serving import recommender as recommender_lib
from hsrl_jax.serving.folder import MANIFEST
from hsrl_jax.serving.recommender import Query, Recommendations, Recommender

_HEAD = 32_768  # Bytes of a request's line and headers, at most.
_FIELDS = ("history", "profile", "seen")
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SWITCH = 5e-4  # Seconds after which Python's threads take turns.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the server.

  Attributes:
    folder: that --mode=export wrote.
    host: address to listen at; 0.0.0.0 for all.
    port: to listen at; 0 for any that is free.
    linger: seconds that a batch waits for more requests, while it is not full.
    max_body: bytes of a request, at most; else 413.
    max_queue: requests that wait, at most; else 503.
    timeout: seconds in which a body must be there (408), and then an answer
      (503).
    watch: seconds between two looks at the folder.
    cache: folder for compiled code, so that the next start is quick; "": none.
  """

  folder: pathlib.Path
  host: str = "127.0.0.1"
  port: int = 8000
  linger: float = 0.002
  max_body: int = 65_536
  max_queue: int = 1_024
  timeout: float = 5.0
  watch: float = 0.5
  cache: str = ""


class Measures:
  """What /metrics shows."""

  def __init__(self):
    """Makes a registry, one a server."""
    self.registry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=self.registry)
    made = {"registry": self.registry}
    self.requests = prometheus.Counter(
      "hsrl_requests", "Requests by status.", ["status"], **made
    )
    self.seconds = prometheus.Histogram(
      "hsrl_request_seconds", "Time to answer.", buckets=_SECONDS, **made
    )
    self.batch = prometheus.Histogram(
      "hsrl_batch_size",
      "Requests decoded together.",
      buckets=[2**i for i in range(9)],
      **made,
    )
    self.queue = prometheus.Gauge("hsrl_queue", "Requests that wait.", **made)
    self.items = prometheus.Gauge("hsrl_items", "Active items.", **made)
    self.catalogue = prometheus.Info("hsrl_catalogue", "Its version.", **made)
    self.swaps = prometheus.Counter(
      "hsrl_swaps", "Times that the folder's content took over.", **made
    )
    self.swap_errors = prometheus.Counter(
      "hsrl_swap_errors", "Times that it could not.", **made
    )

  def show(self, recommender: Recommender) -> None:
    """Shows which catalogue is served."""
    active = np.asarray(recommender.catalogue.index.active)
    self.items.set(int(active.sum()))
    self.catalogue.info({"version": recommender.version})


class Full(Exception):
  """Too many requests wait."""


class Server:
  """The application's state: a recommender, and requests that wait for it.

  All but the decoding happens in the event loop, so that nothing needs a lock.
  """

  def __init__(self, recommender: Recommender, settings: Settings):
    """Binds a loaded recommender; `running` starts the work."""
    self.recommender = recommender
    self.settings = settings
    self.measures = Measures()
    self.measures.show(recommender)
    self._waiting: list[tuple[Query, asyncio.Future]] = []
    self._arrived = asyncio.Event()

  @contextlib.asynccontextmanager
  async def running(self, app: Any) -> AsyncIterator[None]:
    """The lifespan of the application."""
    del app
    threads = [concurrent.futures.ThreadPoolExecutor(1) for _ in range(2)]
    tasks = [
      asyncio.create_task(work(thread))
      for work, thread in zip((self._decode, self._watch), threads, strict=True)
    ]
    yield
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for thread in threads:
      thread.shutdown()

  async def recommend(self, query: Query) -> tuple[Recommender, Any]:
    """One user's recommendations, and who made them.

    Raises:
      Full: too many wait.
      TimeoutError: it took too long.
    """
    if len(self._waiting) >= self.settings.max_queue:
      raise Full
    future = asyncio.get_running_loop().create_future()
    self._waiting.append((query, future))
    self._arrived.set()
    async with asyncio.timeout(self.settings.timeout):
      return await future

  async def _decode(self, thread: concurrent.futures.Executor) -> None:
    """Decodes what waits, batch after batch."""
    loop = asyncio.get_running_loop()
    while True:
      self._arrived.clear()
      if not self._waiting:
        await self._arrived.wait()
      if len(self._waiting) < self.recommender.batch_sizes[-1]:
        await asyncio.sleep(self.settings.linger)
      recommender = self.recommender
      most = recommender.batch_sizes[-1]
      batch = [x for x in self._waiting[:most] if not x[1].done()]
      del self._waiting[:most]
      self.measures.queue.set(len(self._waiting))
      if not batch:
        continue
      self.measures.batch.observe(len(batch))
      queries = [query for query, _ in batch]
      try:
        found = await loop.run_in_executor(thread, recommender.decode, queries)
      except Exception as error:  # Those who wait get it, the rest goes on.
        for _, future in batch:
          if not future.done():
            future.set_exception(error)
        continue
      for row, (_, future) in enumerate(batch):
        if not future.done():
          user = Recommendations(*(x[row] for x in found))
          future.set_result((recommender, user))

  async def _watch(self, thread: concurrent.futures.Executor) -> None:
    """Takes over what the folder holds whenever its manifest changes."""
    loop, folder = asyncio.get_running_loop(), self.settings.folder
    seen = None
    while True:
      try:
        stat = (folder / MANIFEST).stat()
        now = (stat.st_mtime_ns, stat.st_ino)
        if now != seen:
          seen = now
          changed = await loop.run_in_executor(
            thread, self.recommender.refreshed, folder
          )
          if changed.manifest != self.recommender.manifest:
            self.recommender = changed
            self.measures.swaps.inc()
            self.measures.show(changed)
      except Exception as error:  # Whatever it is, the watch goes on.
        # So does what is served; the next change of the folder is tried again.
        self.measures.swap_errors.inc()
        _log.warning("not taken over: %s", error)
      await asyncio.sleep(self.settings.watch)


class _Error(exceptions.HTTPException):
  """A request that is answered with a status and a line that says why."""


async def _body(request: requests.Request, settings: Settings) -> bytes:
  """The body of a request.

  Raises:
    _Error: it is too large, too slow, or breaks off.
  """
  too_large = _Error(
    413, f"the body is too large; expected {settings.max_body} bytes at most"
  )
  length = request.headers.get("content-length", "")
  if length.isdigit() and int(length) > settings.max_body:
    raise too_large
  body = bytearray()
  try:
    async with asyncio.timeout(settings.timeout):
      async for piece in request.stream():
        body += piece
        if len(body) > settings.max_body:
          raise too_large
  except TimeoutError as error:
    raise _Error(
      408, f"the body did not arrive within {settings.timeout} s"
    ) from error
  except requests.ClientDisconnect as error:
    raise _Error(400, "the body broke off") from error
  return bytes(body)


def _query(recommender: Recommender, body: bytes) -> Query:
  """The checked request in a body.

  Raises:
    _Error: 400 where it is no JSON object, 422 where a value is wrong.
  """
  try:
    values = orjson.loads(body)
  except orjson.JSONDecodeError as error:
    raise _Error(400, f"the body is no JSON: {error}") from error
  if not isinstance(values, dict):
    raise _Error(
      400, "the body is no JSON object; expected one with " + ", ".join(_FIELDS)
    )
  for name, value in values.items():
    if name not in _FIELDS:
      raise _Error(
        422, f"{name[:40]!r} is no field; expected " + ", ".join(_FIELDS)
      )
    if not isinstance(value, list):
      raise _Error(422, f"{name} is no list")
  if "history" not in values:
    raise _Error(422, "history is missing; expected a list of item ids")
  try:
    return recommender.query(**values)
  except InputError as error:
    raise _Error(422, str(error)) from error


def _answer(recommender: Recommender, found: Recommendations) -> bytes:
  """Recommendations of one user as JSON."""
  count = int(found.valid.sum())  # The valid ones come first.
  items, catalogue = found.items[:count], recommender.catalogue
  return orjson.dumps(
    {
      "items": items,
      "item_ids": [catalogue.item_ids.of(item) for item in items],
      "titles": [catalogue.titles.of(item) for item in items],
      "sids": found.sids[:count],
      "log_probs": found.log_probs[:count],
      "catalogue": recommender.version,
    },
    option=orjson.OPT_SERIALIZE_NUMPY,
  )


def make_app(server: Server) -> applications.Starlette:
  """The application; its lifespan is `server.running`."""
  settings, measures = server.settings, server.measures

  async def recommend(request: requests.Request) -> responses.Response:
    start = time.perf_counter()
    body = await _body(request, settings)
    try:
      answer = await server.recommend(_query(server.recommender, body))
    except (Full, TimeoutError) as error:
      raise _Error(
        503, "too many requests wait; try again", {"Retry-After": "1"}
      ) from error
    measures.seconds.observe(time.perf_counter() - start)
    measures.requests.labels("200").inc()
    return responses.Response(_answer(*answer), media_type="application/json")

  async def health(request: requests.Request) -> responses.Response:
    del request
    recommender = server.recommender
    return _json(
      200,
      {
        "status": "ok",
        "catalogue": recommender.version,
        "sizes": recommender.manifest.sizes,
      },
    )

  async def metrics(request: requests.Request) -> responses.Response:
    del request
    return responses.Response(
      prometheus.generate_latest(measures.registry),
      media_type=prometheus.CONTENT_TYPE_LATEST,
    )

  async def refuse(request: requests.Request, error: Exception):
    del request
    known = isinstance(error, exceptions.HTTPException)
    status = error.status_code if known else 500
    measures.requests.labels(str(status)).inc()
    text = error.detail if known else "an error of the server, which logged it"
    return _json(status, {"error": text}, error.headers if known else None)

  app = applications.Starlette(
    routes=[
      routing.Route("/recommend", recommend, methods=["POST"]),
      routing.Route("/health", health, methods=["GET"]),
      routing.Route("/metrics", metrics, methods=["GET"]),
    ],
    exception_handlers={exceptions.HTTPException: refuse, Exception: refuse},
    lifespan=server.running,
  )
  app.router.redirect_slashes = False
  return app


def _json(status: int, value: Any, headers=None) -> responses.Response:
  return responses.Response(
    orjson.dumps(value), status, headers, "application/json"
  )


class _Protocol(httptools_impl.HttpToolsProtocol):
  """uvicorn's, with a limit on a request's head; httptools has none."""

  _head: int | None = None  # Bytes of it; None elsewhere.

  def on_message_begin(self) -> None:
    super().on_message_begin()
    self._head = 0

  def on_headers_complete(self) -> None:
    self._head = None
    super().on_headers_complete()

  def data_received(self, data: bytes) -> None:
    super().data_received(data)
    if self._head is None or self.transport.is_closing():
      return
    self._head += len(data)
    if self._head > _HEAD:
      self.send_400_response(f"Headers too large, expected {_HEAD} bytes.")


def make_uvicorn(server: Server) -> uvicorn.Server:
  """The server to run; SIGTERM and SIGINT let it finish what it has begun."""
  settings = server.settings
  return uvicorn.Server(
    uvicorn.Config(
      make_app(server),
      host=settings.host,
      port=settings.port,
      http=_Protocol,
      ws="none",
      lifespan="on",
      access_log=False,
      log_level="warning",
      timeout_graceful_shutdown=10,
    )
  )


def _settings(arguments: list[str]) -> Settings:
  """The settings of a command line; flags are named as in Settings."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
  return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: list[str]) -> None:
  """Loads and serves until it is told to stop."""
  settings = _settings(arguments)
  if settings.cache:
    jax.config.update("jax_compilation_cache_dir", settings.cache)
  start = time.monotonic()
  try:
    recommender = recommender_lib.load(settings.folder)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  sys.setswitchinterval(_SWITCH)
  gc.collect()
  gc.freeze()  # What is loaded is not looked through again.
  print(
    f"loaded {settings.folder} in {time.monotonic() - start:.1f} s; "
    f"serving at http://{settings.host}:{settings.port}",
    flush=True,
  )
  for number in (signal.SIGTERM, signal.SIGINT):
    # uvicorn takes them, and raises them again once it is done.
    signal.signal(number, lambda *_: sys.exit(0))
  make_uvicorn(Server(recommender, settings)).run()


if __name__ == "__main__":
  main(sys.argv[1:])
