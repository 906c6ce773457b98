"""Simulators with their users: worlds of SARDINE, and those of a run."""

import pathlib
from typing import NamedTuple

import numpy as np

from hsrl_jax import files
from hsrl_jax.config import SimulatorConfig
from hsrl_jax.errors import InputError
from hsrl_jax.sim import sardine as sardine_lib
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.stages import run as run_lib
from hsrl_jax.types import Sessions

_VECTORS = "sardine/item_vectors.npy"


class Simulated(NamedTuple):
  """A simulator and its users."""

  # Its settings; pure functions of one user.
  simulator: UserSimulator | sardine_lib.Sardine
  users: EnvParams  # Its parameters, with the pool of users.

  @property
  def num_items(self) -> int:
    """N."""
    return int(self.users.num_items)


def sardine(
  name: str = "SlateTopK-Bored",
  *,
  users: int = 4_000,
  history: int = 50,
  seed: int = 0,
  observed_items: int = 0,
) -> Simulated:
  """A world of SARDINE with users drawn by its law.

  Args:
    name: of the world, one of sim.sardine.WORLDS.
    users: in the pool.
    history: H, clicked items that are observed.
    seed: of the users.
    observed_items: R, shown items that are observed too; 0: none.

  Raises:
    InputError: there is no such world, or a number is too small.
  """
  if name not in sardine_lib.WORLDS:
    raise InputError(
      f"name is {name!r}; expected one of {tuple(sardine_lib.WORLDS)}"
    )
  if users < 1 or history < 1 or observed_items < 0:
    raise InputError(
      f"users is {users}, history {history} and observed_items "
      f"{observed_items}; expected at least 1, 1 and 0"
    )
  vectors = np.load(files.shipped("datasets") / _VECTORS)
  topics = vectors.shape[1]
  rng = np.random.default_rng(seed)
  made = Sessions(
    user_id=np.arange(1, users + 1),
    profile=np.float32([sardine_lib.taste(rng, topics) for _ in range(users)]),
    history=np.zeros((users, history), np.int32),
    exposed=np.zeros((users, 0), np.int32),
    response=np.zeros((users, 0), np.float32),
  )
  simulator = sardine_lib.make(SimulatorConfig(world=name), topics)
  padded = np.concatenate([np.zeros_like(vectors[:1]), vectors])
  return Simulated(
    simulator._replace(observed_items=observed_items),
    sardine_lib.pool(padded, made),
  )


def of_run(workdir: str | pathlib.Path, split: str = "train") -> Simulated:
  """The simulator of a run, fitted or made up, with the users of a split.

  Args:
    workdir: of a run whose stage `simulator` is done.
    split: `train`, `val` or `test`.

  Raises:
    InputError: there is none.
  """
  run = run_lib.of_workdir(workdir)
  run.require("simulator")
  if split not in run.dataset.splits:
    raise InputError(
      f"split is {split!r}; expected one of {tuple(run.dataset.splits)}"
    )
  return Simulated(run.env, run.users(split))
