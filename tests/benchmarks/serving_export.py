"""Exports for the benchmarks of serving: random SIDs, an untrained policy."""

import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import agents, serving, sid
from hsrl_jax.config import Config, ExportConfig, QuantizerConfig
from hsrl_jax.ops import tree
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.stages import export
from hsrl_jax.types import Observation

LEVELS, VOCAB, FEATURES, HISTORY, PROFILE = 3, 256, 16, 50, 8
SLATE, SEEN = 10, 200


class Live(NamedTuple):
  """What was exported, before.

  Attributes:
    policy: its parameters by name.
    function: of parameters, catalogue and requests.
    every_item: the same by scoring each item.
  """

  policy: dict[str, np.ndarray]
  function: Callable
  every_item: Callable


def write(
  folder: pathlib.Path,
  items: int,
  batch_sizes=(8,),
  **overrides,
) -> Live:
  """Writes an export with 50 beams, d 32, 2 layers.

  Args:
    folder: of the export.
    items: in the catalogue, which has room for one in 100 more.
    batch_sizes: of the export.
    **overrides: see `agents.configure`.
  """
  rng = np.random.default_rng(0)
  numbers = rng.permutation(VOCAB**LEVELS)[:items]
  tokens = np.stack(np.unravel_index(numbers, (VOCAB,) * LEVELS), 1)
  codebooks = rng.normal(size=(LEVELS, VOCAB, FEATURES)).astype(np.float32)
  features = np.asarray(sid.reconstruct(codebooks, tokens))
  features = features + 0.1 * rng.normal(size=features.shape)
  features = np.concatenate([np.zeros((1, FEATURES)), features])
  catalogue = serving.make_catalogue(
    sid.build_index(tokens, VOCAB),
    codebooks,
    features.astype(np.float32),
    ["", *map(str, range(1, items + 1))],
    ["", *(f"Item number {i}" for i in range(1, items + 1))],
    capacity=items + items // 100,
  )
  config = agents.configure(
    Config(quantizer=QuantizerConfig(LEVELS, VOCAB)),
    agents.DEFAULT,
    **{"layers": 2} | overrides,
  )
  agent = agents.make_agent(config, SLATE, items)
  user = Observation(jnp.zeros(PROFILE), jnp.ones(HISTORY, jnp.int32))
  live = Catalogue(
    jnp.asarray(catalogue.features), catalogue.index, jnp.asarray(codebooks)
  )
  params = jax.jit(agent.init)(jax.random.key(0), live, user)
  params = jax.tree.map(
    lambda x: x + 0.3 * jnp.sin(1.0 + jnp.arange(x.size)).reshape(x.shape),
    params,
  )
  function = export.decoder(agent, params, catalogue)
  export.write(
    folder,
    agent,
    params,
    catalogue,
    user,
    ExportConfig(batch_sizes=batch_sizes),
    slate_size=SLATE,
    seen=SEEN,
    ranges={"profile": (-4.0, 4.0), "reward": (0.0, SLATE)},
    about={},
  )
  scoring = agents.make_agent(config, SLATE, items=1)
  every_item = export.decoder(scoring, params, catalogue)
  return Live(tree.by_name(params), function, every_item)


def request(rng: np.random.Generator, items: int) -> dict[str, list]:
  """A request with a long history and some items that were seen."""
  return {
    "history": rng.integers(1, items + 1, HISTORY).tolist(),
    "profile": rng.normal(size=PROFILE).round(3).tolist(),
    "seen": rng.integers(1, items + 1, 20).tolist(),
  }
