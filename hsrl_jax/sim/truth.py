"""Sessions that are scored by a full matrix of ratings (docs/simulator.md).

A policy is trained in the fitted user model, and evaluated with users whose
rating of every item is known: an item earns its rating, and the user likes it
where the rating rounds to 4 or more. Nothing is by chance. It is the protocol
of EasyRL4Rec (arXiv 2402.15164).
"""

import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hsrl_jax import files
from hsrl_jax.errors import InputError, reading
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.types import Array

LIKED = 3.5  # The least rating that is liked.


class Truth(NamedTuple):
  """Ratings in place of a click model's parameters."""

  # float32 [U, N + 1], of user r + 1 in row r; column 0 is padding.
  ratings: Array
  most: Array  # float32 [], the largest absolute rating.


def read(path: pathlib.Path, users: int, items: int) -> np.ndarray:
  """Reads a matrix of ratings.

  Args:
    path: of an .npy file, float [users, items] or with more rows: row r is user
      r + 1 of the prepared dataset, column c its item c + 1.
    users: the largest id of a user.
    items: N.

  Returns:
    float32 [rows, N + 1], column 0 for padding.

  Raises:
    InputError: it cannot be read, has another shape, or numbers that are not
      finite.
  """
  expected = f"a matrix of numbers [{users}, {items}] as numpy.save writes it"
  with reading(path, expected):
    with path.open("rb") as file:
      found = files.read_header(file)
    rows, columns = (*found.shape, 0, 0)[:2]
    wrong = found.dtype.kind not in "fiu" or len(found.shape) != 2
    if wrong or columns != items or rows < users:
      raise InputError(
        f"{path} is {found.dtype} {list(found.shape)}; expected {expected}: a "
        "row for each user, a column for each item of the dataset"
      )
    matrix = np.load(path, allow_pickle=False)
  ratings = np.pad(matrix.astype(np.float32), ((0, 0), (1, 0)))
  bad = np.argwhere(~np.isfinite(ratings))
  if len(bad):
    row, column = bad[0] - (0, 1)
    raise InputError(
      f"{path}[{row}, {column}] is {matrix[row, column]} ({len(bad)} such "
      "values); expected a finite rating of every item by every user"
    )
  return ratings


def respond(
  params: Truth, profile: Array, history: Array, items: Array, user: Array
) -> Array:
  """A ResponseFn: 1 for each item that the user likes, else 0, [M].

  Args:
    params: the ratings.
    profile: not looked at.
    history: not looked at.
    items: int32 [M].
    user: [], the user's id.
  """
  del profile, history
  return (earned(params, items, user) >= LIKED).astype(jnp.float32)


def earned(params: Truth, items: Array, user: Array) -> Array:
  """Reward of each item, float32 [M]: the user's rating of it."""
  return params.ratings[user.astype(jnp.int32) - 1, items]


def scored(env: UserSimulator) -> UserSimulator:
  """The simulator with users whose ratings are known."""
  return env._replace(response_fn=respond, earned=earned)


def pool(users: EnvParams, ratings: np.ndarray, user_id: np.ndarray) -> Any:
  """The parameters of `scored`.

  Args:
    users: of the simulator with the fitted model, S users.
    ratings: see `read`.
    user_id: int [S], who they are.
  """
  response = Truth(
    jnp.asarray(ratings), jnp.float32(max(np.abs(ratings).max(), 1e-6))
  )
  ids = jnp.asarray(user_id, jnp.float32)
  return users._replace(response=response, biases=ids)
