"""Many processes as one run: how they start, wait for one another and stop.

Each has devices of its own. What one alone is to do, the first does, in a
workdir that all see; the others wait and learn how it ended. A process that is
lost takes the others along, see LOST_SECONDS.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src import distributed  # What it keeps has no public name.

from hsrl_jax.engine import checkpoint, parallel
from hsrl_jax.errors import InputError

START_SECONDS = 60  # For all processes to find one another.
# A process that says nothing for so long is lost, and one that ends waits so
# long for the others: within twice this time all have stopped.
LOST_SECONDS = 30
_WORK_SECONDS = 7 * 24 * 3600  # How long the others wait for the first one.

_LOST = (
  "a host was lost; the same command goes on from the last checkpoint, with as "
  "many processes as there are then"
)


def start(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> None:
  """Joins the other processes; comes before anything asks for devices.

  Args:
    coordinator: HOST:PORT of process 0; what is None is left to the
      environment, which TPU VMs, SLURM and Open MPI have.
    processes: how many there are.
    process: which this is, from 0.

  Raises:
    InputError: arguments and environment do not tell all of this, or the
      processes differ in their devices.
  """
  where = coordinator or "the environment's coordinator"
  _on_abort(
    f"the processes did not meet at {where} within {2 * START_SECONDS} s; "
    "expected all of them started, with one address that each can reach"
  )
  # It would take SIGTERM from whoever handles it in Python.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      coordinator,
      processes,
      process,
      initialization_timeout=START_SECONDS,
      heartbeat_timeout_seconds=LOST_SECONDS,
      shutdown_timeout_seconds=LOST_SECONDS,
    )
    # Between the CPUs of processes; accelerators have their own way.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.devices()  # For which all of them meet.
    parallel.meet()
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f"the processes were not found ({error}); expected a TPU VM, SLURM or "
      "Open MPI, or the coordinator's address, the number of processes and "
      "that of this one"
    ) from error
  _on_abort(_LOST)
  each = jax.local_device_count()
  if jax.device_count() != each * jax.process_count():
    raise InputError(
      f"process {jax.process_index()} has {each} devices of "
      f"{jax.device_count()}; expected as many in each of the "
      f"{jax.process_count()} processes"
    )


def many() -> bool:
  """Whether there are other processes."""
  return distributed.global_state.num_processes > 1


def is_first() -> bool:
  """Whether this process is the one that prints and writes."""
  return distributed.global_state.process_id == 0


class _Calls:
  """Numbers the calls of on_first, which all processes make in one order."""

  count = 0


def on_first(work: Callable[[], Any]) -> Any:
  """Runs `work` on the first process alone; the others wait for its end.

  Returns:
    What it returns, on every process; something that JSON knows.

  Raises:
    InputError: on the others, where it raises anything on the first.
  """
  if not many():
    return work()
  store = distributed.global_state.client
  _Calls.count += 1
  key = f"hsrl_jax/on_first/{_Calls.count}"
  if not is_first():
    told = store.blocking_key_value_get(key, 1000 * _WORK_SECONDS)
    error, value, operations = json.loads(told)
    if error:
      raise InputError(f"process 0 stopped: {error}")
    checkpoint.catch_up(operations)
    return value
  try:
    with checkpoint.alone():
      value = work()
  except BaseException as error:
    text = " ".join(str(error).split()) or type(error).__name__
    store.key_value_set(key, json.dumps([text, None, 0]))
    raise
  told = [None, value, checkpoint.operations()]
  store.key_value_set(key, json.dumps(told))
  return value


def end_if_lost(error: jax.errors.JaxRuntimeError) -> None:
  """Ends the process if the runtime failed to reach another one."""
  first_line = (str(error).splitlines() or [""])[0]
  own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
  if not many() or first_line.startswith(own):
    return
  _end(f"{_LOST} ({first_line[:200]})")


def _end(text: str) -> NoReturn:
  sys.stdout.flush()
  os.write(sys.stderr.fileno(), f"\nerror: {text}\n".encode())
  os._exit(1)  # No farewell: what waits for the others would wait in vain.


def leave(status: int) -> None:
  """Before an exit with an error of this process's own: no more is said."""
  if many():
    _on_abort(None, status)


def _on_abort(text: str | None, status: int = 1) -> None:
  """Has the runtime end this process with one line and a status.

  It aborts where another process is lost, from a thread of its own, and takes
  no callback of Python's; so the signal's handler is one of C.
  """
  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(
    lambda number: _end(text) if text else os._exit(status)
  )
  ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
  _handlers.append(handler)  # C keeps no reference.


_handlers = []
