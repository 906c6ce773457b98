"""What the compiler of TPUs says of our programs, for one v5e chip, on a CPU.

  python -m pip install -e ".[tpu]"
  python tests/benchmarks/tpu_estimates.py [--only=search_1e6_b32_ms]

Estimates of the compiler at 1.5 GHz, no measurements: lower bounds, since it
writes gathers, scatters and transfers as 0 cycles. In milliseconds: an
iteration of on-policy HSRL at the sizes of SARDINE's flagfile, and of replayed
HSRL at those of MovieLens-latest-small; a step of the simulator for 4,096
users; the best of 10^6 items for 32 users by beam search (V 256, L 3, 50
beams); a pass of the quantizer's k-means over 10^6 x 64 (V 256). Prints a table
with the loops that take longest, then one line of JSON; takes ten
minutes of one core.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import beam_search
import index
import jax
import jax.numpy as jnp
import numpy as np
import train_throughput
from jax.sharding import SingleDeviceSharding

from hsrl_jax import agents, environments, settings, sid
from hsrl_jax.config import Config
from hsrl_jax.engine import core, loop, parallel
from hsrl_jax.host import tpu
from hsrl_jax.sid import kmeans
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import user_simulator

FLAGS = pathlib.Path(__file__).parents[2] / "launch" / "flags"
SARDINE = FLAGS / "worlds" / "sardine_bored.flags"
SMALL = FLAGS / "movielens_small.flags"
SLOWEST = 3


class Program(NamedTuple):
  """What is compiled: a function of arrays, and parts of it that are counted.

  Attributes:
    function: of the arguments.
    arguments: pytrees of arrays, or of their shapes.
    parts: iterations of a call.
  """

  function: Callable
  arguments: tuple[Any, ...]
  parts: int = 1


@functools.cache
def chip() -> tpu.Topology:
  """One chip that is not there."""
  return tpu.describe("v5e-1")


def estimate(function: Callable, *arguments: Any) -> tpu.Estimate:
  """Compiles for one chip.

  Args:
    function: what to compile.
    *arguments: pytrees of arrays, or of their shapes.
  """
  where = SingleDeviceSharding(chip().devices[0])

  def shape(x):
    x = x if hasattr(x, "dtype") else np.asarray(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  given = jax.tree.map(shape, arguments)
  return tpu.compiled(jax.jit(function).lower(*given), chip())


def of_flagfile(path: pathlib.Path, **changes: str) -> Config:
  """The configuration of a flagfile, with other values of some flags."""
  lines = path.read_text().splitlines()
  texts = dict(x[2:].split("=", 1) for x in lines if x.startswith("--"))
  del texts["workdir"]
  return settings.of_texts(path, texts | changes)


def training(config: Config, env, inputs: core.Inputs) -> Program:
  """A call of the loop, as one chip that is not there would run it."""
  items = inputs.catalogue.index.num_items
  agent = agents.make_agent(config, env.slate_size, items)
  engine = loop.make(agent, env, config.train)
  state = parallel.shapes(engine.init, config.train.seeds, inputs)
  run = parallel.over_seeds(engine.run, "tpu")
  return Program(run, (*state, inputs), config.train.iterations_per_call)


def on_policy(config: Config | None = None) -> Program:
  """On-policy HSRL in SARDINE, whose items see their topics."""
  config = config or of_flagfile(SARDINE)
  env, users = environments.sardine(
    config.simulator.world, observed_items=user_simulator.OBSERVED
  )
  vectors, topics = np.asarray(users.response.vectors), users.topics - 1
  features = np.concatenate([vectors, jax.nn.one_hot(topics, 10)], 1)
  sizes = config.quantizer.levels, config.quantizer.vocab_size
  levels, vocab = sizes
  numbers = np.random.default_rng(0).permutation(vocab**levels)
  tokens = np.unravel_index(numbers[: len(vectors) - 1], (vocab,) * levels)
  catalogue = Catalogue(
    jnp.asarray(features, jnp.float32),
    sid.build_index(np.stack(tokens, 1), vocab),
    jnp.zeros((*sizes, features.shape[1])),
  )
  return training(config, env, core.Inputs(catalogue, users))


def replayed(config: Config | None = None, items: int = 9_066) -> Program:
  """HSRL by replay with SIDs of three tokens, random items and users."""
  env, catalogue, users, _ = train_throughput.world(items)
  changes = {"sid_levels": "3", "seeds": "0", "buffer_size": "32000"}
  config = config or of_flagfile(SMALL, **changes)
  return training(config, env, core.Inputs(catalogue, users))


def simulator(users: int = 4_096, items: int = 9_066) -> Program:
  """A step of many users, to none of whom an item is shown twice."""
  env, _, pool, _ = train_throughput.world(items)
  env = env.exploring()
  keys = jax.random.split(jax.random.key(0), users)
  state = jax.eval_shape(jax.vmap(env.reset, (0, None)), keys, pool)
  slates = np.ones((users, env.slate_size), np.int32)
  step = jax.vmap(env.step_or_reset, (0, 0, 0, None))
  return Program(step, (keys, state, slates, pool))


def search(items: int = 10**6, users: int = 32) -> Program:
  """The best items of many users."""
  levels, vocab = beam_search.LEVELS, beam_search.VOCAB
  tokens = index.random_tokens(np.random.default_rng(0), items)
  rows = np.zeros((users, levels, vocab), np.float32)
  table = np.zeros((levels, vocab, vocab), np.float32)
  made = sid.build_index(tokens, vocab)
  return Program(beam_search.constrained, (made, rows, table))


def kmeans_pass(
  rows: int = 10**6, vocab: int = 256, width: int = 64
) -> Program:
  """Sums of the rows nearest to each code, all rows once."""
  mesh = kmeans.lane_mesh([chip().devices[0]])
  shape = kmeans.block_shape(rows, vocab, mesh)
  add = functools.partial(kmeans._sum_rows, rows=rows, mesh=mesh)
  codes, block = (
    jax.ShapeDtypeStruct((*x, width), jnp.float32) for x in ((vocab,), shape)
  )
  return Program(add, (codes, block))


PROGRAMS = {
  "on_policy_ms": on_policy,
  "replay_ms": replayed,
  "simulator_4096_ms": simulator,
  "search_1e6_b32_ms": search,
  "kmeans_pass_1e6_ms": kmeans_pass,
}


def main(only: str | None) -> None:
  """Compiles and prints."""
  kind = chip().devices[0].device_kind
  result = {"estimate": f"by the compiler, {kind}"}
  for name, make in PROGRAMS.items():
    if only in (None, name):
      function, arguments, parts = make()
      said = estimate(function, *arguments)
      result[name] = float(f"{said.milliseconds / parts:.4g}")
      mebibytes = said.memory["temporaries"] / 2**20
      print(f"{name:20} {result[name]:10} ms {mebibytes:10.1f} MiB beside")
      loops = sorted(said.loops, key=lambda x: -x.cycles)[:SLOWEST]
      for trips, operation, cycles in loops:
        took = cycles / chip().clock
        print(f"  {took:.4g} ms in {trips} trips: {operation}", flush=True)
  result |= {"jax": jax.__version__, "libtpu": tpu.version()}
  print(json.dumps(result))


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--only", choices=PROGRAMS)
  jax.config.update("jax_platforms", "cpu")
  main(**vars(parser.parse_args()))
