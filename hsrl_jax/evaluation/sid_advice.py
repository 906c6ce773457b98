"""A recommendation of V and L out of a sweep, with what speaks against it."""

from collections.abc import Iterable
from typing import NamedTuple


class Size(NamedTuple):
  """One row of a sweep.

  Attributes:
    vocab_size: V.
    levels: L.
    error: share of the variance that plain residual k-means loses.
    error_unique: the same once each item has a SID of its own; 1 is what the
      mean vector loses.
  """

  vocab_size: int
  levels: int
  error: float
  error_unique: float

  @property
  def name(self) -> str:
    """Such as 64x3."""
    return f"{self.vocab_size}x{self.levels}"


class Advice(NamedTuple):
  """What a sweep says.

  Attributes:
    size: the recommended one; None where each is worse than the mean vector.
    warnings: one line each, for people.
  """

  size: Size | None
  warnings: list[str]


def recommend(sizes: Iterable[Size]) -> Advice:
  """Recommends the size with the smallest loss with unique SIDs.

  Of equal losses the one with fewer SIDs, V^L, then fewer tokens. A size that
  loses more than the mean vector, error_unique > 1, is refused. A size whose
  unique SIDs cost more than half of what is left, error_unique - error >
  error_unique / 2, is warned of.

  Args:
    sizes: those that hold the catalogue.
  """
  sizes = list(sizes)
  good = [x for x in sizes if x.error_unique <= 1]
  warnings = [refusal(x) for x in sizes if x.error_unique > 1]
  if not good:
    return Advice(None, warnings)
  best = min(
    good, key=lambda x: (x.error_unique, x.vocab_size**x.levels, x.levels)
  )
  return Advice(best, warnings + dear(best))


def refusal(size: Size) -> str:
  """One line that says why a size is not to be used."""
  return (
    f"{size.name} loses {size.error_unique:.0%} of the variance, more than the "
    "mean vector would: not usable; expected less balance, or a larger V or L"
  )


def dear(size: Size) -> list[str]:
  """A warning where unique SIDs cost more than half of what is left."""
  cost = size.error_unique - size.error
  if cost <= size.error_unique / 2:
    return []
  return [
    f"{size.name}: unique SIDs cost {cost:.0%} of the variance, more than half "
    f"of the {size.error_unique:.0%} that is lost; a larger V or L would help"
  ]
