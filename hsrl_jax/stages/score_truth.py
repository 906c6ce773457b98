"""The matrix of --truth: whether it may be used, and what is in it."""

import pathlib

import numpy as np

from hsrl_jax import config as config_lib
from hsrl_jax import files
from hsrl_jax.data.source import Dataset
from hsrl_jax.errors import InputError
from hsrl_jax.session_config import FITTED
from hsrl_jax.sim import truth


def digest(config: config_lib.Config) -> tuple[str, ...]:
  """The matrix's entry in a fingerprint; empty where there is none.

  Raises:
    InputError: the file is missing, or sessions cannot be scored by it.
  """
  if config.data.truth is None:
    return ()
  _check(config)
  return (f"truth {files.digest(pathlib.Path(config.data.truth))}",)


def ratings(path: str, dataset: Dataset) -> np.ndarray:
  """The matrix, for the users and items of a dataset; see truth.read."""
  users = max(int(x.user_id.max()) for x in dataset.splits.values())
  items = len(dataset.items.features) - 1
  return truth.read(pathlib.Path(path), users, items)


def _check(config: config_lib.Config) -> None:
  """Raises InputError where sessions cannot be scored by a matrix."""
  c, path = config.simulator, pathlib.Path(config.data.truth)
  if not path.is_file():
    raise InputError(
      f"--truth={path} is missing; expected an .npy file with a matrix of "
      "ratings, [users, items]"
    )
  if config.data.response_params is not None or c.world != FITTED:
    raise InputError(
      "--truth with --response_params or another --simulator_world; expected "
      "one of them"
    )
  if c.boredom != "none" or c.leave == "patience" or c.sweet_point is not None:
    raise InputError(
      f"--truth with --simulator_boredom={c.boredom}, --simulator_leave="
      f"{c.leave} and --simulator_sweet_point={c.sweet_point}; expected none, "
      "distance, boredom or length, and None: these go by likes, a matrix has "
      "ratings"
    )
