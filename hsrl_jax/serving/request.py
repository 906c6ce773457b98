"""Requests to an exported policy, checked and padded."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.serving import tags as tags_lib
from hsrl_jax.serving.arguments import short
from hsrl_jax.serving.folder import Manifest
from hsrl_jax.sid import permits
from hsrl_jax.types import Shown

_LARGEST = float(np.finfo(np.float32).max)
# Below, scores divided by it have no digits left; above, all draws are alike.
_TEMPERATURES = (1e-3, 1e3)
_USUAL = frozenset((0, 1))  # Responses; others are looked at one by one.


class Query(NamedTuple):
  """A checked request, padded."""

  profile: np.ndarray  # float32 [P].
  history: np.ndarray  # int32 [H], left-padded with 0.
  seen: np.ndarray  # int32 [T], padded with 0.
  # The session so far, the last R items; R is 0 where the policy sees likes
  # alone.
  earlier: Shown
  temperature: np.ndarray  # float32 []; 0: the best slate.
  seed: np.ndarray  # uint32 [2], random bits of the draw.
  allow: permits.Allow  # The tags and the age of what may be recommended.
  k: np.ndarray  # int32 [], the first places of the slate that are wanted.

  def inputs(self) -> dict[str, Any]:
    """Inputs of the exported function, by name; arrays may be stacked."""
    named = self._asdict()
    del named["k"]
    return named | {
      name: named[name]._asdict() for name in ("earlier", "allow")
    }


def padding(sizes: Mapping[str, int], *batch: int) -> Query:
  """Queries of nobody, leaves [*batch, ...]; `sizes` are a manifest's."""

  def zeros(dtype, *shape):
    return np.zeros((*batch, *shape), dtype)

  shown = sizes["shown"]
  return Query(
    profile=zeros(np.float32, sizes["profile"]),
    history=zeros(np.int32, sizes["history"]),
    seen=zeros(np.int32, sizes["seen"]),
    earlier=Shown(
      items=zeros(np.int32, shown),
      response=zeros(np.float32, shown),
      position=zeros(np.int32, shown),
      ago=zeros(np.int32, shown),
      step=zeros(np.int32),
    ),
    temperature=zeros(np.float32),
    seed=zeros(np.uint32, 2),
    allow=permits.Allow(
      include=zeros(np.uint32, sizes["tags"]),
      exclude=zeros(np.uint32, sizes["tags"]),
      since=zeros(np.uint32),
    ),
    k=np.full(batch, sizes["slate"], np.int32),
  )


def make(
  manifest: Manifest,
  known: bytes,
  tags: tags_lib.Tags,
  history: Sequence[int],
  profile: Sequence[float],
  seen: Sequence[int],
  *,
  earlier: Sequence[tuple[Sequence[int], Sequence[float]]],
  k: int | None,
  temperature: float,
  include: Sequence[str],
  exclude: Sequence[str],
  since: int | None,
) -> Query:
  """Checks and pads a request, see Recommender.query.

  Args:
    manifest: of the export.
    known: of the catalogue's index, a byte for each id from 0.
    tags: of the catalogue.
    history: see Recommender.query, like all that follow.

  Raises:
    InputError: names what is wrong.
  """
  sizes = manifest.sizes
  padded = padding(sizes)
  if len(seen) > sizes["seen"]:
    raise InputError(
      f"seen has {len(seen)} ids; expected {sizes['seen']} at most: leave "
      "out the oldest, or export with a larger --export_seen"
    )
  if len(profile) != sizes["profile"]:
    raise InputError(
      f"profile has {len(profile)} numbers; expected {sizes['profile']}"
    )
  _check_ids("history", known, history, 1)
  _check_ids("seen", known, seen, 0)
  history = history[-sizes["history"] :]
  if len(history):
    padded.history[-len(history) :] = history
  for place, value in enumerate(profile):
    padded.profile[place] = _number("profile holds", value)
  manifest.check_range("profile", profile)
  if len(earlier):
    padded = padded._replace(earlier=_shown(known, earlier, padded.earlier))
  told = []
  if not manifest.repeat:
    told = [*history, *(item for items, _ in earlier for item in items)]
  own = [*dict.fromkeys([*seen, *told[::-1]])][: sizes["seen"]]
  padded.seen[: len(own)] = own
  if temperature:
    padded = padded._replace(
      temperature=_temperature(temperature),
      seed=np.frombuffer(os.urandom(8), np.uint32),
    )
  if k is not None:
    padded = padded._replace(k=_count(k, sizes["slate"]))
  if len(include) or len(exclude) or since is not None:
    allow = tags.allow(include, exclude, since)
    padded = padded._replace(allow=allow)
  return padded


