"""A toy latent agent, and its network once more in plain NumPy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import sid
from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import latent
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Observation, Params, Transition
from tests import toy
from tests.agents import checks

AGENTS = ("ddpg", "td3", "wolpertinger", "hac")
NOTHING = jnp.zeros(0, jnp.int32)
INACTIVE = 7


class Case(NamedTuple):
  agent: base.Agent
  params: Params
  target_params: Params
  catalogue: Catalogue
  observation: Observation


@functools.cache
def make(agent: str, **overrides) -> Case:
  """One item is inactive; no parameter is at its initial value."""
  _, made, params, catalogue, observation = checks.made(agent, **overrides)
  catalogue = catalogue._replace(
    index=sid.remove_items(catalogue.index, np.array([INACTIVE]))
  )
  target_params = checks.random_params(made, observation, 2)
  return Case(made, params, target_params, catalogue, observation)


def transition(case: Case) -> Transition:
  """Three items shown, two of them liked, by a noisy action."""
  action = latent.explore(jnp.ones(8), jax.random.key(4), 0.5)
  return Transition(
    case.observation,
    jnp.array([1, 2, 3]),
    jnp.zeros(3),
    jnp.array([1.0, 0.0, 1.0]),
    jnp.float32(0.6),
    jnp.float32(0.0),
    jnp.float32(0.0),
    action,
    jnp.roll(case.observation.history, 1),
  )


def loss(case: Case, step: Transition, progress=0.0):
  return jax.jit(case.agent.loss)(
    case.params,
    case.target_params,
    case.catalogue,
    step,
    jax.random.key(0),
    progress,
  )


def next_observation(step: Transition) -> Observation:
  return Observation(step.observation.profile, step.next_history)


def unit(x):
  return x / np.sqrt(np.square(x).mean(-1, keepdims=True))


@functools.cache
def _encode():
  encoder = Encoder(*toy.config(dropout=0.0).network.encoder)
  return jax.jit(
    lambda params, features, observation: encoder.apply(
      {"params": params["params"]["encoder"]}, features, *observation
    )
  )


def state(params, catalogue, observation):
  """By the network itself; the encoder has tests of its own."""
  encoded = _encode()(params, catalogue.features, observation)
  return np.asarray(encoded, np.float64)


def action(params, state):
  dense = params["params"]["actor"]
  return unit(state @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]))


def states(case, step):
  """s by the network, and s' by the target network."""
  after = next_observation(step)
  return (
    state(case.params, case.catalogue, case.observation),
    state(case.target_params, case.catalogue, after),
  )


def target(case, step):
  """y by what the target network would do."""
  _, after = states(case, step)
  next_action = action(case.target_params, after)
  return 0.6 + 0.9 * q(case.target_params, after, next_action)


def embeddings(params, catalogue):
  dense = params["params"]["item"]
  features = np.asarray(catalogue.features, np.float64)
  return features @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])


def q(params, state, action, critic=0):
  x = np.concatenate([state, action])
  layers = params["params"]["critic"]["value"]
  for i in range(len(layers)):
    dense = layers[f"Dense_{i}"]
    x = x @ np.asarray(dense["kernel"][critic]) + np.asarray(
      dense["bias"][critic]
    )
    x = np.maximum(x, 0.0) if i < len(layers) - 1 else x
  return x[0]


def ranking(params, catalogue, action, excluded=()):
  """The items that may be shown, best first, one by one."""
  embedded = embeddings(params, catalogue)
  banned = {INACTIVE, *(int(i) for i in excluded)}
  items = [i for i in range(1, toy.ITEMS + 1) if i not in banned]
  return sorted(items, key=lambda i: -sum(embedded[i] * action))
