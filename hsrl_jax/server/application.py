"""The paths of the server.

Bounds on bodies, on the requests that wait and on the time to answer are here;
those on connections and heads are the HTTP server's, see `server`.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import prometheus_client as prometheus
from starlette import applications, exceptions, requests, responses, routing

from hsrl_jax.errors import InputError
from hsrl_jax.server import bodies
from hsrl_jax.server.arms import Served
from hsrl_jax.server.batches import Full, Server
from hsrl_jax.server.bodies import Refused
from hsrl_jax.server.store import StoreError, Undecided, UnknownRequest
from hsrl_jax.serving.recommender import Recommendations

_FAULT = "an error of the server, which logged it"

_log = logging.getLogger(__name__)


def make_app(server: Server) -> applications.Starlette:
  """Returns the application; its lifespan is `server.running`."""
  measures = server.measures

  async def recommend(request: requests.Request) -> responses.Response:
    start = time.perf_counter()
    answered = await _each(server, request, _recommend)
    measures.seconds.observe(time.perf_counter() - start)
    return answered

  async def feedback(request: requests.Request) -> responses.Response:
    return await _each(server, request, _feedback)

  async def health(request: requests.Request) -> responses.Response:
    del request
    about = _about(server)
    try:
      await server.check()
    except Exception as error:
      what = f"{type(error).__name__}: {error}".splitlines()[0]
      if isinstance(error, StoreError):  # What it says is for the log alone.
        what = "the store takes nothing"
      return _json(503, {"status": "failing", "error": what} | about)
    return _json(200, {"status": "ok"} | about)

  async def metrics(request: requests.Request) -> responses.Response:
    del request
    await server.sum_rewards()
    return responses.Response(
      prometheus.generate_latest(measures.registry),
      media_type=prometheus.CONTENT_TYPE_LATEST,
    )

  def admin(promote: bool):
    async def change(request: requests.Request) -> responses.Response:
      _check_token(request, server.token)
      try:
        number = server.roll_back(promote)
      except InputError as error:
        raise Refused(409, str(error)) from error
      except OSError as error:
        raise Refused(507, f"the version stays: {error}") from error
      return _json(200, {"version": number})

    return change

  async def refuse(request: requests.Request, error: Exception):
    del request
    known = isinstance(error, exceptions.HTTPException)
    status = error.status_code if known else 500
    measures.requests.labels(str(status)).inc()
    text = error.detail if known else _FAULT
    return _json(status, {"error": text}, error.headers if known else None)

  routes = [
    routing.Route("/recommend", recommend, methods=["POST"]),
    routing.Route("/feedback", feedback, methods=["POST"]),
    routing.Route("/health", health, methods=["GET"]),
    routing.Route("/metrics", metrics, methods=["GET"]),
  ]
  if server.token:
    routes += [
      routing.Route(f"/admin/{name}", admin(promote), methods=["POST"])
      for name, promote in (("rollback", False), ("promote", True))
    ]
  app = applications.Starlette(
    routes=routes,
    exception_handlers={exceptions.HTTPException: refuse, Exception: refuse},
    lifespan=server.running,
  )
  app.router.redirect_slashes = False
  return app


def _about(server: Server) -> dict[str, Any]:
  """Returns what is served, for /health."""
  arms = server.arms
  about = {
    "catalogue": server.recommender.version,
    "sizes": server.recommender.manifest.sizes,
    "versions": {x.arm: x.version for x in arms.all()},
  }
  if arms.canary is not None:
    about["canary_sizes"] = arms.canary.recommender.manifest.sizes
  return about


async def _each(
  server: Server,
  request: requests.Request,
  answer: Callable[[Server, Any], Awaitable[bytes]],
) -> responses.Response:
  """Answers the one request of a body, or each of a list.

  Of a list each request stands for itself: the answer to one that is refused is
  its status and why.

  Raises:
    Refused: the body is wrong, or its only request is.
  """
  settings, counted = server.settings, server.measures.requests
  body = await bodies.read(request, settings)
  content = bodies.parsed(body, settings.max_queue)

  async def settled(values: Any) -> bytes:
    try:
      made = await answer(server, values)
    except Exception as error:
      if not isinstance(content, list):
        raise
      refused = error
      if not isinstance(error, Refused):
        _log.exception("one request of a list failed")
        refused = Refused(500, _FAULT)
      status = refused.status_code
      counted.labels(str(status)).inc()
      return orjson.dumps({"status": status, "error": refused.detail})
    counted.labels("200").inc()
    return made

  if isinstance(content, list):
    made = b",".join(await asyncio.gather(*map(settled, content)))
    made = b"[" + made + b"]"
  else:
    made = await settled(content)
  return responses.Response(made, media_type="application/json")


async def _recommend(server: Server, values: Any) -> bytes:
  """Returns the answer to a request for a slate.

  Raises:
    Refused: the request is wrong, or too many wait.
  """
  values = bodies.asked(values)
  # Of whom nothing is known is somebody else each time.
  served = server.served_to(bodies.user_of(values) or os.urandom(8).hex())
  try:
    ask = bodies.ask(values, served.ids)
    query = served.recommender.query(**ask.arguments)
    slate = await server.recommend(query, served)
  except InputError as error:
    raise Refused(422, str(error)) from error
  except (Full, TimeoutError) as error:
    raise Refused(
      503, "too many requests wait; try again", {"Retry-After": "1"}
    ) from error
  names = _names(served, slate)
  request_id = await server.record(ask, served, slate, names)
  return _answer(served, slate, names, request_id)


async def _feedback(server: Server, values: Any) -> bytes:
  """Returns the answer to feedback.

  Raises:
    Refused: it is wrong, its request is unknown, or it cannot be kept.
  """
  if server.store is None:
    raise Refused(
      404,
      "this server keeps nothing, so no request is known; expected a server "
      "with --store=PATH",
    )

  def to_source(row: str) -> str:
    catalogue = server.recommender.catalogue
    known = row.isascii() and row.isdigit() and len(row) < 10
    if not known or not 0 < int(row) < len(catalogue.item_ids.ends):
      raise InputError(
        f"responses has the item {row[:40]!r}; expected rows of the catalogue"
      )
    return catalogue.item_ids.of(int(row))

  try:
    given = bodies.feedback(
      values, to_source if server.settings.ids == "rows" else None
    )
    if given.reward is not None:
      manifest = server.recommender.manifest
      manifest.check_range("reward", [given.reward])
    outcome = await server.answer(given)
  except InputError as error:
    raise Refused(422, str(error)) from error
  except UnknownRequest as error:
    raise Refused(
      404,
      f"request_id {given.request_id[:40]!r} is unknown; expected that of an "
      "answer of a server with this store",
    ) from error
  except Undecided as error:
    raise Refused(
      507, "the feedback may be kept or not; send it again, it counts once"
    ) from error
  except StoreError as error:
    raise Refused(
      507, "the store does not take the feedback now; send it again"
    ) from error
  return orjson.dumps(
    {
      "request_id": given.request_id,
      "known": not outcome.accepted,
      "accepted": outcome.accepted,
      "ignored": outcome.ignored,
      "closed": outcome.closed,
    }
  )


def _check_token(request: requests.Request, token: str) -> None:
  """Raises Refused, 401, without the administrator's token."""
  given = request.headers.get("authorization", "")
  digests = [
    hashlib.sha256(x.encode()).digest() for x in (given, f"Bearer {token}")
  ]
  if not hmac.compare_digest(*digests):
    raise Refused(
      401,
      "the header Authorization is missing or wrong; expected Bearer TOKEN",
      {"WWW-Authenticate": "Bearer"},
    )


def _names(served: Served, slate: Recommendations) -> list[str]:
  """Returns the ids in the source of one user's items, which come first."""
  ids = served.recommender.catalogue.item_ids
  return [ids.of(item) for item in slate.items[: int(slate.valid.sum())]]


def _answer(
  served: Served,
  slate: Recommendations,
  names: list[str],
  request_id: str | None,
) -> bytes:
  """Returns the recommendations of one user as JSON."""
  count = len(names)
  recommender = served.recommender
  items, catalogue = slate.items[:count], recommender.catalogue
  return orjson.dumps(
    {
      "request_id": request_id,
      "items": items,
      "item_ids": names,
      "titles": [catalogue.titles.of(item) for item in items],
      "sids": slate.sids[:count],
      "log_probs": slate.log_probs[:count],
      "propensities": slate.propensity[:count],
      "catalogue": recommender.version,
      "version": served.version,
      "arm": served.arm,
    },
    option=orjson.OPT_SERIALIZE_NUMPY,
  )


def _json(status: int, value: Any, headers=None) -> responses.Response:
  return responses.Response(
    orjson.dumps(value), status, headers, "application/json"
  )
