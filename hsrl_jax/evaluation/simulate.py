"""Sessions of a policy in the simulator, and the bounds beside it."""

import functools
import io
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from hsrl_jax import files
from hsrl_jax.agents import base
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.types import Array, Observation, Params, PRNGKey

# (params, observation, excluded ids [T], key) -> slate [K], of one user.
Act = Callable[[Params, Observation, Array, PRNGKey], Array]

RESULTS_FORMAT = 1  # Of a run's results.json.
SESSIONS_FORMAT = 1  # Of sessions.npz.
BOUNDS = ("random", "best_constant", "greedy_oracle")
# Of each session kept.
MEASURES = ("total_reward", "depth", "positives", "liked_slates")
_CHUNK = 250  # Sessions simulated at once.


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
      over = result.terminated | result.truncated
      return (state, alive * ~over), record

    _, (reward, alive, slates, responses) = jax.lax.scan(
      step, (state, jnp.float32(1)), jnp.arange(env.max_steps)
    )
    return Sessions(
      reward.sum(), alive.sum(), responses.sum(), slates, responses
    )

  return jax.lax.map(session, jnp.arange(episodes), batch_size=_CHUNK)


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
    return env.probabilities(
      env.start(row, env_params).observation, items, env_params
    )

  users = jnp.arange(env_params.profiles.shape[0])
  total = jax.lax.map(of_user, users, batch_size=_CHUNK).mean(0)
  return jnp.concatenate([jnp.zeros(1), total])


def summarise(per_seed: list[np.ndarray]) -> dict:
  """Mean and 95 % confidence interval of a measure.

  Args:
    per_seed: for each seed, the measure of each session, [E].

  Returns:
    {"mean", "ci95": [low, high], "per_seed": [...]}. With several seeds the
    interval is Student's over the seeds' means; with one, over the sessions.
  """
  per_seed = [np.asarray(x, np.float64) for x in per_seed]
  means = np.array([x.mean() for x in per_seed])
  sample = means if len(means) > 1 else per_seed[0]
  error = stats.sem(sample) if len(sample) > 1 else 0.0
  half = error * stats.t.ppf(0.975, max(len(sample) - 1, 1))
  mean = float(means.mean())
  return {
    "mean": mean,
    "ci95": [mean - float(half), mean + float(half)],
    "per_seed": [float(m) for m in means],
  }


def bounds(
  env: UserSimulator, users: EnvParams, active: Array
) -> dict[str, tuple[Act, Params]]:
  """The bounds (DESIGN, section 5): policy and params.

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


def report(policies: dict[str, list[Sessions]]) -> dict:
  """The `policies` of results.json (DESIGN, section 10).

  Args:
    policies: name to the sessions of each seed; `random` and `greedy_oracle`
      are the 0 and 1 of `normalised`.
  """

  def mean_reward(name):
    return np.mean(policies[name][0].total_reward, dtype=np.float64)

  low, high = mean_reward("random"), mean_reward("greedy_oracle")
  table = {}
  for name, seeds in policies.items():
    measures = {
      "total_reward": [np.asarray(s.total_reward) for s in seeds],
      "depth": [np.asarray(s.depth) for s in seeds],
      "positive_share": [
        np.asarray(s.positives / (s.depth * s.slates.shape[-1])) for s in seeds
      ],
    }
    measures["normalised"] = [
      (x - low) / (high - low) for x in measures["total_reward"]
    ]
    table[name] = {k: summarise(v) for k, v in measures.items()}
  return table


def save(
  path: pathlib.Path, policies: dict[str, list[Sessions]], user_id: np.ndarray
) -> None:
  """Writes each session's measures; session e is the same user everywhere.

  Args:
    path: of an .npz with `user`, int32 [E], and `<policy>/<measure>`, float32
      [S, E], of the measures total_reward, depth, positives and liked_slates
      (slates with a positive response).
    policies: name to the sessions of each seed.
    user_id: int32 [P], who the users of the pool are.
  """
  buffer, (any_sessions, *_) = io.BytesIO(), next(iter(policies.values()))
  np.savez_compressed(
    buffer,
    format=SESSIONS_FORMAT,
    user=np.resize(user_id, len(any_sessions.depth)),
    **{
      f"{name}/{measure}": np.stack([_measure(s, measure) for s in seeds])
      for name, seeds in policies.items()
      for measure in MEASURES
    },
  )
  files.write_atomic(path, buffer.getvalue())


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays that `save` wrote."""
  return files.read_npz(path, SESSIONS_FORMAT)


def read_results(path: pathlib.Path) -> dict:
  """What stage evaluate left in results.json."""
  return files.read_json(path, RESULTS_FORMAT)


def _measure(sessions: Sessions, name: str) -> np.ndarray:
  if name == "liked_slates":
    return (
      (np.asarray(sessions.responses) > 0).any(-1).sum(-1, dtype=np.float32)
    )
  return getattr(sessions, name)


def examples(
  sessions: Sessions, histories: np.ndarray, titles: list[str], count: int
) -> list[dict]:
  """The first sessions for people: titles shown, and what was liked."""
  chosen = []
  for e in range(min(count, len(sessions.depth))):
    depth = int(sessions.depth[e])
    history = histories[e % len(histories)]
    steps = zip(sessions.slates[e], sessions.responses[e], strict=True)
    chosen.append(
      {
        "history": [titles[i] for i in history[history > 0]],
        "steps": [
          {
            "titles": [titles[i] for i in slate],
            "liked": [bool(r) for r in response],
          }
          for slate, response in list(steps)[:depth]
        ],
        "total_reward": float(sessions.total_reward[e]),
        "depth": depth,
      }
    )
  return chosen
