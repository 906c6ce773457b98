"""Sessions of a policy in the simulator, and the bounds beside it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from hsrl_jax.envs.user_simulator import EnvParams, UserSimulator
from hsrl_jax.ops import masking
from hsrl_jax.types import Array, Observation, Params, PRNGKey

# (params, observation, excluded ids [T], key) -> slate [K], of one user.
Act = Callable[[Params, Observation, Array, PRNGKey], Array]

_CHUNK = 250  # Sessions simulated at once.


class Sessions(NamedTuple):
  """What E simulated sessions were.

  Attributes:
    total_reward: float32 [E].
    depth: float32 [E], steps until the user left.
    positives: float32 [E], positive responses.
    slates: int32 [E, T, K], 0 after the user left.
    responses: float32 [E, T, K].
  """

  total_reward: Array
  depth: Array
  positives: Array
  slates: Array
  responses: Array


@functools.partial(jax.jit, static_argnames=("act", "env", "episodes"))
def simulate(
  act: Act,
  env: UserSimulator,
  params: Params,
  env_params: EnvParams,
  key: PRNGKey,
  *,
  episodes: int,
) -> Sessions:
  """Simulates sessions of the pool's users.

  Session e is of user e modulo the size of the pool, and its responses are
  drawn by fold_in(key, e), so that policies meet the same users and luck.

  Args:
    act: the policy; static.
    env: the simulator; static.
    params: of the policy.
    env_params: of the simulator, with the pool.
    key: of the responses.
    episodes: E.
  """

  def session(episode):
    state = env.start(episode % env_params.profiles.shape[0], env_params)
    episode_key = jax.random.fold_in(key, episode)

    def step(carry, t):
      state, alive = carry
      act_key, step_key = jax.random.split(jax.random.fold_in(episode_key, t))
      slate = act(params, state.observation, state.seen, act_key)
      state, result = env.step(step_key, state, slate, env_params)
      record = (
        result.reward * alive,
        alive,
        slate * alive.astype(jnp.int32),
        result.response * alive,
      )
      return (state, alive * ~result.terminated), record

    _, (reward, alive, slates, responses) = jax.lax.scan(
      step, (state, jnp.float32(1)), jnp.arange(env.max_steps)
    )
    return Sessions(
      reward.sum(), alive.sum(), responses.sum(), slates, responses
    )

  return jax.lax.map(session, jnp.arange(episodes), batch_size=_CHUNK)


def random_policy(num_items: int, slate_size: int) -> Act:
  """Uniform over the items that may be shown."""

  def act(params, observation, excluded, key):
    del params, observation
    scores = jax.random.uniform(key, (num_items + 1,))
    return _top(scores, excluded, slate_size)

  return act


def constant_policy(slate_size: int) -> Act:
  """The same ranking for everybody; `params` are scores, [N + 1]."""

  def act(params, observation, excluded, key):
    del observation, key
    return _top(params, excluded, slate_size)

  return act


def greedy_oracle(env: UserSimulator, num_items: int) -> Act:
  """The items of the largest true probability now; `params` are EnvParams."""

  def act(params, observation, excluded, key):
    del key
    items = jnp.arange(1, num_items + 1)
    probability = env.probabilities(observation, items, params)
    scores = jnp.concatenate([jnp.zeros(1), probability])
    return _top(scores, excluded, env.slate_size)

  return act


@functools.partial(jax.jit, static_argnames=("env", "num_items"))
def mean_probabilities(
  env: UserSimulator, env_params: EnvParams, *, num_items: int
) -> Array:
  """Mean over the pool of each item's probability, [N + 1]; 0 for padding."""
  items = jnp.arange(1, num_items + 1)

  def of_user(row):
    return env.probabilities(
      env.start(row, env_params).observation, items, env_params
    )

  users = jnp.arange(env_params.profiles.shape[0])
  total = jax.lax.map(of_user, users, batch_size=_CHUNK).mean(0)
  return jnp.concatenate([jnp.zeros(1), total])


def _top(scores: Array, excluded: Array, slate_size: int) -> Array:
  scores = scores.at[0].set(masking.NEGATIVE)
  scores = scores.at[excluded].set(masking.NEGATIVE)
  return jax.lax.top_k(scores, slate_size)[1].astype(jnp.int32)


def summarise(per_seed: list[np.ndarray]) -> dict:
  """Mean and 95 % confidence interval of a measure.

  Args:
    per_seed: for each seed, the measure of each session, [E].

  Returns:
    {"mean", "ci95": [low, high], "per_seed": [...]}. With several seeds the
    interval is Student's over the seeds' means; with one, over the sessions.
  """
  means = np.array([np.mean(x, dtype=np.float64) for x in per_seed])
  sample = means if len(means) > 1 else np.asarray(per_seed[0], np.float64)
  error = stats.sem(sample) if len(sample) > 1 else 0.0
  half = error * stats.t.ppf(0.975, max(len(sample) - 1, 1))
  mean = float(means.mean())
  return {
    "mean": mean,
    "ci95": [mean - float(half), mean + float(half)],
    "per_seed": [float(m) for m in means],
  }
