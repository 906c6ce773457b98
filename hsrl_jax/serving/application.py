"""The application of the example server: three paths, and requests in batches.

Bounds on bodies, on the requests that wait and on the time to answer are here;
those on connections and heads are the HTTP server's, see `server`.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import orjson
import prometheus_client as prometheus
from starlette import applications, exceptions, requests, responses, routing

from hsrl_jax.errors import InputError
from hsrl_jax.serving.folder import MANIFEST
from hsrl_jax.serving.recommender import Query, Recommendations, Recommender

_FIELDS = ("history", "profile", "seen")
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the server; each is a flag.

  Attributes:
    folder: export that --mode=export wrote.
    host: address to listen at; 0.0.0.0 for all.
    port: port to listen at; 0 for any that is free.
    linger: seconds that a batch waits for more requests, while it is not full.
    max_body: bytes of a request, at most; else 413.
    max_queue: requests that wait, at most; else 503.
    timeout: seconds in which a head must be there (the connection is closed),
      then a body (408), and then an answer (503).
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
  """The numbers of /metrics."""

  def __init__(self):
    """Creates a registry for one server."""
    self.registry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=self.registry)
    registry = {"registry": self.registry}
    self.requests = prometheus.Counter(
      "hsrl_requests", "Requests by status.", ["status"], **registry
    )
    self.seconds = prometheus.Histogram(
      "hsrl_request_seconds", "Time to answer.", buckets=_SECONDS, **registry
    )
    self.batch = prometheus.Histogram(
      "hsrl_batch_size",
      "Requests decoded together.",
      buckets=[2**i for i in range(9)],
      **registry,
    )
    self.queue = prometheus.Gauge(
      "hsrl_queue", "Requests that wait.", **registry
    )
    self.items = prometheus.Gauge("hsrl_items", "Active items.", **registry)
    self.catalogue = prometheus.Info(
      "hsrl_catalogue", "Version of the catalogue.", **registry
    )
    self.swaps = prometheus.Counter(
      "hsrl_swaps", "Contents of the folder that took over.", **registry
    )
    self.swap_errors = prometheus.Counter(
      "hsrl_swap_errors",
      "Contents of the folder that were refused.",
      **registry,
    )

  def show(self, recommender: Recommender) -> None:
    """Publishes which catalogue is served."""
    active = np.asarray(recommender.catalogue.index.active)
    self.items.set(int(active.sum()))
    self.catalogue.info({"version": recommender.version})


class Full(Exception):
  """Too many requests wait."""


class Server:
  """The application's state: a recommender, and requests that wait for it.

  Only decoding and loading leave the event loop, so nothing needs a lock.
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
    """Returns one user's recommendations, and the recommender of them.

    Raises:
      Full: too many requests wait.
      TimeoutError: no answer within the time-out.
      Exception: the decoder failed.
    """
    if len(self._waiting) >= self.settings.max_queue:
      raise Full
    future = asyncio.get_running_loop().create_future()
    self._waiting.append((query, future))
    self._arrived.set()
    async with asyncio.timeout(self.settings.timeout):
      return await future

  async def _decode(self, thread: concurrent.futures.Executor) -> None:
    """Decodes the waiting requests, batch after batch."""
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
        slates = await loop.run_in_executor(thread, recommender.decode, queries)
      except Exception as error:  # This batch fails; the next is decoded.
        for _, future in batch:
          if not future.done():
            future.set_exception(error)
        continue
      for row, (_, future) in enumerate(batch):
        if not future.done():
          user = Recommendations(*(x[row] for x in slates))
          future.set_result((recommender, user))

  async def _watch(self, thread: concurrent.futures.Executor) -> None:
    """Loads the folder whenever its manifest changes, and serves it."""
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
      except Exception as error:
        # The old recommender goes on; the next change of the folder is tried.
        self.measures.swap_errors.inc()
        _log.warning("not taken over: %s", error)
      await asyncio.sleep(self.settings.watch)


class _Error(exceptions.HTTPException):
  """An answer that is a status and a line that says why."""


async def _body(request: requests.Request, settings: Settings) -> bytes:
  """Returns the body of a request.

  Raises:
    _Error: it is too large, too slow, or breaks off.
  """
  body = bytearray()
  try:
    async with asyncio.timeout(settings.timeout):
      async for piece in request.stream():
        body += piece
        if len(body) > settings.max_body:
          raise _Error(
            413,
            "the body is too large; expected "
            f"{settings.max_body} bytes at most",
          )
  except TimeoutError as error:
    raise _Error(
      408, f"the body did not arrive within {settings.timeout} s"
    ) from error
  except requests.ClientDisconnect as error:
    raise _Error(400, "the body broke off") from error
  return bytes(body)


def _query(recommender: Recommender, body: bytes) -> Query:
  """Returns the checked request of a body.

  Raises:
    _Error: 400 if the body is no JSON object, 422 if a value is wrong.
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


def _answer(recommender: Recommender, slate: Recommendations) -> bytes:
  """Returns the recommendations of one user as JSON."""
  count = int(slate.valid.sum())  # The valid ones come first.
  items, catalogue = slate.items[:count], recommender.catalogue
  return orjson.dumps(
    {
      "items": items,
      "item_ids": [catalogue.item_ids.of(item) for item in items],
      "titles": [catalogue.titles.of(item) for item in items],
      "sids": slate.sids[:count],
      "log_probs": slate.log_probs[:count],
      "catalogue": recommender.version,
    },
    option=orjson.OPT_SERIALIZE_NUMPY,
  )


def make_app(server: Server) -> applications.Starlette:
  """Returns the application; its lifespan is `server.running`."""
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
    about = {
      "catalogue": recommender.version,
      "sizes": recommender.manifest.sizes,
    }
    try:
      _answer(*await server.recommend(recommender.empty_query()))
    except Exception as error:  # Then /recommend fails as well.
      what = f"{type(error).__name__}: {error}".splitlines()[0]
      return _json(503, {"status": "failing", "error": what} | about)
    return _json(200, {"status": "ok"} | about)

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
