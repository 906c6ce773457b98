r"""Training speed at the sizes of the paper's code, on the machine at hand.

  python tests/benchmarks/train_throughput.py
  python tests/benchmarks/train_throughput.py --items=200000
  python tests/benchmarks/train_throughput.py --agent=a2c --layers=1
  JAX_NUM_CPU_DEVICES=1 python tests/benchmarks/train_throughput.py

32 users, batch 64, history 50, d 32, 2 layers, dropout 0.1, critic 256-64,
buffer 100k, 9,066 items with random features and SIDs (V 64, L 3), slates of
10; from 10^5 items on HSRL searches them. Prints a table, then one line of
JSON. For comparison, iterations/s of the public PyTorch code on two cores at
these sizes: HSRL 4.6, A2C 4.6, DDPG 6.6, HAC 4.8.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import time
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import agents, sid
from hsrl_jax.config import Config, QuantizerConfig, SimulatorConfig
from hsrl_jax.engine import core, loop, parallel, replayed
from hsrl_jax.host import speed
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import click_model, user_simulator
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.stages import policy
from hsrl_jax.types import Sessions

FEATURES, PROFILE, USERS, HISTORY, SLATE = 31, 22, 1_000, 50, 10
LEVELS, VOCAB = 3, 64
CALLS = 7
TRAINED = [x for x in agents.AGENTS if x not in ("random", "popularity")]


class World(NamedTuple):
  """Made-up items, users and logs of the sizes above."""

  env: UserSimulator
  catalogue: Catalogue
  users: EnvParams
  logs: Sessions


def world(items: int) -> World:
  """All of it at random."""
  rng = np.random.default_rng(0)
  features = rng.normal(size=(items + 1, FEATURES)).astype(np.float32)
  features[0] = 0
  codes = rng.permutation(VOCAB**LEVELS)[:items]
  tokens = np.stack(np.unravel_index(codes, (VOCAB,) * LEVELS), 1)
  codebooks = rng.normal(size=(LEVELS, VOCAB, FEATURES)).astype(np.float32)
  catalogue = Catalogue(
    jnp.asarray(features),
    sid.build_index(tokens, VOCAB),
    jnp.asarray(codebooks),
  )
  histories = rng.integers(1, items + 1, (USERS, HISTORY)).astype(np.int32)
  profiles = rng.normal(size=(USERS, PROFILE)).astype(np.float32)
  env_config = SimulatorConfig()
  network = click_model.make_network(env_config).init(
    jax.random.key(0), features, profiles[0], histories[0], histories[0]
  )
  response = click_model.ResponseParams(network, jnp.asarray(features))
  shown = rng.integers(1, items + 1, (USERS, SLATE)).astype(np.int32)
  return World(
    user_simulator.make(env_config, SLATE),
    catalogue,
    EnvParams(response, jnp.asarray(profiles), jnp.asarray(histories)),
    Sessions(np.arange(USERS), profiles, histories, shown, 1.0 * (shown % 2)),
  )


def configure(agent: str = agents.DEFAULT, **values) -> Config:
  """A configuration of the sizes above; see `agents.configure`."""
  base = Config(quantizer=QuantizerConfig(LEVELS, VOCAB))
  return agents.configure(base, agent, **values)


def problem(items: int, config: Config) -> tuple[loop.Engine, core.Inputs, str]:
  """The engine in a simulator of random items and users, and how it acts."""
  env, catalogue, users, logs = world(items)
  agent = agents.make_agent(config, SLATE, items)
  inputs = core.Inputs(catalogue, users, replayed.logged(logs, env.reward))
  how = policy.acting(agent, catalogue.index)
  return loop.make(agent, env, config.train), inputs, how


def show(result: dict[str, Any]) -> None:
  """Prints what was measured, and where, as a table and as a line of JSON."""
  result = result | {
    "cores": len(os.sched_getaffinity(0)),
    "device": jax.devices()[0].device_kind,
  }
  for name, value in result.items():
    print(f"{name:28} {value}")
  print(json.dumps(result))


class Speed(NamedTuple):
  """How fast a configuration trains.

  Attributes:
    rates: iterations/s of each call after the first.
    first_seconds: of the first call, which compiles.
    acting: how slates are chosen.
    training: see `speed.of_training`, by the median of the rates.
  """

  rates: list[float]
  first_seconds: float
  acting: str
  training: dict[str, float]


def measured(items: int, whole: Config, calls: int = CALLS) -> Speed:
  """Trains for some calls of the device."""
  engine, inputs, how = problem(items, whole)
  config = whole.train
  layout = parallel.layout(len(config.seeds))
  learner, stream = parallel.init(engine.init, config.seeds, inputs, layout)
  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (learner, stream)
  )
  given = (engine.run, (*state, inputs), len(config.seeds))
  learner, stream, inputs = parallel.place(learner, stream, inputs, layout)
  run = parallel.over_devices(engine.run, layout)
  seconds = []
  for _ in range(calls + 1):
    start = time.perf_counter()
    learner, stream, metrics = run(learner, stream, inputs)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - start)
  rates = [config.iterations_per_call / x for x in seconds[1:]]
  training = speed.of_training(
    *given,
    config.iterations_per_call,
    len(config.seeds) * config.users,
    statistics.median(rates),
  )
  return Speed(rates, seconds[0], how, training)


def main(items: int, agent: str, layers: int) -> None:
  """Compiles the step, runs it, prints what it took."""
  whole = configure(agent, layers=layers)
  parallel.use_cores(whole.train)
  rates, first_seconds, how, training = measured(items, whole)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  result = {
    "agent": agent,
    "layers": layers,
    "items": items,
    "acting": how,
    "iterations_per_second": round(statistics.median(rates), 1),
    "iterations_per_second_min": round(min(rates), 1),
    "iterations_per_second_max": round(max(rates), 1),
    "gflop_per_iteration": round(training["gflop_per_iteration"], 3),
    "utilisation": round(training["utilisation"], 3),
    "compile_seconds": round(
      first_seconds
      - whole.train.iterations_per_call / statistics.median(rates),
      1,
    ),
    "peak_rss_mib": round(peak),
    "devices": jax.local_device_count(),
  }
  show(result)


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--items", type=int, default=9_066)
  parser.add_argument("--agent", default="hsrl", choices=TRAINED)
  parser.add_argument("--layers", type=int, default=2)
  main(**vars(parser.parse_args()))
