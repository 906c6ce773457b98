"""Answers to requests for slates and to feedback, whoever asks for them."""

import os
from typing import Any, NamedTuple

import orjson

from hsrl_jax.errors import InputError
from hsrl_jax.server import bodies
from hsrl_jax.server.arms import Served
from hsrl_jax.server.batches import Full, Server
from hsrl_jax.server.bodies import Ask, Refused
from hsrl_jax.server.store import StoreError, Undecided, UnknownRequest
from hsrl_jax.serving.recommender import Query, Recommendations

FAULT = "an error of the server, which logged it"


class Answer(NamedTuple):
  """A slate of one user."""

  served: Served  # The version that made the slate.
  ask: Ask  # The request.
  # The places with an item, which come first: [k], [k, L].
  slate: Recommendations
  names: list[str]  # Ids in the source of its items, [k].
  request_id: str | None  # None where nothing is kept.

  def to_json(self) -> bytes:
    """Returns the body of the answer."""
    recommender, slate = self.served.recommender, self.slate
    titles = recommender.catalogue.titles
    return orjson.dumps(
      {
        "request_id": self.request_id,
        "items": slate.items,
        "item_ids": self.names,
        "titles": [titles.of(item) for item in slate.items],
        "sids": slate.sids,
        "log_probs": slate.log_probs,
        "propensities": slate.propensity,
        "catalogue": recommender.version,
        "version": self.served.version,
        "arm": self.served.arm,
      },
      option=orjson.OPT_SERIALIZE_NUMPY,
    )


def checked(server: Server, values: Any) -> tuple[Served, Ask, Query]:
  """Returns who answers a request for a slate, and the checked request.

  Raises:
    Refused: the request is wrong.
  """
  values = bodies.asked(values)
  # Of whom nothing is known is somebody else each time.
  served = server.served_to(bodies.user_of(values) or os.urandom(8).hex())
  try:
    ask = bodies.ask(values, served.ids)
    return served, ask, served.recommender.query(**ask.arguments)
  except InputError as error:
    raise Refused(422, str(error)) from error


async def recommend(server: Server, values: Any) -> Answer:
  """Answers a request for a slate, and keeps the slate.

  Raises:
    Refused: the request is wrong, or too many wait.
  """
  served, ask, query = checked(server, values)
  try:
    slate = await server.recommend(query, served)
  except (Full, TimeoutError) as error:
    raise Refused(
      503, "too many requests wait; try again", {"Retry-After": "1"}
    ) from error
  slate = Recommendations(*(x[: int(slate.valid.sum())] for x in slate))
  ids = served.recommender.catalogue.item_ids
  names = [ids.of(item) for item in slate.items]
  request_id = await server.record(ask, served, slate, names)
  return Answer(served, ask, slate, names, request_id)


async def feedback(server: Server, values: Any) -> bytes:
  """Keeps feedback, and returns the body of the answer.

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
