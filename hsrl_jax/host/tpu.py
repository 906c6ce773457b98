"""Compiles for TPUs that are not there, on a CPU, and reads what comes out.

The extra `tpu` brings the compiler, libtpu, which needs no TPU. It writes
beside each operation how many cycles that will take, and these are summed here,
the bodies of loops as often as they run. Gathers, scatters, sorts and the
transfers beside them are written as 0 cycles: the sums are lower bounds.
"""

import functools
import math
import os
import re
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from hsrl_jax.errors import InputError

# Sides of a topology by the number in the cloud's name: chips, or cores of v4.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}
_DEEP = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4"}
# Of each kind: topologies, cycles a millisecond, the compiler's mode.
_KINDS = {
  "v4": (_DEEP, 1.05e6, {"chip_config_name": "megacore"}),
  "v5e": (_FLAT, 1.5e6, {}),
  "v6e": (_FLAT, 1.75e6, {}),
}
# Chips of a host where they are not four in a square.
_HOSTS = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_WORKER_HOSTNAMES": "localhost",
}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BOUND = re.compile(r" = [su]32\[\]\S* constant\((\d+)\)")
_BRANCHES = re.compile(
  r"(?:branch_computations=\{|(?:true|false)_computation=)([^}=]*)(?:[,}]|$)"
)
_NAME = re.compile(r'op_name="([^"]*)"')
_RESULT = re.compile(r" = (.*?) ([\w\-]+)\(")
# Of HBM: what lies elsewhere has S(1) or the like behind its tiles.
_ARRAY = re.compile(
  r"\b(pred|[a-z]+(\d+))\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?"
)
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant"}
_AMOUNT = re.compile(r"\b([\d.]+)([KMGT])\b")


class Topology(NamedTuple):
  """Chips that are not there."""

  name: str  # As `describe` takes it.
  devices: tuple[jax.Device, ...]  # One a chip.
  clock: float  # Cycles a millisecond.

  @property
  def hosts(self) -> int:
    """How many machines the chips are in."""
    return len({x.process_index for x in self.devices})


class Loop(NamedTuple):
  """A `while` of a compiled program."""

  trips: int | None  # Each time; None where they are not known before it runs.
  name: str  # Of the operation in the traced program that it came from.
  # Of all its trips, and as often as it is run, as far as is known.
  cycles: int


class Operation(NamedTuple):
  """An operation that a chip does at once, such as a fusion."""

  name: str  # Of the operation in the traced program that it came from.
  cycles: int  # Of all its runs.
  result: str  # Its type, of the largest array where there are several.
  # Of that array in the chip's memory, as it is padded; 0 elsewhere.
  bytes: int


class Estimate(NamedTuple):
  """Time and memory of a program by the compiler, for each chip."""

  milliseconds: float  # Of a call.
  loops: list[Loop]  # All of them, the innermost first.
  # All others; of a branch those of the one that takes longest.
  operations: list[Operation]
  # Bytes of `arguments`, `results` elsewhere than in these, `temporaries` and
  # the `program`.
  memory: dict[str, int]
  text: str  # The program.


class OutOfMemoryError(Exception):
  """A program needs so many bytes, and a chip has so many."""


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
def describe(name: str) -> Topology:
  """The topology that the cloud calls so, such as v5e-16.

  Raises:
    InputError: there is none, or the compiler is not installed.
  """
  known = {f"{kind}-{n}": kind for kind in _KINDS for n in _KINDS[kind][0]}
  if name not in known:
    raise InputError(
      f"the topology {name!r} is unknown; expected one of {', '.join(known)}"
    )
  if not is_there():
    raise InputError(
      "the compiler of TPUs, libtpu, is not installed; expected the extra tpu: "
      'pip install -e ".[tpu]"'
    )
  # Else libtpu asks a server that only TPU VMs have, says so, and lets no other
  # process use it.
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  sizes, clock, mode = _KINDS[known[name]]
  sides = sizes[int(name.split("-")[1])]
  described = topologies.get_topology_desc(
    platform="tpu",
    topology_name=f"{known[name]}:{sides}",
    chips_per_host_bounds=_HOSTS.get(sides, (2, 2, 1)),
    **mode,
  )
  return Topology(name, tuple(described.devices), clock)


