"""The page at `/`: likes are picked, slates are answered, repeats are counted.

Forms without a script. The server has no sessions: the field `request` holds
the request of /recommend, and each button sends it back with the answers.
"""

import asyncio
import collections
import functools
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib import parse

import jinja2
import numpy as np
import orjson
from starlette import requests, responses

from hsrl_jax.server import answers, bodies
from hsrl_jax.server.answers import Answer
from hsrl_jax.server.arms import Served
from hsrl_jax.server.batches import Server
from hsrl_jax.server.bodies import Refused
from hsrl_jax.serving.catalogue import ServedCatalogue, Texts

_PICKS = 24  # Items to pick from.
_SHOWN = 300  # Items of earlier slates that the field keeps, about.
_RECENT = 5  # Slates in the table of repeats.
_GROUPS = 8  # Its rows.
_BLOCK = 1_024  # Texts that a search reads at once.
_FIND = 100  # Characters of a search.
_ANSWER = "on "  # Begins the name of the field of an item of the slate.

_log = logging.getLogger(__name__)


async def show(server: Server, request: requests.Request) -> responses.Response:
  """Returns the page; what is refused is a line on it, and its status."""
  errors: list[Refused] = []
  fields: list[tuple[str, str]] = []
  values, answer, ask = _newcomer(server), None, None
  text, served = orjson.dumps(values).decode(), server.arms.stable
  try:
    if request.method == "POST":
      body = await bodies.read(request, server.settings)
      fields = parse.parse_qsl(body.decode(errors="replace"))
      if "request" not in dict(fields):
        raise Refused(422, "the form has no request; expected that of the page")
      text = dict(fields)["request"]
      values = bodies.asked(bodies.parsed(text.encode(), 1))
      values = await _answered(server, values, fields, errors)
      text = orjson.dumps(values).decode()
    served, ask, _ = answers.checked(server, values)
    if "next" in dict(fields):
      answer = await answers.recommend(server, values)
      served, ask = answer.served, answer.ask
  except Refused as error:
    errors.append(error)
  except Exception:
    _log.exception("the page has no slate")
    errors.append(Refused(503, answers.FAULT))
  status = errors[0].status_code if errors else 200
  server.measures.requests.labels(str(status)).inc()
  nonce = os.urandom(16).hex()
  html = await asyncio.to_thread(  # A search may read a million titles.
    _html,
    served,
    {} if ask is None else ask.arguments,
    answer,
    dict(fields).get("find", "").strip()[:_FIND],
    nonce=nonce,
    errors=[x.detail for x in errors],
    request=text,
    keeps=server.store is not None,
  )
  headers = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
      f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; "
      "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
  }
  if errors:
    headers |= errors[0].headers or {}
  return responses.HTMLResponse(html, status, headers)


def _html(
  served: Served,
  arguments: dict[str, Any],
  answer: Answer | None,
  find: str,
  **more: Any,
) -> str:
  """The page; `arguments` are of Recommender.query, `more` of the template."""
  catalogue, picks = served.recommender.catalogue, []
  liked = arguments.get("history", [])
  if answer is None:
    rows = search(catalogue, find)
    picks = [(_name(served, x), title(catalogue, x)) for x in rows]
  return _template().render(
    more,
    request_id=answer and answer.request_id,
    liked=[title(catalogue, x) for x in reversed(liked)],
    refused=len(arguments.get("seen", [])),
    find="" if answer else find,
    picks=picks,
    slate=answer and _items(answer, liked),
    tables=_repeats(catalogue, arguments.get("earlier", []), answer),
    about=served.recommender.manifest.about,
    version=served.version,
  )


