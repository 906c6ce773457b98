"""Dataclasses of settings whose fields say which values they may have."""

import dataclasses
import hashlib
import json
import math
import operator
from collections.abc import Mapping
from typing import Any


def setting(
  default: Any,
  *,
  least: float | None = None,
  above: float | None = None,
  most: float | None = None,
  below: float | None = None,
  among: tuple[str, ...] | None = None,
  length: int = 0,
  found: bool = False,
) -> Any:
  """A field of a Checked dataclass: its default, and what values it may have.

  Of a tuple the bounds hold for each element. None needs no bounds, and passes
  where the field's type allows it. A number must be finite in any case.

  Args:
    default: of the field.
    least: the smallest value that is allowed.
    above: a bound below all values, itself not allowed.
    most: the largest value that is allowed.
    below: a bound above all values, itself not allowed.
    among: the texts that are allowed.
    length: of a tuple, the fewest elements.
    found: whether the data decide, and nobody gives it; it has no flag.
  """
  metadata = {
    "least": least,
    "above": above,
    "most": most,
    "below": below,
    "among": among,
    "length": length,
    "found": found,
  }
  return dataclasses.field(default=default, metadata=metadata)


def seed_setting(default: Any) -> Any:
  """A field whose values are seeds of JAX's generator, uint32."""
  return setting(default, least=0, below=2**32)


class Checked:
  """A frozen dataclass whose fields are checked when it is made.

  To bound a field, write `name: type = setting(default, least=1)`: nothing else
  is needed, neither here nor for its flag. What relates two fields is said in
  `__post_init__`, after `super().__post_init__()`, by `require`.
  """

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      several = isinstance(value, tuple)
      expected = _expected(field.metadata, several)
      holds = all(
        _within(x, field.metadata) for x in (value if several else (value,))
      )
      if several:
        holds = holds and len(value) >= field.metadata.get("length", 0)
      self.require(field.name, holds, expected)

  def require_divisor(self, field: str, of: str) -> None:
    """Raises ValueError unless the field divides another, named `of`."""
    whole = getattr(self, of)
    holds = whole % getattr(self, field) == 0
    self.require(field, holds, f"a divisor of {of} = {whole}")

  def require(self, field: str, holds: bool, expected: str) -> None:
    """Raises ValueError, which names field and value, unless `holds`."""
    if not holds:
      raise ValueError(
        f"{field} is {getattr(self, field)!r}; expected {expected}"
      )


def _within(value: Any, bounds: Mapping[str, Any]) -> bool:
  """Whether a value is as its field's `setting` allows."""
  if bounds.get("among") is not None:
    return value in bounds["among"]
  if isinstance(value, bool) or not isinstance(value, int | float):
    return True
  return math.isfinite(value) and all(
    bounds.get(name) is None or holds(value, bounds[name])
    for name, holds in _BOUNDS.items()
  )


_BOUNDS = {
  "least": operator.ge,
  "above": operator.gt,
  "most": operator.le,
  "below": operator.lt,
}


def _expected(bounds: Mapping[str, Any], several: bool) -> str:
  """The values that a field's `setting` allows, in words."""
  least, above, most, below, among = (
    bounds.get(name) for name in ("least", "above", "most", "below", "among")
  )
  if among is not None:
    return f"{'at least one' if several else 'one'} of {among}"
  words = "a finite number"
  if most is not None or below is not None:
    low = f"({above}" if least is None else f"[{least}"
    words = f"in {low}, " + (f"{below})" if most is None else f"{most}]")
  elif least is not None:
    words = f"at least {least}"
  elif above is not None:
    words = f"above {above}"
  if not several:
    return words
  fewest = f"at least {bounds['length']}, " if bounds.get("length") else ""
  return f"{fewest}each {words}"


def values(config):
  """The values that tell configurations apart, as a dict by field.

  What is no dataclass is returned as it is.
  """
  if not dataclasses.is_dataclass(config):
    return config
  return {
    x.name: values(getattr(config, x.name))
    for x in dataclasses.fields(config)
    if x.compare
  }


def fingerprint(*parts) -> str:
  """A short name of configs' values and of texts, the same in every process."""
  text = json.dumps([values(x) for x in parts], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
