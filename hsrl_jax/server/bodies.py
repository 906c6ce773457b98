"""Bodies of requests: read within bounds, parsed and checked."""

import asyncio
import math
from typing import Any, NamedTuple

import orjson
from starlette import exceptions, requests

from hsrl_jax.errors import InputError
from hsrl_jax.server.ids import ItemIds
from hsrl_jax.server.settings import Settings
from hsrl_jax.server.store import Feedback
from hsrl_jax.serving.arguments import short

_LISTS = ("history", "profile", "seen", "earlier", "include", "exclude")
_OF_ITEMS = ("history", "seen")
_FIELDS = (*_LISTS, "k", "user_id", "session_id", "temperature", "since")
_FEEDBACK = ("request_id", "responses", "reward", "terminated")
_LONGEST = 256  # Characters of an id of a user, a session or a request.
_LARGEST = 3.4e38  # Of float32.


class Refused(exceptions.HTTPException):
  """An answer that is a status and a line that says why."""


class Ask(NamedTuple):
  """A request for a slate."""

  # Of Recommender.query; items are rows of the catalogue.
  arguments: dict[str, Any]
  user_id: str | None  # None where it is not given.
  session_id: str | None  # None where it is not given.
  step: int  # Slates of the session before.
  # As in `arguments`, by ids in the source; None where items are given as rows.
  history: list[str] | None


async def read(request: requests.Request, settings: Settings) -> bytes:
  """Returns the body of a request.

  Raises:
    Refused: it is too large, too slow, or breaks off.
  """
  body = bytearray()
  try:
    async with asyncio.timeout(settings.timeout):
      async for piece in request.stream():
        body += piece
        if len(body) > settings.max_body:
          raise Refused(
            413,
            "the body is too large; expected "
            f"{settings.max_body} bytes at most",
          )
  except TimeoutError as error:
    raise Refused(
      408, f"the body did not arrive within {settings.timeout} s"
    ) from error
  except requests.ClientDisconnect as error:
    raise Refused(400, "the body broke off") from error
  return bytes(body)


def parsed(body: bytes, most: int) -> Any:
  """Returns the content of a body: a request, or a list of them.

  Args:
    body: JSON.
    most: requests of a list.

  Raises:
    Refused: 400 if it is no JSON, 422 if a list is empty or too long.
  """
  try:
    content = orjson.loads(body)
  except orjson.JSONDecodeError as error:
    raise Refused(400, f"the body is no JSON: {error}") from error
  if isinstance(content, list) and not 0 < len(content) <= most:
    raise Refused(
      422, f"the list has {len(content)} requests; expected 1 to {most}"
    )
  return content


def fields(values: Any, known: tuple[str, ...]) -> dict[str, Any]:
  """Returns the fields of a request.

  Raises:
    Refused: 400 if it is no JSON object, 422 if a field is unknown.
  """
  if not isinstance(values, dict):
    raise Refused(
      400, "the body is no JSON object; expected one with " + ", ".join(known)
    )
  for name in values:
    if name not in known:
      raise Refused(
        422, f"{name[:40]!r} is no field; expected " + ", ".join(known)
      )
  return values


def user_of(values: dict[str, Any]) -> str | None:
  """Returns the checked user_id of a request.

  Raises:
    Refused: 422, it is none.
  """
  return _id("user_id", values.get("user_id"))


def asked(values: Any) -> dict[str, Any]:
  """Returns the fields of a request for a slate; see `fields`."""
  values = fields(values, _FIELDS)
  if "history" not in values:
    raise Refused(422, "history is missing; expected a list of item ids")
  for name in _LISTS:
    if not isinstance(values.get(name, []), list):
      raise Refused(422, f"{name} is no list")
  return values


