"""Compiles for a TPU that is not there, on a CPU, and reads what comes out.

The extra `tpu` brings the compiler, libtpu, which needs no TPU. It writes
beside each operation how many cycles that will take, and these are summed here,
the bodies of loops as often as they run. Gathers, scatters and the transfers
beside them are written as 0 cycles: the sums are lower bounds.
"""

import functools
import os
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

# Else libtpu asks a server that only TPU VMs have, and one process may use it.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

CHIP, CLOCK = "v5e:2x2", 1.5e6  # Cycles a millisecond.
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BOUND = re.compile(r" = [su]32\[\]\S* constant\((\d+)\)")
_BRANCHES = re.compile(
  r"(?:branch_computations=\{|(?:true|false)_computation=)([^}=]*)(?:[,}]|$)"
)
_NAME = re.compile(r'op_name="([^"]*)"')


class Loop(NamedTuple):
  """A `while` of a compiled program.

  Attributes:
    trips: each time; None where they are not known before it runs.
    name: of the operation in the traced program that it came from.
    cycles: of all its trips, and as often as it is run, as far as is known.
  """

  trips: int | None
  name: str
  cycles: int


class Estimate(NamedTuple):
  """What the compiler says of a program.

  Attributes:
    milliseconds: of a call.
    loops: all of them, the innermost first.
    temporaries: bytes beside arguments and results.
    text: the program.
  """

  milliseconds: float
  loops: list[Loop]
  temporaries: int
  text: str


def is_there() -> bool:
  """Whether the compiler is installed."""
  try:
    return bool(version())
  except metadata.PackageNotFoundError:
    return False


def version() -> str:
  """Of the compiler."""
  return metadata.version("libtpu")


@functools.cache
def device() -> jax.Device:
  """One chip that is not there."""
  described = topologies.get_topology_desc(platform="tpu", topology_name=CHIP)
  return described.devices[0]


def estimate(function: Callable, *arguments: Any) -> Estimate:
  """Compiles for one chip.

  Args:
    function: what to compile.
    *arguments: pytrees of arrays, or of their shapes.
  """
  chip = SingleDeviceSharding(device())

  def shape(x):
    x = x if hasattr(x, "dtype") else np.asarray(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip)

  program = jax.jit(function).lower(*jax.tree.map(shape, arguments)).compile()
  text = program.as_text()
  cycles, loops = read(text)
  temporaries = program.memory_analysis().temp_size_in_bytes
  return Estimate(cycles / CLOCK, loops, temporaries, text)


def read(text: str) -> tuple[int, list[Loop]]:
  """The cycles of a compiled program, and its loops."""
  loops = []
  return _cycles(_computations(text), "", 1, loops), loops


def _computations(text: str) -> dict[str, list[str]]:
  """The lines of each computation; "" names the first one that runs."""
  found, own = {}, []
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      own = found["" if head[1] else head[2]] = []
    elif line.startswith("  "):
      own.append(line)
  return found


def _cycles(
  computations: dict[str, list[str]], name: str, times: int, loops: list[Loop]
) -> int:
  """Cycles of so many runs of a computation; adds its loops to `loops`."""

  def of(called: str, times: int) -> int:
    return _cycles(computations, called, times, loops)

  total = 0
  for line in computations[name]:
    if " while(" in line:
      trips = _trips(computations, line)
      own = of(_called(line, "body"), times * (1 if trips is None else trips))
      operation = _NAME.search(line)
      loops.append(Loop(trips, operation[1] if operation else "", own))
      total += own
    elif " conditional(" in line:
      total += max(of(x, times) for x in _branches(line))
    elif " call(" in line:
      total += of(_called(line, "to_apply"), times)
    else:
      total += times * sum(map(int, _CYCLES.findall(line)))
  return total


def _called(line: str, by: str) -> str:
  return re.search(rf"{by}=%?([\w.\-]+)", line)[1]


def _branches(line: str) -> Iterator[str]:
  for names in _BRANCHES.findall(line):
    yield from (x.strip().lstrip("%") for x in names.split(","))


def _trips(computations: dict[str, list[str]], line: str) -> int | None:
  known = _TRIPS.search(line)
  if known:
    return int(known[1])
  condition = "\n".join(computations[_called(line, "condition")])
  bounds = _BOUND.findall(condition)
  return int(bounds[0]) if len(bounds) == 1 else None
