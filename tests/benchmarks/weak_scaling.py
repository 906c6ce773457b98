"""What more devices cost, each with as many users as one alone has.

  python tests/benchmarks/weak_scaling.py

HSRL at the sizes of the paper's code but for 8 users and a batch of 16 on each
device and 1,000 items, on 1, 2 and 4 fake devices of one process and on two
processes of two. The same mapped program is timed as it is and without its
all-reduce, call by call in turn, all devices starting together: what it takes
less is the share of the collective, waiting for the slowest device included.
With more devices than cores they take turns. Prints a table, then one line of
JSON; takes about two minutes on two cores.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
from jax.experimental import multihost_utils
from train_throughput import configure, problem

from hsrl_jax.engine import parallel
from hsrl_jax.engine.processes import start

USERS, ITEMS, ITERATIONS, CALLS = 8, 1_000, 20, 9
CASES = ((1, 1), (1, 2), (1, 4), (2, 2))  # Processes, devices of each.


def work(coordinator: str, processes: int, process: int) -> None:
  """One process of a case; the first prints its row as JSON."""
  if processes > 1:
    start(coordinator, processes, process)
  layout = parallel.layout(1)
  users = USERS * layout.devices
  config = configure(
    layers=2,
    users=users,
    batch_size=2 * users,
    buffer_size=100 * users,
    iterations_per_call=ITERATIONS,
    iterations=10_000,
    curve_every=10_000,
    save_every=10_000,
  )
  engine, inputs, _ = problem(ITEMS, config)
  runs = {
    "with": engine.run,
    "without": lambda learner, stream, inputs, axis_name=None: engine.run(
      learner, stream, inputs
    ),
  }
  mapped, states, seconds = {}, {}, {name: [] for name in runs}
  for name, run in runs.items():
    state = parallel.init(engine.init, config.train.seeds, inputs, layout)
    *states[name], placed = parallel.place(*state, inputs, layout)
    mapped[name] = parallel.over_devices(run, layout)
  for call in range(CALLS + 1):
    for name in runs:
      multihost_utils.sync_global_devices(name)
      begin = time.perf_counter()
      *states[name], metrics = mapped[name](*states[name], placed)
      jax.block_until_ready((states[name], metrics))
      if call:  # The first one compiles.
        seconds[name].append(time.perf_counter() - begin)
  took = {k: statistics.median(v) / ITERATIONS for k, v in seconds.items()}
  row = {
    "processes": processes,
    "devices": layout.devices,
    "users": users,
    "iteration_ms": round(1e3 * took["with"], 2),
    "without_collective_ms": round(1e3 * took["without"], 2),
    "share_in_collective": round(1 - took["without"] / took["with"], 3),
    "users_per_second": round(users / took["with"]),
  }
  if process == 0:
    print("ROW " + json.dumps(row), flush=True)


def measure(processes: int, devices: int) -> dict:
  """The row of a case."""
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  flags = f"--xla_force_host_platform_device_count={devices}"
  running = [
    subprocess.Popen(
      [sys.executable, __file__, f"127.0.0.1:{port}", str(processes), str(i)],
      env=os.environ | {"XLA_FLAGS": flags},
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]
  out = [x.communicate()[0] for x in running][0]
  (line,) = [x for x in out.splitlines() if x.startswith("ROW ")]
  return json.loads(line.removeprefix("ROW "))


def main() -> None:
  """Measures every case and prints them."""
  rows = []
  for case in CASES:
    rows.append(row := measure(*case))
    if len(rows) == 1:
      print("  ".join(row))
    line = "  ".join(f"{value:>{len(name)}}" for name, value in row.items())
    print(line, flush=True)
  cores = len(os.sched_getaffinity(0))
  print(json.dumps({"cores": cores, "load": os.getloadavg()[0], "rows": rows}))


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("worker", nargs="*", help="for its own processes")
  given = parser.parse_args().worker
  if given:
    work(given[0], *map(int, given[1:]))
  else:
    main()
