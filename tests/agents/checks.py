"""Agents of the toy with made-up parameters, and their scores in NumPy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import agents, sid
from hsrl_jax.agents import base
from hsrl_jax.config import Config
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Observation, Params, Transition
from tests import toy

KEY = jax.random.key(0)
DRAWS = 20_000
NOTHING = jnp.zeros(0, jnp.int32)


class Made(NamedTuple):
  """An agent, and what its functions take."""

  config: Config
  agent: base.Agent
  params: Params
  catalogue: Catalogue
  observation: Observation


@functools.cache
def catalogue() -> Catalogue:
  """Items at random, with SIDs at random: no k-means is compiled."""
  rng = np.random.default_rng(0)
  numbers = rng.permutation(64)[: toy.ITEMS]
  tokens = np.stack([numbers // 8, numbers % 8], 1)
  codebooks = rng.normal(size=(2, 8, 7))
  # A SID loses something of an item's features.
  features = codebooks[0, tokens[:, 0]] + codebooks[1, tokens[:, 1]]
  features += 0.3 * rng.normal(size=features.shape)
  features = np.concatenate([np.zeros((1, 7)), features])
  # New items have no popularity; padding may not win.
  popularity = (7 * np.arange(toy.ITEMS + 1)) % 41
  popularity[0], popularity[-1] = 99, 0
  return Catalogue(
    jnp.asarray(features, jnp.float32),
    sid.build_index(tokens, 8),
    jnp.asarray(codebooks, jnp.float32),
    jnp.asarray(popularity, jnp.float32),
  )


def random_params(agent, observation, seed, items=None) -> Params:
  """Parameters of which none is where it begins; nothing is compiled.

  Args:
    agent: which has them.
    observation: of a user.
    seed: of the random numbers.
    items: a catalogue; None: the one of here.
  """
  items = items or catalogue()
  shapes = jax.eval_shape(agent.init, KEY, items, observation)
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes
  )


@functools.cache
def made(name: str, items: int = toy.ITEMS, **values) -> Made:
  """An agent of the toy without dropout; no parameter is where it begins.

  Args:
    name: of the agent.
    items: in training, see `agents.make_agent`.
    **values: see `toy.config`.
  """
  config = toy.config(name, **{"dropout": 0.0} | values)
  agent, users = agents.make_agent(config, toy.SLATE, items), toy.users()
  observation = Observation(users.profiles[3], users.histories[3])
  params = random_params(agent, observation, 1)
  return Made(config, agent, params, catalogue(), observation)


@functools.cache
def _sampler(agent: base.Agent):
  """A function that is compiled once for an agent."""

  def one(key, params, catalogue, observation, banned, exploration):
    return agent.act(params, catalogue, observation, banned, key, exploration)

  return jax.jit(jax.vmap(one, in_axes=(0, *[None] * 5)))


def sample(made: Made, banned, exploration=1.0) -> base.Action:
  """DRAWS sampled actions; `banned` are up to 40 items."""
  return _sampler(made.agent)(
    jax.random.split(jax.random.key(3), DRAWS),
    made.params,
    made.catalogue,
    made.observation,
    jnp.asarray(np.append(banned, np.zeros(toy.ITEMS))[: toy.ITEMS], jnp.int32),
    exploration,
  )


@functools.cache
def _encode():
  encoder = Encoder(8, 1, 2, 0.0)
  return jax.jit(
    lambda params, features, user: encoder.apply(params, features, *user)
  )


def state(params, catalogue, observation):
  """The encoder's state, float64 [d]; the encoder has tests of its own."""
  encoded = _encode()(params["encoder"], catalogue.features, observation)
  return np.asarray(encoded, np.float64)


def item_logits(params, catalogue, x):
  """<x, w_i> + b_i in plain numpy, [N + 1]."""
  own = jax.tree.map(np.asarray, params["items"]["params"])
  if isinstance(own["row"], dict):
    features = np.asarray(catalogue.features, np.float64)
    rows = features @ own["row"]["kernel"]
    return rows @ x + features @ own["bias"]["kernel"][:, 0]
  return own["row"].astype(np.float64) @ x + own["bias"]


def value(params, context):
  """V of one context by a critic of one hidden layer, in plain numpy."""
  return mlp(params["critic"]["params"]["value"], context)


def mlp(layers, x, row=0):
  """A critic of one hidden layer or more; `row` of those side by side."""
  for i in range(len(layers)):
    layer = layers[f"Dense_{i}"]
    x = x @ np.asarray(layer["kernel"][row]) + np.asarray(layer["bias"][row])
    x = np.maximum(x, 0.0) if i < len(layers) - 1 else x
  return x[0]


def transition(observation, **changes):
  """A step after which the history is another one."""
  base = Transition(
    observation,
    jnp.array([1, 2, 3]),
    jnp.full(3, -3.0),
    jnp.array([1.0, 0.0, 1.0]),
    jnp.float32(0.6),
    jnp.float32(0.0),
    jnp.float32(0.0),
    jnp.zeros(0),
    jnp.array([0, 0, 0, 7, 1, 3]),
  )
  return base._replace(**changes)


def losses(made: Made, other: Params, step: Transition, progress=0.5):
  """The loss and the metrics, compiled as a whole."""
  return jax.jit(made.agent.loss)(
    made.params, other, made.catalogue, step, KEY, progress
  )
