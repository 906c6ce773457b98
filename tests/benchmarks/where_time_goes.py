"""Where the time of a training iteration goes, on a CPU.

  python tests/benchmarks/where_time_goes.py
  python tests/benchmarks/where_time_goes.py --agent=a2c

The training of train_throughput.py under JAX's profiler. Each program that the
compiler made runs in one or more threads; its seconds are added up over the
threads and belong to the part of the iteration that its name in the compiled
code tells. Prints a table, then one line of JSON.
"""

import argparse
import collections
import glob
import re
import tempfile
import time

import jax
import train_throughput

from hsrl_jax.engine import core, parallel

ITEMS, LAYERS, CALLS = 9_066, 2, 2
DISPATCH, REST = "dispatch", "rest"
_OP = re.compile(
  r"^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{op_name=\"([^\"]*)"
)
# A whole name of a path: dynamic_update_slice is no update.
_PHASE = re.compile(rf"[/(]({'|'.join(core.PHASES)})[/)]")
_EXECUTOR = "ThunkExecutor::Execute"


def main(agent: str) -> None:
  """Compiles, runs and traces some calls, prints where their time went."""
  whole = train_throughput.configure(agent, layers=LAYERS)
  engine, inputs, _ = train_throughput.problem(ITEMS, whole)
  layout = parallel.layout(1)
  seeds = whole.train.seeds[:1]
  learner, stream = parallel.init(engine.init, seeds, inputs, layout)
  given = parallel.place(learner, stream, inputs, layout)
  given = [own for (own,) in given]  # Of the only device.
  run = parallel.of_group(engine.run).lower(*given).compile()
  *state, metrics = run(*given)
  jax.block_until_ready(metrics)
  options = jax.profiler.ProfileOptions()
  options.host_tracer_level = 3  # Each program of the compiler, on a CPU.
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      start = time.perf_counter()
      for _ in range(CALLS):
        *state, metrics = run(*state, given[-1])
        jax.block_until_ready(metrics)
      seconds = time.perf_counter() - start
    spent = _spent(folder, _parts(run.as_text()))
  each = 1e3 / (CALLS * whole.train.iterations_per_call)
  milliseconds = {f"{x}_ms": round(y * each, 2) for x, y in spent.items()}
  train_throughput.show(
    {
      "agent": agent,
      **milliseconds,
      "all_threads_ms": round(sum(spent.values()) * each, 2),
      "clock_ms": round(seconds * each, 2),
    }
  )


def _parts(compiled: str) -> dict[str, str]:
  """The part of the iteration of each program, by its name."""
  parts = {}
  for line in compiled.splitlines():
    match = _OP.match(line)
    if match:
      phase = _PHASE.search(match[2])
      parts[match[1]] = phase[1] if phase else REST
  return parts


def _spent(folder: str, parts: dict[str, str]) -> dict[str, float]:
  """Seconds of all threads in each part, without what is within."""
  (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
  spent = collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(path).planes:
    for line in plane.lines:
      if "XLA" in line.name:
        _add(spent, list(line.events), parts)
  order = (*core.PHASES, DISPATCH, REST)
  return {x: spent[x] / 1e9 for x in order}


def _add(spent, events, parts) -> None:
  """Adds the nanoseconds of a thread's events, each without those within."""
  outer = []
  for event in sorted(events, key=lambda x: (x.start_ns, -x.duration_ns)):
    while outer and outer[-1][1] <= event.start_ns:
      outer.pop()
    if event.name.startswith(_EXECUTOR):
      part = DISPATCH
      if "wait" in event.name:  # For other threads, which are counted.
        part = None
    else:
      part = parts.get(event.name, REST)
    spent[part] += event.duration_ns
    if outer:
      spent[outer[-1][0]] -= event.duration_ns
    outer.append((part, event.start_ns + event.duration_ns))


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument(
    "--agent", default="hsrl", choices=train_throughput.TRAINED
  )
  main(**vars(parser.parse_args()))
