"""The command, run inside a test or in a process of its own."""

import contextlib
import importlib
import io
import multiprocessing
import os
import pathlib
import random
import resource
import runpy
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import jax
from absl import flags, logging

from hsrl_jax import agents, launch
from hsrl_jax.config import Config
from hsrl_jax.engine import checkpoint
from hsrl_jax.experiments import jobs
from hsrl_jax.experiments.registry import LAUNCH, Entry
from hsrl_jax.host import stop
from hsrl_jax.stages import policy
from hsrl_jax.studies import __main__ as studies
from hsrl_jax.studies.registry import FRONT

ROOT = pathlib.Path(__file__).parents[1]
# On top of smoke.flags: as small as it gets, for a process of its own.
SMALL = (
  f"--flagfile={ROOT}/launch/flags/smoke.flags",
  "--simulator_epochs=3",
  "--iterations=120",
  "--iterations_per_call=10",
  "--curve_every=40",
  "--save_every=20",
  "--evaluate_episodes=60",
  "--seeds=0",
)
# The jobs of a whole experiment, whose figures mean nothing.
JOBS = (
  f"--flagfile={ROOT}/launch/flags/smoke.flags",
  "--simulator_epochs=2",
  "--sid_vocab_size=10",
  "--iterations=40",
  "--iterations_per_call=20",
  "--curve_every=40",
  "--save_every=40",
  "--evaluate_episodes=60",
)


def run(*arguments: str, front=LAUNCH) -> tuple[int, str, str]:
  """Exit status, standard output and standard error."""
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  out, err = io.StringIO(), io.StringIO()
  status = 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      launch.run_command(["hsrl", *arguments], front)
    except SystemExit as stop:
      status = stop.code
  flags.FLAGS.mark_as_parsed()
  return status, out.getvalue(), err.getvalue()


def experiment(
  name: str,
  workdir: pathlib.Path | str = ".",
  base: Config | None = None,
  **own: Any,
) -> jobs.Experiment:
  """An experiment or study; all is at its defaults but for `own` settings."""
  base = base or agents.configure(Config(), "hsrl")
  settings = FRONT.known[name].settings(**own)
  return jobs.Experiment(name, base, settings, pathlib.Path(workdir), "")


@contextlib.contextmanager
def experiments_are(run: Callable[[jobs.Experiment], None]):
  """Inside, each experiment is what `run` makes of it."""
  load = Entry.load

  def fake(entry):
    return types.SimpleNamespace(**vars(load(entry)) | {"run": run})

  with mock.patch.object(Entry, "load", fake):
    yield


@contextlib.contextmanager
def published():
  """Inside, agents and flags are also those of the command of the studies."""
  before = {*flags.FLAGS}
  with mock.patch.dict(agents.AGENTS):
    studies.register()
    ours = {*flags.FLAGS} - before  # Others may be defined meanwhile.
    try:
      yield
    finally:
      for name in ours:
        delattr(flags.FLAGS, name)


def study(*arguments: str) -> tuple[int, str, str]:
  """The same as `run`, of the command of the studies."""
  with published():
    return run(*arguments, front=studies.FRONT)


def last_state(workdir: pathlib.Path) -> tuple[int, Any]:
  """The last checkpoint of training: its step, and what it holds.

  Keys are words, which can be compared.
  """
  path = workdir / policy.FOLDER / "checkpoints"
  with (
    checkpoint.open_directory(path, read_only=True) as checkpointer,
    warnings.catch_warnings(),
  ):
    warnings.simplefilter("ignore")  # It is placed as it was saved.
    newest = checkpointer.latest.step
    state = checkpointer.load(newest)

  def words(x):
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x

  return newest, jax.tree.map(words, state)


def environment() -> dict[str, str]:
  """Of a new interpreter: devices and compiler as a user has, and a cache."""
  kept = {name.upper(): str(value) for name, value in cache()}
  ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
  return {k: v for k, v in os.environ.items() if k not in ours} | kept


def quick(devices: int = 1) -> dict[str, str]:
  """Of a new interpreter with so many devices and the compiler of tests."""
  ours = [x for x in os.environ["XLA_FLAGS"].split() if "_count=4" not in x]
  ours.append(f"--xla_force_host_platform_device_count={devices}")
  return dict(os.environ) | {"XLA_FLAGS": " ".join(ours)}


