"""Tasks in processes of their own, one more at a time than there are cores.

So no core waits while the last task, or what a task waits for, is at work.
"""

import contextlib
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

from hsrl_jax import errors
from hsrl_jax.errors import InputError
from hsrl_jax.host import compiled, stop, watch


class Task(NamedTuple):
  """The work of one process."""

  name: str  # For people, and of the file below the folder of logs.
  # A function of a module, that a new process can import; it is called with the
  # arguments and with a function to call after each unit.
  work: Callable[..., None]
  arguments: tuple[Any, ...]  # That can be pickled.
  units: int  # How often the work will tell that one is done.


def run(
  tasks: Sequence[Task], logs: pathlib.Path, unit: str
) -> Iterator[tuple[Task, float]]:
  """Runs tasks; yields each that is done, and the seconds that it took.

  What a task prints goes to a file. If one fails, those that run are waited
  for, and no other begins; where the caller leaves, all are stopped.

  Raises:
    InputError: a task failed; names its file and the last line of it.
  """
  context = multiprocessing.get_context("spawn")
  count = context.Value("i", 0)
  waiting, running, failed = list(tasks), {}, None
  logs.mkdir(parents=True, exist_ok=True)
  try:
    with watch.bar(sum(x.units for x in tasks), "tasks", unit) as bar:
      while waiting or running:
        while waiting and len(running) <= len(os.sched_getaffinity(0)):
          task = waiting.pop(0)
          process = context.Process(
            target=_alone, args=(task, _log(logs, task), count), daemon=True
          )
          process.start()
          running[process.sentinel] = (process, task, time.monotonic())
        done = connection.wait(list(running), timeout=1.0)
        bar.update(count.value - bar.n)
        for sentinel in done:
          process, task, start = running.pop(sentinel)
          process.join()
          if process.exitcode:
            waiting.clear()
            failed = _failed(task, process.exitcode, _log(logs, task))
          else:
            yield task, time.monotonic() - start
    if failed is not None:
      raise failed
  finally:
    for process, _, _ in running.values():
      process.terminate()
    for process, _, _ in running.values():
      process.join(stop.GRACE_SECONDS)
      process.kill()  # Where an exception in a destructor was lost, say.
      process.join()


def _alone(task: Task, log: pathlib.Path, count: Any) -> None:
  """The work of a process."""
  parent = multiprocessing.parent_process()

  def tell() -> None:
    with count.get_lock():
      count.value += 1
    if not parent.is_alive():  # Killed: who would wait for the rest?
      raise stop.Terminated

  with (
    log.open("a", buffering=1) as out,
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(out),
  ):
    compiled.keep()
    try:
      with stop.on_sigterm():
        task.work(*task.arguments, tell)
    except (InputError, FloatingPointError) as error:
      print(errors.line(error), file=sys.stderr)
      sys.exit(2)
    except (stop.Terminated, KeyboardInterrupt):
      print(f"\n{stop.LINE}", file=sys.stderr)
      sys.exit(1)


def _log(logs: pathlib.Path, task: Task) -> pathlib.Path:
  return logs / f"{task.name.replace('/', '_')}.log"


def _failed(task: Task, status: int, log: pathlib.Path) -> InputError:
  said = log.read_text().strip().splitlines()[-1:] if log.exists() else []
  return InputError(
    f"{task.name} ended with status {status} ({' '.join(said)}); expected 0: "
    f"see {log}"
  )
