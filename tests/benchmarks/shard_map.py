"""Training by `jax.pmap` and by `jit(shard_map)`: equal bit for bit? as fast?

  python tests/benchmarks/shard_map.py

The engine of tests/benchmarks/train_throughput.py with one seed, whose users
two fake CPU devices share. Both programs start from the same state; the states
after one call are compared bit for bit, then both are timed by turns. Prints
a table, then one line of JSON.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import numpy as np
import train_throughput
from jax.sharding import Mesh, PartitionSpec

from hsrl_jax.engine import parallel


def mapped(run: Callable) -> Callable:
  """`parallel.over_devices` of shared users, by `jit(shard_map)`."""
  mesh = Mesh(jax.local_devices(), (parallel.AXIS,))
  everywhere, split = PartitionSpec(), PartitionSpec(parallel.AXIS)

  def of_device(learner, stream, inputs):
    # A shard keeps the axis of devices, with a single entry; pmap drops it.
    stream = jax.tree.map(lambda x: x[0], stream)
    learner, stream, metrics = parallel.over_seeds(run)(
      learner, stream, inputs, parallel.AXIS
    )
    return learner, jax.tree.map(lambda x: x[None], stream), metrics

  specs = (everywhere, split, everywhere)
  return jax.jit(
    jax.shard_map(
      of_device, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False
    ),
    donate_argnums=(0, 1),
  )


def words(state) -> list[np.ndarray]:
  """The leaves of a state, with keys as the words they are."""

  def of_leaf(x):
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.array(jax.random.key_data(x) if is_key else x)

  return [of_leaf(x) for x in jax.tree.leaves(state)]


def main(calls: int) -> None:
  """Compiles both programs, compares their results, times them by turns."""
  whole = train_throughput.configure(seeds=(0,))
  config = whole.train
  engine, inputs, _ = train_throughput.problem(9_066, whole)
  layout = parallel.layout(1)
  programs = {
    "pmap": parallel.over_devices(engine.run, layout),
    "shard_map": mapped(engine.run),
  }
  states, after, first, rates = {}, {}, {}, {name: [] for name in programs}
  for name, run in programs.items():
    start = parallel.init(engine.init, config.seeds, inputs, layout)
    learner, stream, placed = parallel.place(*start, inputs, layout)
    began = time.perf_counter()
    result = jax.block_until_ready(run(learner, stream, placed))
    first[name] = time.perf_counter() - began
    after[name], states[name] = words(result), (*result[:2], placed)
  for _ in range(calls):
    for name, run in programs.items():
      learner, stream, placed = states[name]
      began = time.perf_counter()
      result = jax.block_until_ready(run(learner, stream, placed))
      seconds = time.perf_counter() - began
      rates[name].append(config.iterations_per_call / seconds)
      states[name] = (*result[:2], placed)

  equal = [
    x.tobytes() == y.tobytes()
    for x, y in zip(after["pmap"], after["shard_map"], strict=True)
  ]
  result = {
    "devices": layout.devices,
    "arrays": len(equal),
    "equal": sum(equal),
  }
  for name in programs:
    result[f"{name}_iterations_per_second"] = round(
      statistics.median(rates[name]), 1
    )
    result[f"{name}_iterations_per_second_max"] = round(max(rates[name]), 1)
    result[f"{name}_first_call_seconds"] = round(first[name], 1)
  train_throughput.show(result)


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--calls", type=int, default=7)
  main(**vars(parser.parse_args()))
