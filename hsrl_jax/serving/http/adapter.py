"""What recommenders of before sampling lack; delete it once none is left."""

import inspect
from typing import Any

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.serving.recommender import Query, Recommendations, Recommender

_KNOWN = frozenset(inspect.signature(Recommender.query).parameters)


def query(recommender: Recommender, arguments: dict[str, Any]) -> Query:
  """Calls `query` with what it knows; k is the application's as well.

  Raises:
    InputError: `query` refuses, or does not know an argument.
  """
  given = {x: value for x, value in arguments.items() if x in _KNOWN}
  for name in arguments.keys() - given.keys() - {"k", "earlier"}:
    if name != "temperature" or arguments[name] != 0:
      raise InputError(
        f"{name} is given, which this server does not know; expected none"
      )
  k, most = arguments.get("k"), recommender.manifest.sizes["slate"]
  if k is not None and not (type(k) is int and 1 <= k <= most):
    raise InputError(
      f"k is {str(k)[:40]}; expected an integer from 1 to {most}"
    )
  return recommender.query(**given)


def propensity(slate: Recommendations) -> np.ndarray:
  """Probability of each item as drawn, float32 [K]; 1 where none is drawn."""
  given = getattr(slate, "propensity", None)
  return (
    np.where(slate.valid, 1, 0).astype(np.float32) if given is None else given
  )
