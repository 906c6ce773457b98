"""Options of a user's logs: `logs.json` beside the files, a JSON object.

All may be missing; docs/bring_your_own.md says what each sets.
"""

import dataclasses
import json
import pathlib
import sys

from hsrl_jax.data import feedback
from hsrl_jax.errors import InputError, reading

NAME = "logs.json"
LEAVE_ONE_OUT = "leave_one_out"
BY_USER = "user"
SPLITS_BY = ("time", LEAVE_ONE_OUT, BY_USER)


@dataclasses.dataclass(frozen=True)
class Options:
  """See docs/bring_your_own.md."""

  slate_size: int = 10
  negatives: str = feedback.UNIFORM
  base_rate: float | None = None
  like_from: float | None = None
  seed: int = 0
  normalise: bool | None = None
  split_by: str | None = None
  newest: int | None = None


def read(folder: pathlib.Path, split_by: str = "time") -> Options:
  """Reads logs.json, or the defaults; --split_by=user stands for that option.

  Raises:
    InputError: the option that is unknown or out of range, or that is at odds
      with the flag.
  """
  options = _read(folder)
  if split_by != BY_USER:
    return options
  if options.split_by not in (None, BY_USER):
    raise InputError(
      f"--split_by={split_by}, but {folder / NAME} has split_by "
      f"{options.split_by!r}; expected one of them"
    )
  return dataclasses.replace(options, split_by=BY_USER)


def _whole(value, least: int) -> bool:
  return type(value) is int and least <= value < 2**31


def _number(value) -> bool:
  return type(value) in (int, float) and abs(value) <= sys.float_info.max


# Option to whether a value may be given, and what is expected.
_RULES = {
  "slate_size": (lambda x: _whole(x, 1), "a whole number from 1, below 2^31"),
  "seed": (lambda x: _whole(x, 0), "a whole number from 0, below 2^31"),
  "newest": (
    lambda x: x is None or _whole(x, 8),
    "a whole number from 8, below 2^31",
  ),
  "negatives": (
    lambda x: x in feedback.NEGATIVES,
    " or ".join(feedback.NEGATIVES),
  ),
  "base_rate": (
    lambda x: x is None or (_number(x) and 0 < x < 1),
    "a share in (0, 1)",
  ),
  "like_from": (lambda x: x is None or _number(x), "a number"),
  "normalise": (lambda x: x in (None, True, False), "true or false"),
  "split_by": (lambda x: x is None or x in SPLITS_BY, " or ".join(SPLITS_BY)),
}


def _read(folder: pathlib.Path) -> Options:
  path = folder / NAME
  if not path.exists():
    return Options()
  with reading(path, "a JSON object"):
    given = dict(json.loads(path.read_text()))
  known = [x.name for x in dataclasses.fields(Options)]
  for name, value in given.items():
    if name not in known:
      raise InputError(
        f"{path} has the option {name!r}; expected some of {', '.join(known)}"
      )
    holds, expected = _RULES[name]
    if not holds(value):
      raise InputError(f"{path}: {name} is {value!r}; expected {expected}")
  return Options(**given)


def check_for_sessions(folder: pathlib.Path, options: Options) -> None:
  """Refuses options that sessions with responses have no use for.

  Raises:
    InputError: such an option.
  """
  for field in dataclasses.fields(Options):
    value = getattr(options, field.name)
    useful = field.name in ("normalise", "newest") or (
      field.name == "split_by" and value == BY_USER
    )
    if value != field.default and not useful:
      raise InputError(
        f"{folder / NAME}: {field.name} is of no use for sessions that have "
        "responses; expected interactions, or no such option"
      )