def ask(values: dict[str, Any], ids: ItemIds | None) -> Ask:
  """Returns the checked request of fields.

  Args:
    values: that `asked` returned.
    ids: of the catalogue; None where items are given as rows.

  Raises:
    Refused: 422, a value is wrong.
    InputError: the same.
  """
  arguments = {
    name: value
    for name, value in values.items()
    if name not in ("user_id", "session_id") and value is not None
  }
  if ids is not None:
    for name in _OF_ITEMS:
      if name in arguments:
        arguments[name] = ids.to_rows(name, arguments[name])
  if not _is_number(arguments.get("temperature", 0)):
    raise InputError(
      f"temperature is {short(arguments['temperature'])}; expected a number"
    )
  earlier = [_earlier(x, ids) for x in arguments.get("earlier", ())]
  if earlier:
    arguments["earlier"] = earlier
  else:
    arguments.pop("earlier", None)
  return Ask(
    arguments,
    user_of(values),
    _id("session_id", values.get("session_id")),
    len(earlier),
    None if ids is None else list(map(str, values["history"])),
  )


def feedback(values: Any, to_source: Any = None) -> Feedback:
  """Returns the checked feedback of a request.

  Args:
    values: of `parsed`.
    to_source: item as the client calls it to its id in the source; None: the
      client calls items so.

  Raises:
    Refused: 400 if it is no JSON object, 422 if a value is wrong.
    InputError: a value is wrong.
  """
  values = fields(values, _FEEDBACK)
  request_id = _id("request_id", values.get("request_id"), str)
  if request_id is None:
    raise Refused(422, "request_id is missing; expected that of an answer")
  given = values.get("responses")
  if given is None:
    given = []
  if isinstance(given, list):
    responses: Any = [None if x is None else _response(x) for x in given]
  elif isinstance(given, dict):
    named = {k: _response(x) for k, x in given.items() if x is not None}
    if to_source is not None:
      named = {to_source(item): x for item, x in named.items()}
    responses = named
  else:
    raise Refused(
      422,
      f"responses is {short(given)}; expected a list in the order of the "
      "slate, or an object of item ids",
    )
  reward = values.get("reward")
  if reward is not None:
    if not _is_number(reward) or abs(reward) > _LARGEST:
      raise Refused(422, f"reward is {short(reward)}; expected a finite number")
    reward = float(f"{reward:.9g}")  # As float32 has it, whatever the store.
  terminated = values.get("terminated")
  if terminated not in (None, True, False):
    raise Refused(
      422, f"terminated is {short(terminated)}; expected true or false"
    )
  ended = None if terminated is None else bool(terminated)
  if reward is None and ended is None and not responses:
    raise Refused(422, "the feedback is empty; expected responses")
  return Feedback(request_id, responses, reward, ended)


def _earlier(slate: Any, ids: ItemIds | None) -> tuple[list, list]:
  """(items, responses) of an earlier slate; items are rows."""
  lists = isinstance(slate, dict) and set(slate) == {"items", "responses"}
  if not lists or not all(isinstance(x, list) for x in slate.values()):
    raise InputError(
      f"earlier holds {short(slate)}; expected objects with the lists items "
      "and responses"
    )
  items, answered = slate["items"], slate["responses"]
  if len(items) != len(answered):
    raise InputError(
      f"earlier has {len(items)} items with {len(answered)} responses; "
      "expected as many each"
    )
  rows = items if ids is None else ids.to_rows("earlier", items)
  return rows, answered


def _response(value: Any) -> int:
  if isinstance(value, bool | int | float) and value in (0, 1):
    return int(value)
  raise InputError(f"responses hold {short(value)}; expected 0 or 1")


def _is_number(value: Any) -> bool:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and math.isfinite(value)


def _id(name: str, value: Any, kinds: Any = str | int) -> str | None:
  """An id, as text that any store takes; JSON has no lone surrogates."""
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, kinds):
    raise Refused(422, f"{name} is {short(value)}; expected a string")
  text = str(value)
  if not 0 < len(text) <= _LONGEST or "\0" in text:
    raise Refused(
      422,
      f"{name} is {short(value)}; expected 1 to {_LONGEST} characters, none of "
      "which is NUL",
    )
  return text