def process(*arguments: str) -> subprocess.CompletedProcess:
  """The command in a new interpreter."""
  return interpreter("-m", "hsrl_jax.launch", *arguments)


def interpreter(*arguments: str) -> subprocess.CompletedProcess:
  """A new interpreter, in the checkout."""
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
  )


def cache() -> tuple[tuple[str, object], ...]:
  """Options of jax that keep all that is compiled, for all processes."""
  return (
    ("jax_compilation_cache_dir", os.environ["HSRL_TEST_COMPILED"]),
    ("jax_persistent_cache_min_compile_time_secs", 0.0),
    ("jax_persistent_cache_min_entry_size_bytes", -1),
  )


def linger(seconds: float = 0.5) -> None:
  """From now on training waits after each call of the device.

  Small runs end within a second once compiled; a signal that must find one at
  work would come too late where the machine is busy.
  """
  due = stop.Deferral.due

  def due_later(deferral):
    time.sleep(seconds)
    return due(deferral)

  stop.Deferral.due = due_later


class Processes:
  """Real processes that start fast: forked once all is imported, and with
  one compilation cache."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._context = multiprocessing.get_context("forkserver")
    self._context.set_forkserver_preload(
      ["hsrl_jax.launch", "sklearn.metrics", "tensorflow_datasets"]
    )

  def start(self, *arguments: str, **faults) -> "Process":
    """Starts the command; `faults` are those of `_in_fork`."""
    return Process(self._context, self._folder, arguments, faults)

  def run(self, *arguments: str, **faults) -> tuple[int, str]:
    """Exit status and output, of a process that ends by itself."""
    started = self.start(*arguments, **faults)
    return started.wait(), started.output()


class Process:
  """One of them; an exit status below 0 names the signal that ended it."""

  def __init__(self, context, folder, arguments, faults):
    self._log = folder / f"{time.monotonic_ns()}.log"
    # By path, since other packages may be called `tests` too.
    job = {"arguments": arguments, "log": self._log, "cache": cache()}
    job["xla_flags"] = quick()["XLA_FLAGS"]
    self._process = context.Process(
      target=runpy.run_path, args=(__file__, {"JOB": job | faults}, "__fork__")
    )
    self._process.start()
    self.pid = self._process.pid

  def wait(self, seconds: float = 300.0) -> int:
    self._process.join(seconds)
    return self._process.exitcode

  def running(self) -> bool:
    return self._process.is_alive()

  def kill(self) -> int:
    self._process.kill()
    return self.wait()

  def cpu_seconds(self) -> float:
    """What it has used so far."""
    with contextlib.suppress(OSError):
      stat = pathlib.Path(f"/proc/{self.pid}/stat").read_text()
      user, system = stat.rpartition(")")[2].split()[11:13]
      return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return float("inf")

  def output(self) -> str:
    return self._log.read_text()


def _in_fork(
  arguments,
  log,
  cache,
  xla_flags,
  clock_jumps: bool = False,
  file_size: int | None = None,
  constants: Mapping[str, Any] | None = None,
  lingers: bool = False,
) -> None:
  """Runs the command.

  Args:
    arguments: of the command.
    log: file for its output.
    cache: see `cache`.
    xla_flags: see `quick`.
    clock_jumps: whether the wall clock goes back and forth by years.
    file_size: bytes beyond which no file can grow, as if the disk were full.
    constants: other values of constants, by module and name.
    lingers: see `linger`.
  """
  handle = os.open(log, os.O_WRONLY | os.O_CREAT)
  os.dup2(handle, 1)
  os.dup2(handle, 2)
  logging.use_absl_handler()  # As absl's app does.
  os.environ["XLA_FLAGS"] = xla_flags
  for name, value in cache:
    jax.config.update(name, value)
  if clock_jumps:
    real, offsets = time.time, random.Random(0).choices((-1e8, 0, 3e7), k=999)
    # Other each half second: within a step of Python's it stays as it is.
    time.time = lambda: real() + offsets[int(2 * time.monotonic()) % 999]
  if file_size is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
  for name, value in (constants or {}).items():
    module, _, constant = name.rpartition(".")
    setattr(importlib.import_module(module), constant, value)
  if lingers:
    linger()
  launch.run_command(["hsrl", *arguments])


if __name__ == "__fork__":
  _in_fork(**JOB)  # noqa: F821 (what run_path was given)
