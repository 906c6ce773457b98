"""Metrics of a run: one JSON line a step, and TensorBoard events."""

import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
import tensorboardX

from hsrl_jax import files

METRICS = "metrics.jsonl"


class MetricsWriter:
  """Writes `metrics.jsonl` and TensorBoard events into a stage's folder,
  as a context manager.

  Opened at a step, it first drops what was written beyond it, so that a
  resumed run leaves the same file as one that was never stopped.
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
    self._file = path.open("a")
    self._events = tensorboardX.SummaryWriter(
      str(folder / "events"), purge_step=step + 1
    )

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Writes one line; numbers, and those in nested dicts, become scalars."""
    self._file.write(json.dumps({self._axis: step, **values}) + "\n")
    self._file.flush()
    for name, value in _scalars("", values):
      self._events.add_scalar(name, value, step)

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


def first_not_finite(values: dict[str, float]) -> str | None:
  """The name of the first value that is NaN or infinite, if any."""
  for name, value in values.items():
    if not math.isfinite(value):
      return name
  return None


def _scalars(prefix: str, values: dict[str, Any]):
  for name, value in values.items():
    if isinstance(value, dict):
      yield from _scalars(f"{prefix}{name}/", value)
    elif isinstance(value, int | float):
      yield prefix + name, value