@functools.cache
def _template() -> jinja2.Template:
  return jinja2.Environment(
    loader=jinja2.PackageLoader("hsrl_jax.server", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  ).get_template("page.html")


def _newcomer(server: Server) -> dict[str, Any]:
  """The request of a new user, who is none of the logs'."""
  user = f"page-{os.urandom(8).hex()}"
  sizes = server.served_to(user).recommender.manifest.sizes
  return {
    "user_id": user,
    "session_id": user,
    "profile": [0] * sizes["profile"],
    "history": [],
    "seen": [],
    "earlier": [],
  }


async def _answered(
  server: Server,
  values: dict[str, Any],
  fields: list[tuple[str, str]],
  errors: list[Refused],
) -> dict[str, Any]:
  """Keeps the answers of a form, and returns the request that follows.

  Args:
    server: keeps feedback, if it has a store.
    values: the request that the form came with.
    fields: of the form.
    errors: gets the one of feedback that is refused; the request goes on.
  """

  def named(text: str) -> str | int:
    is_row = server.settings.ids == "rows" and re.fullmatch("[0-9]{1,9}", text)
    return int(text) if is_row else text

  slate = {
    named(name.removeprefix(_ANSWER)): given
    for name, given in fields
    if name.startswith(_ANSWER)
  }
  numbers = {"like": 1, "refuse": 0}
  likes = {x: numbers[y] for x, y in slate.items() if y in numbers}
  request_id = dict(fields).get("request_id")
  if request_id and likes:
    responses = {str(x): like for x, like in likes.items()}
    try:
      await answers.feedback(
        server, {"request_id": request_id, "responses": responses}
      )
    except Refused as error:
      errors.append(error)
  served = server.served_to(bodies.user_of(values) or "")
  sizes = served.recommender.manifest.sizes

  def joined(name: str, new: list) -> list:
    old = values.get(name, [])[-sizes[name] :]
    new = [x for x in dict.fromkeys(new) if x not in old]
    return [*old, *new][-sizes[name] :]

  picked = [named(given) for name, given in fields if name == "pick"]
  liked = [x for x, like in likes.items() if like] + picked
  refused = [x for x, like in likes.items() if not like]
  earlier = list(values.get("earlier", []))
  if slate:
    given = [likes.get(x, 0) for x in slate]
    earlier.append({"items": list(slate), "responses": given})
  return values | {
    "history": joined("history", liked),
    "seen": joined("seen", refused),
    "earlier": earlier[-max(1, _SHOWN // sizes["slate"]) :],
  }


def title(catalogue: ServedCatalogue, row: int) -> str:
  """Returns the title of an item; without one its id in the source."""
  return catalogue.titles.of(row) or catalogue.item_ids.of(row) or str(row)


def _name(served: Served, row: int) -> str:
  """An item as requests name it."""
  ids = served.recommender.catalogue.item_ids
  return str(row) if served.ids is None else ids.of(row)


def search(catalogue: ServedCatalogue, text: str) -> list[int]:
  """Returns the first rows of active items whose title or id has a text.

  Those of titles come first, at most 24. Without a text: the most popular
  items where the catalogue has popularities, else the first ones.

  Args:
    catalogue: that is served.
    text: any; its case does not count.
  """
  active = np.asarray(catalogue.index.active)
  if not text:
    rows = np.flatnonzero(active)
    if catalogue.popularity is not None:
      rows = rows[np.argsort(-catalogue.popularity[rows], kind="stable")]
    return rows[:_PICKS].tolist()
  found: dict[int, None] = {}
  for texts in (catalogue.titles, catalogue.item_ids):
    for row in _matches(texts, text):
      if active[row]:
        found[row] = None
      if len(found) == _PICKS:
        return list(found)
  return list(found)


def _matches(texts: Texts, text: str) -> Iterable[int]:
  """Yields the rows whose text has `text`, whatever its case."""
  text, ends = text.casefold(), [0, *texts.ends[_BLOCK - 1 :: _BLOCK], None]
  for block, (start, end) in enumerate(itertools.pairwise(ends)):
    if text in texts.utf8[start:end].tobytes().decode().casefold():
      first = block * _BLOCK
      for row in range(first, min(first + _BLOCK, len(texts.ends))):
        if text in texts.of(row).casefold():
          yield row


def _items(answer: Answer, liked: list[int]) -> list[dict]:
  """The items of a slate, each with what it shares with a liked one.

  Of several that share the most first tokens `like` names the newest.
  """
  catalogue, newest = answer.served.recommender.catalogue, liked[::-1]
  known = {tag for row in liked for tag in catalogue.tags.of(row)}
  rows = np.asarray(newest, int)
  sids = np.stack([np.asarray(x)[rows] for x in catalogue.index.tokens], 1)
  items = []
  for row, sid, score in zip(*answer.slate[:3], strict=True):
    shared = np.cumprod(sids == sid, 1).sum(1)
    most = int(shared.max(initial=0))
    items.append(
      {
        "name": _name(answer.served, row),
        "title": title(catalogue, row),
        "score": float(score),
        "sid": sid.tolist(),
        "shared": most,
        "like": most and title(catalogue, newest[shared.argmax()]),
        "tags": [(tag, tag in known) for tag in catalogue.tags.of(row)],
      }
    )
  return items


def _repeats(
  catalogue: ServedCatalogue,
  earlier: list[tuple[list[int], list[int]]],
  answer: Answer | None,
) -> list[tuple[str, list[dict]]]:
  """Tables of how often the last slates showed a tag, and a first token."""
  slates = list(earlier)
  if answer is not None:
    slates.append((answer.slate.items.tolist(), [0] * len(answer.names)))
  slates = slates[-_RECENT:]

  def table(groups: Callable[[int], list[str]]) -> list[dict]:
    counts = collections.defaultdict(lambda: [0] * len(slates))
    likes, example = collections.Counter(), {}
    for place, (rows, given) in enumerate(slates):
      for row, like in zip(rows, given, strict=True):
        for group in groups(row):
          counts[group][place] += 1
          likes[group] += round(like)
          example[group] = title(catalogue, row)
    most = sorted(counts, key=lambda x: -sum(counts[x]))[:_GROUPS]
    return [
      {"group": x, "counts": counts[x], "likes": likes[x], "item": example[x]}
      for x in most
    ]

  first = catalogue.index.tokens[0]
  tables = [
    ("Tag", table(catalogue.tags.of)),
    ("First token of the SID", table(lambda row: [str(first[row])])),
  ]
  return [(heading, rows) for heading, rows in tables if rows]
