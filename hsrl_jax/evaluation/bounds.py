"""Policies that bound a trained one from below and above, and their scale."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents import base
from hsrl_jax.evaluation import statistics
from hsrl_jax.evaluation.simulate import CHUNK, Act
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.types import Array, Params

BOUNDS = ("random", "best_constant", "greedy_oracle")


def bounds(
  env: UserSimulator, users: EnvParams, active: Array
) -> dict[str, tuple[Act, Params]]:
  """The policy and the params of each of BOUNDS; see docs/method.md.

  Args:
    env: the simulator.
    users: its parameters, with the pool's users.
    active: bool [N + 1], the items that may be shown; False for padding.
  """
  constant = mean_probabilities(env, users, num_items=len(active) - 1)
  return {
    "random": (random_policy(env.slate_size), active),
    "best_constant": (constant_policy(env.slate_size), (constant, active)),
    "greedy_oracle": (greedy_oracle(env), (users, active)),
  }


def withheld(seeds: int, why: str) -> dict[str, Any]:
  """A normalised reward that is not shown, of so many seeds, and why."""
  return {
    "mean": None,
    "ci95": [None, None],
    "per_seed": [None] * seeds,
    "withheld": why,
  }


def normalised(
  per_seed: Sequence[np.ndarray], low: float, high: float
) -> dict[str, Any]:
  """Rewards on the scale on which `random` is 0 and `greedy_oracle` is 1.

  Args:
    per_seed: for each of S seeds, total rewards, [E].
    low: the mean total reward of `random`.
    high: that of `greedy_oracle`.

  Returns:
    See `statistics.summarise`. Where both bounds earn the same there is no
    scale: the numbers are None, and `withheld` says why.
  """
  if low == high:
    return withheld(len(per_seed), "random and greedy_oracle earn the same")
  return statistics.summarise(
    [(np.asarray(x, np.float64) - low) / (high - low) for x in per_seed]
  )


@functools.cache  # One function for all catalogues: one compilation.
def random_policy(slate_size: int) -> Act:
  """Uniform over what may be shown; `params` are who is active, [N + 1]."""

  def act(params, observation, excluded, key):
    del observation
    scores = jax.random.uniform(key, params.shape)
    return base.top(base.usable(params, scores, excluded), slate_size)

  return act


@functools.cache
def constant_policy(slate_size: int) -> Act:
  """The same ranking for everybody.

  `params` are scores, [N + 1], and who is active, bool [N + 1].
  """

  def act(params, observation, excluded, key):
    del observation, key
    scores, active = params
    return base.top(base.usable(active, scores, excluded), slate_size)

  return act


@functools.cache
def greedy_oracle(env: UserSimulator) -> Act:
  """The items of the largest true probability now.

  `params` are EnvParams and who is active, bool [N + 1].
  """

  def act(params, observation, excluded, key):
    del key
    env_params, active = params
    items = jnp.arange(1, len(active))
    probability = env.probabilities(observation, items, env_params)
    scores = jnp.concatenate([jnp.zeros(1), probability])
    return base.top(base.usable(active, scores, excluded), env.slate_size)

  return act


@functools.partial(jax.jit, static_argnames=("env", "num_items"))
def mean_probabilities(
  env: UserSimulator, env_params: EnvParams, *, num_items: int
) -> Array:
  """Mean over the pool of each item's probability, [N + 1]; 0 for padding."""
  items = jnp.arange(1, num_items + 1)

  def of_user(row):
    return env.chances(env.start(row, env_params), items, env_params)

  users = jnp.arange(env_params.profiles.shape[0])
  total = jax.lax.map(of_user, users, batch_size=CHUNK).mean(0)
  return jnp.concatenate([jnp.zeros(1), total])
