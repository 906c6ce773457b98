"""Metrics of a run: one JSON line a step, and TensorBoard events."""

import json
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from hsrl_jax import files

METRICS = "metrics.jsonl"


class MetricsWriter:
  """Writes `metrics.jsonl` and TensorBoard events into a stage's folder,
  as a context manager.

  Opened at a step, it first drops what was written beyond it, so that a
  resumed run leaves the same file as one that was never stopped. A line is on
  the disk, whole, when `write` returns.
  """

  def __init__(self, folder: pathlib.Path, step: int, axis: str = "step"):
    """Opens the folder's files; `axis` names the first field of each line."""
    self._axis = axis
    path = folder / METRICS
    kept = ""
    if path.exists():
      for line in path.read_text().splitlines(keepends=True):
        # A line without its end was cut by a crash.
        if line.endswith("\n") and json.loads(line)[axis] <= step:
          kept += line
    files.write_atomic(path, kept)
    self._file = path.open("ab", buffering=0)
    events = folder / "events"
    events.mkdir(exist_ok=True)
    # Not SummaryWriter: its thread dies of a full disk, and the run then hangs.
    self._events = EventsWriter(str(events / "events"), f".{os.getpid()}")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._event(step + 1, session_log=start)

  def write(
    self,
    step: int,
    values: dict[str, Any],
    counts: dict[str, np.ndarray] | None = None,
  ) -> None:
    """Writes one line; numbers, and those in nested dicts, become scalars.

    Args:
      step: of the line.
      values: what JSON can hold.
      counts: name to how often 0, 1, ... occurred: histograms for TensorBoard
        alone.
    """
    line = (json.dumps({self._axis: step, **values}) + "\n").encode()
    end = self._file.seek(0, os.SEEK_END)
    try:
      while line:
        line = line[self._file.write(line) :]
      os.fsync(self._file.fileno())
    except OSError as error:
      self._file.truncate(end)
      error.filename = self._file.name
      raise
    for name, value in _scalars("", values):
      self._event(step, summary=summary.scalar(name, value))
    for name, count in (counts or {}).items():
      self._event(step, summary=_histogram(name, count))
    self._events.flush()

  def _event(self, step: int, **content) -> None:
    self._events.write_event(
      event_pb2.Event(wall_time=time.time(), step=step, **content)
    )

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *error) -> None:
    self._file.close()
    self._events.close()


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a stage's `metrics.jsonl`."""
  lines = (folder / METRICS).read_text().splitlines()
  return [json.loads(line) for line in lines]


def seed_means(measured: dict[str, jax.Array]) -> dict[str, float]:
  """Means over the seeds, [S]; reading them waits for the device."""
  host = jax.device_get(measured)
  return {name: float(np.mean(value)) for name, value in host.items()}


def _scalars(prefix: str, values: dict[str, Any]):
  for name, value in values.items():
    if isinstance(value, dict):
      yield from _scalars(f"{prefix}{name}/", value)
    elif isinstance(value, int | float):
      yield prefix + name, value


def _histogram(name: str, counts: np.ndarray):
  values, n = np.arange(len(counts)), int(counts.sum())
  used = np.flatnonzero(counts)
  return summary.histogram_raw(
    name,
    min=used.min(initial=len(counts)),
    max=used.max(initial=0),
    num=n,
    sum=values @ counts,
    sum_squares=values**2 @ counts,
    bucket_limits=values + 0.5,
    bucket_counts=counts,
  )
