"""Sessions of a policy in the simulator."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.ops import compilation
from hsrl_jax.sim.user_simulator import EnvParams, EnvState, UserSimulator
from hsrl_jax.types import Array, Observation, Params, PRNGKey


class Oracle(NamedTuple):
  """A policy that sees the state of the simulator, which no agent does."""

  # (params, state, key) -> slate [K], of one user.
  act: Callable[[Params, EnvState, PRNGKey], Array]


# (params, observation, excluded ids [T], key) -> slate [K], of one user.
Act = Callable[[Params, Observation, Array, PRNGKey], Array] | Oracle

SEED = 0  # Of users' responses in evaluation; the same for all policies.
CHUNK = 256  # Sessions, or users, computed at once.


class Simulated(NamedTuple):
  """E simulated sessions."""

  total_reward: Array  # float32 [E].
  depth: Array  # float32 [E], steps until the session ended.
  positives: Array  # float32 [E], positive responses.
  slates: Array  # int32 [E, T, K], 0 after the session ended.
  responses: Array  # float32 [E, T, K].


def sample(user: np.ndarray, episodes: int, seed: int = SEED) -> np.ndarray:
  """Rows of a pool for E sessions, int32 [E]: a random sample of its users.

  No user has a second row before all have one, and no row comes twice before
  all have come; which row of a user, and in which order users come, is drawn.
  What fewer sessions take is the start of what more take.

  Args:
    user: int [S], the user of each row of the pool.
    episodes: E.
    seed: of the draws; the same for all policies that are to be compared.
  """
  rng = np.random.default_rng(seed)
  shuffled = rng.permutation(len(user))
  names, who = np.unique(user[shuffled], return_inverse=True)
  by_user = np.argsort(who, kind="stable")
  first = np.searchsorted(who[by_user], np.arange(len(names)))
  turn = np.empty(len(user), int)  # Of each row, among those of its user.
  turn[by_user] = np.arange(len(user)) - first[who[by_user]]
  # Not by `shuffled`: there users of many rows come early.
  order = np.lexsort((rng.permutation(len(names))[who], turn))
  return np.resize(shuffled[order], episodes).astype(np.int32)


def simulate(
  act: Act,
  env: UserSimulator,
  params: Params,
  env_params: EnvParams,
  key: PRNGKey,
  rows: np.ndarray | None = None,
  *,
  episodes: int,
) -> Simulated:
  """Simulates sessions of the pool's users; what they were is on the host.

  The responses of session e are drawn by fold_in(key, e), so that policies meet
  the same users and luck.

  Args:
    act: the policy; static.
    env: the simulator; static.
    params: of the policy.
    env_params: of the simulator, with the pool.
    key: of the responses.
    rows: int32 [E], the row of the pool that each session is of, see `sample`;
      None: e modulo the size of the pool.
    episodes: E.
  """
  if rows is None:
    rows = np.arange(episodes) % len(env_params.profiles)
  # Chunks of one size, with no more of the pool than they need: one compilation
  # whatever the number of sessions, and the split.
  size = min(episodes, CHUNK)
  pool = _pool(env_params)
  made = []
  for first in range(0, episodes, size):
    chunk = np.arange(first, first + size, dtype=np.int32)
    own = np.asarray(rows)[chunk % episodes]
    users = env_params._replace(**{x: y[own] for x, y in pool.items()})
    made.append(_compiled()(act, env, params, users, key, chunk))
  return jax.tree.map(
    lambda *x: np.concatenate(x)[:episodes], *jax.device_get(made)
  )


def _pool(env_params: EnvParams) -> dict[str, np.ndarray]:
  """The fields with a row for each user of the pool, on the host."""
  fields = {
    x: getattr(env_params, x)
    for x in ("profiles", "histories", "biases", "people")
  }
  return {k: np.asarray(x) for k, x in fields.items() if x is not None}


@functools.lru_cache(1)  # Not at import, since it looks for the backend.
def _compiled() -> Callable[..., Simulated]:
  return compilation.often(_chunk, static_argnames=("act", "env"))


def _chunk(
  act: Act,
  env: UserSimulator,
  params: Params,
  users: EnvParams,
  key: PRNGKey,
  episodes: Array,
) -> Simulated:
  """The sessions of so many users, with their numbers [E]."""

  def session(row, episode):
    episode_key = jax.random.fold_in(key, episode)

    def step(carry, t):
      state, alive = carry
      act_key, step_key = jax.random.split(jax.random.fold_in(episode_key, t))
      slate = chosen(act, params, state, act_key)
      state, result = env.step(step_key, state, slate, users)
      record = (
        result.reward * alive,
        alive,
        slate * alive.astype(jnp.int32),
        result.response * alive,
      )
      over = result.terminated | result.truncated
      return (state, alive * ~over), record

    state = start(env, users, key, episode, row)
    _, (reward, alive, slates, responses) = jax.lax.scan(
      step, (state, jnp.float32(1)), jnp.arange(env.max_steps)
    )
    return Simulated(
      reward.sum(), alive.sum(), responses.sum(), slates, responses
    )

  return jax.vmap(session)(jnp.arange(len(episodes)), episodes)


def chosen(act: Act, params: Params, state: EnvState, key: PRNGKey) -> Array:
  """The slate of a policy for ONE user, int32 [K]."""
  if isinstance(act, Oracle):
    return act.act(params, state, key)
  return act(params, state.observation, state.seen, key)


def start(
  env: UserSimulator,
  env_params: EnvParams,
  key: PRNGKey,
  episode: Array | int,
  row: Array | int,
) -> EnvState:
  """How session `episode` of `simulate` begins, of a row of the pool."""
  episode_key = jax.random.fold_in(key, episode)
  start_key = jax.random.fold_in(episode_key, env.max_steps)
  return env.start(row, env_params, start_key)