def _check_ids(name: str, known: bytes, ids: Sequence[int], first: int) -> None:
  capacity = len(known) - 1
  for item in ids:
    if type(item) is not int and not isinstance(item, np.integer):
      raise InputError(f"{name} holds {short(item)}; expected item ids")
    if not first <= item <= capacity or (item and not known[item]):
      raise InputError(
        f"{name} holds {short(item)}, which is no known item; expected ids "
        f"from 1 to {capacity} that the catalogue has or had"
      )


def _number(what: str, value: Any) -> float:
  """A finite number; `what` begins the error."""
  if isinstance(value, bool) or not isinstance(value, int | float | np.number):
    raise InputError(f"{what} {short(value)}; expected numbers")
  if not abs(value) <= _LARGEST:
    raise InputError(f"{what} {short(value)}; expected finite float32 numbers")
  return value


def _temperature(value: Any) -> np.ndarray:
  number, (least, most) = _number("temperature is", value), _TEMPERATURES
  if not least <= number <= most:
    raise InputError(
      f"temperature is {short(value)}; expected 0 for the best slate, or a "
      f"number from {least:g} to {most:g}"
    )
  return np.float32(number)


def _count(value: Any, most: int) -> np.ndarray:
  is_count = isinstance(value, int | np.integer) and type(value) is not bool
  if not is_count or not 1 <= value <= most:
    raise InputError(
      f"k is {short(value)}; expected an integer from 1 to {most}, the slate "
      "size of the export: a larger one needs a larger --export_slate_size"
    )
  return np.int32(value)


def _shown(known: bytes, earlier: Sequence[Any], padded: Shown) -> Shown:
  """The last R items that were shown, as the simulator has them.

  Args:
    known: see `make`.
    earlier: see Recommender.query.
    padded: of nobody; its arrays are filled.
  """
  slates = [_slate(known, x) for x in earlier]
  room = len(padded.items)
  for ago, (items, responses) in enumerate(reversed(slates), start=1):
    count = min(room, len(items))
    if count:
      own = slice(room - count, room)
      padded.items[own] = items[-count:]
      padded.response[own] = responses[-count:]
      padded.position[own] = np.arange(len(items) - count, len(items))
      padded.ago[own] = ago
    room -= count
  empty = padded.items == 0
  for array in (padded.response, padded.position, padded.ago):
    array[empty] = 0
  return padded._replace(step=np.int32(len(slates)))


def _slate(known: bytes, slate: Any) -> tuple[Sequence[int], Sequence[float]]:
  """A pair of item ids and responses, checked."""
  try:
    items, responses = slate
    fits = len(items) == len(responses)
  except (TypeError, ValueError):
    fits = False
  if not fits:
    raise InputError(
      f"earlier holds {short(slate)}; expected slates, each a pair of item ids "
      "and as many responses"
    )
  _check_ids("earlier", known, items, 0)
  try:
    if _USUAL.issuperset(responses):
      return items, responses
  except TypeError:  # It holds what has no hash, and so no number.
    pass
  for answer in responses:
    number = float(answer) if isinstance(answer, bool) else answer
    if not 0 <= _number("earlier has the response", number) <= 1:
      raise InputError(
        f"earlier has the response {short(answer)}; expected numbers from 0 to "
        "1, 1 for a positive one"
      )
  return items, responses
