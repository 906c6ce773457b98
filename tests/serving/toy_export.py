"""A small policy, exported: for tests of what is served."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import serving, sid
from hsrl_jax.agents.base import Agent
from hsrl_jax.config import ExportConfig
from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import observed
from hsrl_jax.stages import export
from hsrl_jax.types import Observation
from tests import toy

ROOM, SEEN, SHOWN = 48, 5, 8
LEVELS, VOCAB, WIDTH = 2, 8, 7
RANGES = {"profile": (-4.0, 4.0), "reward": (-0.5, 3.0)}
ON_POLICY = {"recipe": "on_policy", "segment": 4, "minibatches": 2}


class Exported(NamedTuple):
  """An export, and the policy that it is of.

  Attributes:
    manifest: of the folder.
    agent: the live one.
    params: of the agent.
    catalogue: the served one, with room for ROOM items.
  """

  manifest: folder_lib.Manifest
  agent: Agent
  params: Any
  catalogue: serving.ServedCatalogue

  def live(self, catalogue, history, profile, seen):
    """Items and log pi of the live agent for rows of one user each.

    Args:
      catalogue: the served one.
      history: int [n, H].
      profile: float [n, P].
      seen: int [n, T].
    """
    items, params = for_agents(catalogue), jax.device_put(self.params)

    def one(profile, history, seen):
      return self.agent.act(
        params, items, Observation(profile, history), seen, None, 1.0
      )

    act = jax.jit(jax.vmap(one))(
      jnp.asarray(profile, jnp.float32), jnp.asarray(history), jnp.asarray(seen)
    )
    return np.asarray(act.slate), np.asarray(act.log_prob)


def for_agents(catalogue: serving.ServedCatalogue) -> Catalogue:
  """The same as the training side has it."""
  return Catalogue(
    jnp.asarray(catalogue.features),
    catalogue.index,
    jnp.asarray(catalogue.codebooks),
    None if catalogue.popularity is None else jnp.asarray(catalogue.popularity),
  )


def make(folder: pathlib.Path, salt: int = 1, **overrides) -> Exported:
  """Exports an agent of tests.toy to `folder`.

  Args:
    folder: is written.
    salt: makes other parameters.
    **overrides: see `toy.config`; `platforms`, `seen` and `repeat` of the
      export; `tags` of the catalogue.
  """
  size = overrides.pop("seen", SEEN)
  repeat = overrides.pop("repeat", True)
  platforms = overrides.pop("platforms", ("cpu",))
  tags = overrides.pop("tags", None)
  config = toy.config(**overrides)
  agent = toy.agent(config)
  rng = np.random.default_rng(0)
  numbers = rng.permutation(VOCAB**LEVELS)[: toy.ITEMS]
  tokens = np.stack(np.unravel_index(numbers, (VOCAB,) * LEVELS), 1)
  features = rng.normal(size=(toy.ITEMS + 1, WIDTH)).astype(np.float32)
  features[0] = 0
  popularity = np.arange(toy.ITEMS + 1, dtype=np.float32) % 7
  catalogue = serving.make_catalogue(
    sid.build_index(tokens, VOCAB),
    rng.normal(size=(LEVELS, VOCAB, WIDTH)).astype(np.float32),
    features,
    ["", *(f"id-{i}" for i in range(1, toy.ITEMS + 1))],
    ["", *(f"Título {i}" for i in range(1, toy.ITEMS + 1))],
    capacity=ROOM,
    popularity=popularity if agent.reads_popularity else None,
    tags=tags,
  )
  sees_shown = config.train.on_policy
  user = observed.start(
    np.zeros(toy.GROUPS, np.float32),
    np.ones(toy.HISTORY, np.int32),
    SHOWN if sees_shown else 0,
  )
  shapes = jax.eval_shape(
    agent.init, jax.random.key(0), for_agents(catalogue), user
  )
  rng = np.random.default_rng(salt)
  params = jax.tree.map(
    lambda x: 0.5 * rng.normal(size=x.shape).astype(np.float32), shapes
  )
  manifest = export.write(
    folder,
    agent,
    params,
    catalogue,
    user,
    ExportConfig(batch_sizes=(1, 4), platforms=platforms, repeat=repeat),
    slate_size=toy.SLATE,
    seen=size,
    ranges=RANGES,
    about={},
  )
  return Exported(manifest, agent, params, catalogue)


def requests(count: int, seed: int = 0):
  """History, profile and seen of so many users, of unequal lengths."""
  rng = np.random.default_rng(seed)
  ids = np.arange(1, toy.ITEMS + 1)
  # The first has no history, the second more than fits.
  lengths = np.resize([0, toy.HISTORY + 3, 1, 4, toy.HISTORY], count)
  history = [rng.choice(ids, n).tolist() for n in lengths]
  profile = rng.normal(size=(count, toy.GROUPS)).tolist()
  seen = [
    rng.choice(ids, n, replace=False).tolist()
    for n in np.resize([SEEN, 0, 2], count)
  ]
  return history, profile, seen


def padded(history, profile, seen):
  """The same as arrays, by the definition of left padding."""
  left = [([0] * toy.HISTORY + row)[-toy.HISTORY :] for row in history]
  right = [(row + [0] * SEEN)[:SEEN] for row in seen]
  return np.array(left), np.array(profile, np.float32), np.array(right)
