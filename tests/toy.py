"""A tiny catalogue, simulator and engine for tests of the training engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import agents, sid
from hsrl_jax.config import (
  Config,
  NetworkConfig,
  QuantizerConfig,
  TrainConfig,
)
from hsrl_jax.engine import core, loop, replayed
from hsrl_jax.evaluation import bounds as bounds_lib
from hsrl_jax.evaluation import simulate
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim.leave import Patience
from hsrl_jax.sim.reward import Reward
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.stages import policy
from hsrl_jax.types import Sessions

ITEMS, GROUPS, USERS, HISTORY, SLATE = 40, 4, 24, 6, 3


def response(params, profile, history, slate):
  """A user likes the items of the group that its profile names."""
  del history
  group = (slate - 1) % GROUPS
  return jnp.where(profile[group] > 0, 0.95, 0.1) * params


def env(no_repeat: bool = False) -> UserSimulator:
  return UserSimulator(
    response_fn=response,
    slate_size=SLATE,
    no_repeat=no_repeat,
    max_steps=6,
    reward=Reward(-0.1),
    leave=Patience(8.0),
  )


def users() -> EnvParams:
  return EnvParams(
    jnp.float32(1.0),
    jnp.eye(GROUPS)[jnp.arange(USERS) % GROUPS],
    # Full ones: with a single item attention has no gradient but rounding,
    # which Adam would blow up to steps of full size.
    (5 * jnp.arange(USERS)[:, None] + jnp.arange(HISTORY)[None]) % ITEMS + 1,
  )


@functools.cache
def inputs() -> core.Inputs:
  groups = np.arange(ITEMS) % GROUPS
  noise = 0.3 * np.random.default_rng(0).normal(size=(ITEMS, 3))
  features = np.concatenate([np.eye(GROUPS)[groups], noise], 1)
  codebooks = sid.fit(
    jax.random.key(0),
    jnp.asarray(features, jnp.float32),
    levels=2,
    vocab_size=8,
    iterations=10,
    restarts=1,
  )
  tokens = sid.encode_unique(np.asarray(codebooks), features)
  padded = np.concatenate([np.zeros((1, features.shape[1])), features])
  return core.Inputs(
    Catalogue(
      jnp.asarray(padded, jnp.float32), sid.build_index(tokens, 8), codebooks
    ),
    users(),
  )


BASE = Config(
  quantizer=QuantizerConfig(levels=2, vocab_size=8),
  network=NetworkConfig(width=8, layers=1, critic_hidden=(8,)),
  train=TrainConfig(
    learning_rate=1e-3,
    temperature=0.3,
    users=8,
    batch_size=16,
    buffer_size=8 * 40,
    iterations=40,
    iterations_per_call=4,
    curve_every=20,
    save_every=20,
    segment=4,
    minibatches=2,
    seeds=(0, 1),
  ),
)


def config(agent: str = agents.DEFAULT, **values) -> Config:
  """BASE for an agent, with other values: see `agents.configure`."""
  return agents.configure(BASE, agent, **values)


def agent(config: Config):
  """The agent for slates of the toy, trained on its items."""
  return agents.make_agent(config, SLATE, ITEMS)


def engine(config: Config, no_repeat: bool = False):
  return loop.make(agent(config), env(no_repeat), config.train)


def logs(rows: int = 400):
  """Slates drawn uniformly for users of the pool, and their responses."""
  rng = np.random.default_rng(1)
  users = inputs().env_params
  user = rng.integers(0, USERS, rows)
  profile, history = users.profiles[user], users.histories[user]
  shown = np.stack([rng.permutation(ITEMS)[:SLATE] + 1 for _ in user])
  liked = rng.random(shown.shape) < jax.vmap(response, (None, 0, 0, 0))(
    users.response, profile, history, jnp.asarray(shown)
  )
  sessions = Sessions(user, profile, history, shown, 1.0 * liked)
  return replayed.logged(jax.tree.map(np.asarray, sessions), env().reward)


def train(config: Config, calls: int, seed: int = 0, data=None):
  """Learner, stream and last metrics after `calls` calls of the engine."""
  made, given = engine(config), inputs()._replace(logs=data)
  learner, stream = jax.jit(made.init)(seed, given)
  run = jax.jit(made.run)
  for _ in range(calls):
    learner, stream, metrics = run(learner, stream, given)
  return learner, stream, metrics


def _mean_reward(act, params) -> float:
  sessions = simulate.simulate(
    act, env(), params, inputs().env_params, jax.random.key(0), episodes=96
  )
  return float(sessions.total_reward.mean())


@functools.cache
def bounds() -> dict[str, float]:
  """Total rewards of the bounds."""
  active = inputs().catalogue.index.active
  made = bounds_lib.bounds(env(), inputs().env_params, active)
  return {name: _mean_reward(*policy) for name, policy in made.items()}


def normalised(total_reward: float) -> float:
  low, high = bounds()["random"], bounds()["greedy_oracle"]
  return (total_reward - low) / (high - low)


def learning(name: str, data=None, **overrides) -> tuple[float, float]:
  """Normalised rewards of an agent untrained and trained."""
  values = dict(
    agent=name,
    iterations=300,
    iterations_per_call=20,
    curve_every=300,
    save_every=300,
    learning_rate=1e-2,
    seeds=(0,),
  )
  trained_config = config(**(values | overrides))
  act, catalogue = policy.greedy(agent(trained_config)), inputs().catalogue
  steps = trained_config.train
  calls = steps.iterations // steps.iterations_per_call
  trained = train(trained_config, calls, data=data)[0].target_params
  user = env().start(0, inputs().env_params).observation
  untrained = agent(trained_config).init(jax.random.key(0), catalogue, user)
  return tuple(
    normalised(_mean_reward(act, (params, catalogue)))
    for params in (untrained, trained)
  )
