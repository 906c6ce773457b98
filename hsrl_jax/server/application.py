"""The paths of the server.

Bounds on bodies, on the requests that wait and on the time to answer are here;
those on connections and heads are the HTTP server's, see `server`.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import prometheus_client as prometheus
from starlette import applications, exceptions, requests, responses, routing

from hsrl_jax.errors import InputError
from hsrl_jax.server import answers, bodies, page
from hsrl_jax.server.answers import FAULT
from hsrl_jax.server.batches import Server
from hsrl_jax.server.bodies import Refused
from hsrl_jax.server.store import StoreError

_log = logging.getLogger(__name__)


def make_app(server: Server) -> applications.Starlette:
  """Returns the application; its lifespan is `server.running`."""
  measures = server.measures

  async def slate(server: Server, values: Any) -> bytes:
    return (await answers.recommend(server, values)).to_json()

  async def recommend(request: requests.Request) -> responses.Response:
    start = time.perf_counter()
    answered = await _each(server, request, slate)
    measures.seconds.observe(time.perf_counter() - start)
    return answered

  async def feedback(request: requests.Request) -> responses.Response:
    return await _each(server, request, answers.feedback)

  async def try_it(request: requests.Request) -> responses.Response:
    return await page.show(server, request)

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
    text = error.detail if known else FAULT
    return _json(status, {"error": text}, error.headers if known else None)

  routes = [
    routing.Route("/", try_it, methods=["GET", "POST"]),
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
        refused = Refused(500, FAULT)
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


def _json(status: int, value: Any, headers=None) -> responses.Response:
  return responses.Response(
    orjson.dumps(value), status, headers, "application/json"
  )
