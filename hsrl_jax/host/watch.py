"""What a run costs, where its time goes, and which codes its policy uses."""

import contextlib
import pathlib
import resource
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from hsrl_jax.sid import SidIndex

_MIB = 2**20


class Watch:
  """Seconds by phase, of this process."""

  def __init__(self):
    self._laps: dict[str, list[float]] = {}

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
  memory = summary["memory"]
  return [
    f"memory:  at most {memory['peak_mib']:,.0f} MiB of {memory['of']}",
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


def code_usage(index: SidIndex, slates: list[np.ndarray]) -> np.ndarray:
  """How often each token was shown, int64 [L, V].

  Args:
    index: the items' SIDs.
    slates: ids of any shape; 0, for padding, does not count.
  """
  shown = np.concatenate([np.ravel(x) for x in slates])
  tokens = np.asarray(index.tokens)[shown[shown > 0]]
  return np.stack(
    [np.bincount(x, minlength=index.vocab_size) for x in tokens.T]
  )


def perplexity(counts: np.ndarray) -> float:
  """exp(entropy) of counts [V]: how many tokens, used alike, would be as many.

  At least one count is above 0.
  """
  p = counts[counts > 0] / counts.sum()
  return float(np.exp(-np.sum(p * np.log(p))))
