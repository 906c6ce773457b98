"""A tiny catalogue, simulator and engine for tests of the training engine."""

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import sid
from hsrl_jax.agents.base import Catalogue, Spec
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.config import PolicyConfig
from hsrl_jax.envs.user_simulator import EnvParams, UserSimulator
from hsrl_jax.training import loop

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
    patience=8.0,
    max_steps=6,
    penalty=-0.1,
    sweet_point=None,
  )


def inputs() -> loop.Inputs:
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
  return loop.Inputs(
    Catalogue(
      jnp.asarray(padded, jnp.float32), sid.build_index(tokens, 8), codebooks
    ),
    EnvParams(
      jnp.float32(1.0),
      jnp.eye(GROUPS)[jnp.arange(USERS) % GROUPS],
      # Full ones: with a single item attention has no gradient but rounding,
      # which Adam would blow up to steps of full size.
      (5 * jnp.arange(USERS)[:, None] + jnp.arange(HISTORY)) % ITEMS + 1,
    ),
  )


def config(**overrides) -> PolicyConfig:
  values = dict(
    width=8,
    layers=1,
    heads=2,
    critic_hidden=(8,),
    users=8,
    batch_size=16,
    buffer_size=8 * 40,
    iterations=40,
    iterations_per_call=4,
    curve_every=20,
    save_every=20,
    seeds=(0, 1),
  )
  return PolicyConfig(**(values | overrides))


SPEC = Spec(
  levels=2,
  vocab_size=8,
  num_items=ITEMS,
  slate_size=SLATE,
  penalty=-0.1,
  iterations=40,
)


def agent(policy_config: PolicyConfig):
  return hsrl.make(policy_config, SPEC)


def engine(policy_config: PolicyConfig, no_repeat: bool = False):
  return loop.make(agent(policy_config), env(no_repeat), policy_config)