@functools.cache
def memory(topology: Topology) -> float:
  """Bytes of a chip that programs may use, as the compiler says it."""
  chip = SingleDeviceSharding(topology.devices[0])
  huge = jax.ShapeDtypeStruct((2**38,), np.float32, sharding=chip)
  try:
    compiled(jax.jit(lambda x: x + 1).lower(huge), topology)
  except OutOfMemoryError as error:
    return error.args[1]
  raise AssertionError("a TiB fits in a chip")


def compiled(lowered: jax.stages.Lowered, topology: Topology) -> Estimate:
  """Compiles what was lowered for a topology.

  Raises:
    OutOfMemoryError: it needs more memory than a chip has.
  """
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    amounts = [
      float(x) * 2 ** (10 * (1 + "KMGT".index(unit)))
      for x, unit in _AMOUNT.findall(text)
    ]
    if len(amounts) < 2 or not re.search(
      "RESOURCE_EXHAUSTED.* hbm", text, re.I
    ):
      raise
    raise OutOfMemoryError(*amounts[:2]) from error
  text, used = program.as_text(), program.memory_analysis()
  cycles, loops, operations = read(text)
  size = {
    "arguments": used.argument_size_in_bytes,
    "results": used.output_size_in_bytes - used.alias_size_in_bytes,
    "temporaries": used.temp_size_in_bytes,
    "program": used.generated_code_size_in_bytes,
  }
  return Estimate(cycles / topology.clock, loops, operations, size, text)


def read(text: str) -> tuple[int, list[Loop], list[Operation]]:
  """The cycles of a compiled program, its loops and its other operations."""
  loops, operations = [], []
  cycles = _cycles(_computations(text), "", 1, loops, operations)
  return cycles, loops, operations


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
  computations: dict[str, list[str]],
  name: str,
  times: int,
  loops: list[Loop],
  operations: list[Operation],
) -> int:
  """Cycles of so many runs of a computation; adds what it does to the lists."""

  def of(called: str, times: int) -> int:
    return _cycles(computations, called, times, loops, operations)

  total = 0
  for line in computations[name]:
    if " while(" in line:
      trips = _trips(computations, line)
      own = of(_called(line, "body"), times * (1 if trips is None else trips))
      loops.append(Loop(trips, _name(line), own))
      total += own
    elif " conditional(" in line:
      branches = []
      for called in _branches(line):
        own = []
        cycles = _cycles(computations, called, times, loops, own)
        branches.append((cycles, own))
      cycles, own = max(branches, key=lambda x: x[0])
      operations += own
      total += cycles
    elif " call(" in line:
      total += of(_called(line, "to_apply"), times)
    else:
      own = times * sum(map(int, _CYCLES.findall(line)))
      operations.append(Operation(_name(line), own, *_largest(line)))
      total += own
  return total


def _name(line: str) -> str:
  found = _NAME.search(line)
  return found[1] if found else ""


def _largest(line: str) -> tuple[str, int]:
  """The largest array that a line makes in the chip's memory, and its bytes."""
  found = _RESULT.search(line)
  if not found or found[2] in _FREE or found[2].endswith("-done"):
    return "", 0
  sizes = [(_bytes(*x.groups()), x[0]) for x in _ARRAY.finditer(found[1])]
  size, result = max(sizes, default=(0, ""))
  return result, size


def _bytes(
  kind: str, bits: str | None, sides: str, order: str | None, rest: str | None
) -> int:
  """Bytes of an array in a chip's memory, whose last sides fill whole tiles."""
  if "S(" in (rest or ""):
    return 0
  sides = [int(x) for x in sides.split(",") if x]
  tile = re.match(r"T\((\d+(?:,\d+)*)\)", rest or "")
  if tile and order:
    minor = map(int, order.split(","))
    for side, least in zip(minor, reversed(tile[1].split(",")), strict=False):
      sides[side] = -(-sides[side] // int(least)) * int(least)
  return math.prod(sides) * (8 if kind == "pred" else int(bits)) // 8


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
