"""Arguments of people: what they must be, in one line where they are not."""

import reprlib
from typing import Any

import numpy as np

from hsrl_jax.errors import InputError

# Neither long nor deeply nested values are written out only to be cut.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 100


def ids(items: Any) -> np.ndarray:
  """Returns ids as int [M]; raises InputError for what is no list of ids."""
  try:
    ids = np.asarray(items)
  except ValueError:  # Rows of unequal lengths.
    ids = np.asarray("")
  if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
    raise InputError(f"items are {short(items)}; expected a list of item ids")
  return ids.astype(np.int64)


def floats(
  name: str, values: Any, shape: tuple[int | None, ...], finite: bool = False
) -> np.ndarray:
  """Returns float32 of a shape (None: any size); raises InputError else."""
  wanted = ["any" if size is None else size for size in shape]
  expected = f"expected numbers of the shape {wanted}".replace("'", "")
  try:
    array = np.asarray(values)
  except ValueError:  # Rows of unequal lengths.
    array = np.asarray("")
  if array.dtype.kind not in "fiu":
    raise InputError(f"{name} are {short(values)}; {expected}")
  if array.ndim != len(shape) or any(
    want is not None and size != want
    for size, want in zip(array.shape, shape, strict=True)
  ):
    raise InputError(f"{name} have the shape {list(array.shape)}; {expected}")
  with np.errstate(over="ignore"):
    array = array.astype(np.float32)
  if finite and not np.isfinite(array).all():
    raise InputError(
      f"{name} have numbers that are not finite float32; {expected}"
    )
  return array


def short(value: Any) -> str:
  """Returns how a value looks, in one line of 40 characters at most."""
  text = " ".join(_REPR.repr(value).split())
  return text if len(text) <= 40 else text[:40] + "..."
