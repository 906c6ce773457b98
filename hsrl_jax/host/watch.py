"""Progress of a run, its time by phase, its memory, traces of its devices."""

import contextlib
import pathlib
import resource
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tqdm

from hsrl_jax.engine import processes

_MIB = 2**20


class _Bar(tqdm.tqdm):
  """By a clock that never jumps, so that rates and times are true."""

  # Read-only: tqdm would set the wall clock.
  _time = property(lambda self: time.monotonic, lambda self, clock: None)


def bar(
  total: int, title: str, unit: str, done: int = 0, delay: float = 0.0
) -> tqdm.tqdm:
  """A bar on standard error; where that is no terminal, a line now and then.

  Args:
    total: units to do.
    title: what is done.
    unit: its name.
    done: units done before.
    delay: seconds before the bar shows: a short wait needs none.
  """
  return _Bar(
    total=total,
    desc=title,
    unit=unit,
    initial=done,
    mininterval=0.2 if sys.stderr.isatty() else 15.0,
    miniters=1,
    dynamic_ncols=True,
    smoothing=0.1,
    delay=delay,
    disable=not processes.is_first(),
  )


class Watch:
  """Seconds by phase, of this process.

  Attributes:
    speed: of training, see `speed.of_training`; empty where it was too short.
  """

  def __init__(self):
    self._laps: dict[str, list[float]] = {}
    self.speed: dict[str, float] = {}

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Counts the time inside as the phase's; a phase may come often."""
    start = time.monotonic()
    try:
      yield
    finally:
      self._laps.setdefault(name, []).append(time.monotonic() - start)

  def seconds(self) -> dict[str, float]:
    """Phase to seconds, in the order of appearance."""
    return {name: sum(laps) for name, laps in self._laps.items()}

  def split_compilation(self, *names: str) -> None:
    """Makes a phase `compile` of what the first laps took longer than usual.

    A function is compiled when it is first called.
    """
    spent = 0.0
    for laps in (self._laps[name] for name in names if name in self._laps):
      usual = statistics.median(laps[1:] or laps)
      spent += max(0.0, laps[0] - usual)
      laps[0] = min(laps[0], usual)
    self._laps["compile"] = [spent]


def peak_memory() -> dict[str, Any]:
  """The most memory that was in use, in MiB, and of what.

  Of each accelerator; on a CPU, which counts none, of this process.
  """
  stats = [device.memory_stats() for device in jax.local_devices()]
  peaks = [x["peak_bytes_in_use"] for x in stats if x]
  if peaks:
    return {"of": "the fullest device", "peak_mib": max(peaks) / _MIB}
  kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {"of": "the process", "peak_mib": kib * 1024 / _MIB}


def lines(summary: dict[str, Any]) -> list[str]:
  """The content of summary.json for a terminal."""
  memory, speed = summary["memory"], summary["speed"]
  return [
    f"memory:  at most {memory['peak_mib']:,.0f} MiB of {memory['of']}",
    *(
      [
        f"speed:   {speed['iterations_per_second']:,.1f} iterations/s, "
        f"{speed['slates_per_second']:,.0f} slates/s, "
        f"{speed['utilisation']:.1%} of a large product's FLOP/s"
      ]
      if speed
      else []
    ),
    *(
      textwrap.fill(
        ", ".join(f"{name} {s:,.1f} s" for name, s in summary[key].items()),
        initial_indent=f"{title + ':':9}",
        subsequent_indent=" " * 9,
        width=80,
      )
      for title, key in (("time", "stages"), ("policy", "policy"))
      if summary[key]
    ),
  ]


@contextlib.contextmanager
def profiler(
  folder: pathlib.Path, steps: tuple[int, int] | None
) -> Iterator[Callable[[int, int], None]]:
  """Writes a trace of the calls that do some of the iterations of `steps`.

  Args:
    folder: of the trace.
    steps: the first and the last iteration; None: no trace.

  Yields:
    What is told the first and the last iteration of the next call.
  """
  running = False

  def before(first: int, last: int) -> None:
    nonlocal running
    wanted = bool(steps) and first <= steps[1] and steps[0] <= last
    if wanted and not running:
      jax.profiler.start_trace(str(folder))
    if running and not wanted:
      jax.profiler.stop_trace()
    running = wanted

  try:
    yield before
  finally:
    if running:
      jax.profiler.stop_trace()
