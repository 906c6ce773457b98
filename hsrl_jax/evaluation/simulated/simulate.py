"""Sessions of a policy in the simulator."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.sim.user_simulator import EnvParams, EnvState, UserSimulator
from hsrl_jax.types import Array, Observation, Params, PRNGKey


class Oracle(NamedTuple):
  """A policy that sees the state of the simulator, which no agent does.

  Attributes:
    act: (params, state, key) -> slate [K], of one user.
  """

  act: Callable[[Params, EnvState, PRNGKey], Array]


# (params, observation, excluded ids [T], key) -> slate [K], of one user.
Act = Callable[[Params, Observation, Array, PRNGKey], Array] | Oracle

CHUNK = 250  # Sessions, or users, computed at once.


class Sessions(NamedTuple):
  """What E simulated sessions were.

  Attributes:
    total_reward: float32 [E].
    depth: float32 [E], steps until the session ended.
    positives: float32 [E], positive responses.
    slates: int32 [E, T, K], 0 after the session ended.
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
    episode_key = jax.random.fold_in(key, episode)
    state = start(env, env_params, key, episode)

    def step(carry, t):
      state, alive = carry
      act_key, step_key = jax.random.split(jax.random.fold_in(episode_key, t))
      if isinstance(act, Oracle):
        slate = act.act(params, state, act_key)
      else:
        slate = act(params, state.observation, state.seen, act_key)
      state, result = env.step(step_key, state, slate, env_params)
      record = (
        result.reward * alive,
        alive,
        slate * alive.astype(jnp.int32),
        result.response * alive,
      )
      over = result.terminated | result.truncated
      return (state, alive * ~over), record

    _, (reward, alive, slates, responses) = jax.lax.scan(
      step, (state, jnp.float32(1)), jnp.arange(env.max_steps)
    )
    return Sessions(
      reward.sum(), alive.sum(), responses.sum(), slates, responses
    )

  return jax.lax.map(session, jnp.arange(episodes), batch_size=CHUNK)


def start(
  env: UserSimulator, env_params: EnvParams, key: PRNGKey, episode: Array | int
) -> EnvState:
  """How session `episode` of `simulate` begins; see there."""
  row = episode % env_params.profiles.shape[0]
  episode_key = jax.random.fold_in(key, episode)
  start_key = jax.random.fold_in(episode_key, env.max_steps)
  return env.start(row, env_params, start_key)
