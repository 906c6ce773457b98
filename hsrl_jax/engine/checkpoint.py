"""The only place with Orbax: whole states by step, damaged ones passed over."""

import contextlib
import os
import pathlib
import re
import time
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.futures import signaling_client
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

from hsrl_jax import files
from hsrl_jax.errors import InputError
from hsrl_jax.ops import tree

FORMAT = 2  # Of what is stored beside the arrays, and of their layout.
# Seconds. Orbax measures how long it waits by the wall clock, which may jump.
_PATIENCE = 10**9
# In place of the module `time`, for Orbax: a clock that does not jump.
_STEADY = types.SimpleNamespace(time=time.monotonic)
_KEEP = 2  # One to fall back to where the newest is damaged.


@contextlib.contextmanager
def open_directory(
  directory: pathlib.Path, read_only: bool = False
) -> Iterator[ocp.training.Checkpointer]:
  """Opens (and makes) a directory of checkpoints for a `with` block.

  Args:
    directory: of the checkpoints.
    read_only: leaves alone what another process may be writing.

  Raises:
    OSError: the disk is full, or fails otherwise.
  """
  context = ocp.Context()
  context.asynchronous.timeout_secs = _PATIENCE
  # Else each device saves a slice of what all hold, cut by programs for each
  # shape: two seconds at the first save.
  context.array.saving.use_replica_parallel = False
  # The threads of a save wait for one another by this clock, for 300 s at most.
  signaling_client.time = _STEADY
  try:
    with ocp.training.Checkpointer(
      directory.absolute(),
      context=context,
      preservation_policy=ocp.training.preservation_policies.LatestN(_KEEP),
      cleanup_tmp_directories=not read_only,
    ) as checkpointer:
      yield checkpointer
  except ValueError as error:  # What Orbax makes of a full disk.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if not code:
      raise
    number = int(code[1])
    raise OSError(
      number,
      f"{os.strerror(number)}: a checkpoint could not be written, the one "
      "before is kept; the same command goes on from it",
      str(directory),
    ) from error


def save(
  checkpointer: ocp.training.Checkpointer, step: int, state: Any
) -> None:
  """Saves a pytree of arrays; Orbax renames it into place when complete.

  A checkpoint of the same step is replaced: a damaged one must have been
  passed over, since training came by this step again.
  """
  digest = tree.digest(jax.tree.map(_or_none, state))
  checkpointer.save(
    step,
    jax.tree.map(_or_none, state),
    force=True,
    overwrite=True,
    custom_metadata={"format": FORMAT, "digest": digest},
  )


def restore_latest(
  checkpointer: ocp.training.Checkpointer, like: Any
) -> Any | None:
  """The newest checkpoint that can be read, or None where there is none.

  Damaged ones are passed over with a warning that names them.

  Args:
    checkpointer: from open_directory.
    like: pytree of arrays with the expected shapes, types and shardings, or
      of jax.ShapeDtypeStruct; without a sharding, for the first device.

  Raises:
    InputError: a checkpoint has another format.
  """
  abstract = jax.tree.map(lambda x: _abstract(x) if x.size else None, like)
  for saved in reversed(checkpointer.checkpoints):
    try:
      _check_format(checkpointer, saved.step)
      loaded = checkpointer.load(saved.step, abstract)
      _check_digest(checkpointer, saved.step, loaded)
    except InputError:
      raise
    except Exception as error:  # noqa: BLE001 (Orbax raises many kinds)
      first_line = (str(error).splitlines() or [type(error).__name__])[0]
      logging.warning(
        "checkpoint %s/%d cannot be read (%s); falling back to the one before",
        checkpointer.directory,
        saved.step,
        first_line[:200],
      )
    else:
      return jax.tree.map(_whole, like, loaded, is_leaf=_is_none)
  return None


def latest_step(checkpointer: ocp.training.Checkpointer) -> int:
  """The step of the newest checkpoint, damaged or not; 0: there is none."""
  return max((x.step for x in checkpointer.checkpoints), default=0)


def latest_digest(directory: pathlib.Path) -> int | None:
  """The digest that the newest checkpoint was saved with.

  None where there is no checkpoint, or its record of the digest is gone.
  """
  with open_directory(directory, read_only=True) as checkpointer:
    saved = checkpointer.checkpoints
    if not saved:
      return None
    kept = checkpointer.metadata(saved[-1].step).custom_metadata or {}
  return kept.get("digest")


@contextlib.contextmanager
def alone() -> Iterator[None]:
  """Within it Orbax does not wait for other processes; it asks how many.

  Its own MultiprocessingOptions(active_processes={0}) does not do: a save
  still gathers its path from all processes, and refuses arrays of a single one.
  """
  count = jax.process_count
  jax.process_count = lambda *_: 1
  try:
    yield
  finally:
    jax.process_count = count


def operations() -> int:
  """How many operations Orbax has numbered in this process."""
  return int(OperationIdGenerator.get_current_operation_id())


def catch_up(count: int) -> None:
  """Numbers as many; processes find one another by these numbers."""
  while operations() < count:
    OperationIdGenerator.next_operation_id()


def _check_format(checkpointer: ocp.training.Checkpointer, step: int) -> None:
  kept = checkpointer.metadata(step).custom_metadata or {}
  path = pathlib.Path(checkpointer.directory) / str(step)
  files.check_format(path, kept["format"], FORMAT)


def _check_digest(
  checkpointer: ocp.training.Checkpointer, step: int, loaded: Any
) -> None:
  """Orbax does not notice when bits of an array change on the disk."""
  kept = checkpointer.metadata(step).custom_metadata or {}
  if kept["digest"] != tree.digest(loaded):
    raise ValueError("its content has changed since it was saved")


def _or_none(x: Any) -> Any:
  """An array; None where it has no elements, which Orbax refuses."""
  return x if x.size else None


def _is_none(x: Any) -> bool:
  return x is None


def _whole(like: Any, loaded: Any) -> Any:
  """A leaf as it was saved; Orbax refuses arrays without elements."""
  if like is None or like.size:
    return loaded
  if isinstance(like, jax.Array):
    return like
  return jnp.zeros(like.shape, like.dtype)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
  """Shape, type and placement of an array."""
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  sharding = getattr(x, "sharding", None) or here
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
