"""Agents of the toy with made-up parameters, and their scores in NumPy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import agents
from hsrl_jax.agents import base
from hsrl_jax.config import Config
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.types import Observation, Params, Transition
from tests import toy

KEY = jax.random.key(0)
NOTHING = jnp.zeros(0, jnp.int32)


class Made(NamedTuple):
  """An agent, and what its functions take."""

  config: Config
  agent: base.Agent
  params: Params
  catalogue: base.ActionSpace
  observation: Observation


@functools.cache
def made(name: str, items: int = toy.ITEMS, **values) -> Made:
  """An agent of the toy without dropout; no parameter is where it begins.

  Args:
    name: of the agent.
    items: in training, see `agents.make_agent`.
    **values: see `toy.config`.
  """
  config = toy.config(name, **{"dropout": 0.0} | values)
  agent, inputs = agents.make_agent(config, toy.SLATE, items), toy.inputs()
  user = inputs.env_params
  observation = Observation(user.profiles[3], user.histories[3])
  # New items have no popularity; padding may not win.
  popularity = (7 * np.arange(toy.ITEMS + 1)) % 41
  popularity[0], popularity[-1] = 99, 0
  catalogue = inputs.catalogue._replace(
    popularity=jnp.asarray(popularity, jnp.float32)
  )
  shapes = jax.eval_shape(agent.init, KEY, catalogue, observation)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes
  )
  return Made(config, agent, params, catalogue, observation)


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
    jnp.zeros(0),
    jnp.array([0, 0, 0, 7, 1, 3]),
  )
  return base._replace(**changes)


def losses(made: Made, other: Params, step: Transition, progress=0.5):
  """The loss and the metrics, compiled as a whole."""
  return jax.jit(made.agent.loss)(
    made.params, other, made.catalogue, step, KEY, progress
  )
