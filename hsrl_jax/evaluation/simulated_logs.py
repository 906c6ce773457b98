"""Logs drawn from a world: sessions of a logging policy that is known.

The policy is the same for every user and state: a slate is K items without
replacement, by weights, of those that may be shown. The propensity of an item
is that of the first of these draws, its share of the weights that may be drawn.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents import base
from hsrl_jax.evaluation import simulate
from hsrl_jax.ops import masking, sampling
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.types import Array, Observation, PRNGKey, Sessions

_TOGETHER = 250  # Sessions drawn at once.


def log_weights(
  popularity: Array, active: Array, temperature: float | None
) -> Array:
  """log of the weights of a logging policy, float32 [N + 1].

  Args:
    popularity: float32 [N + 1], likes of each item.
    active: bool [N + 1], which items may be shown.
    temperature: an item's weight is (likes + 1)^(1 / temperature); None: all
      weigh the same.
  """
  weights = jnp.zeros(len(active))
  if temperature is not None:
    weights = jnp.log(popularity + 1.0) / temperature
  return jnp.where(active, weights, masking.NEGATIVE)


@functools.cache  # One function: one compilation.
def policy(slate_size: int) -> simulate.Act:
  """The policy for `simulate`; its `params` are log_weights, and `active`."""

  def act(params, observation, excluded, key):
    del observation
    weights, active = params
    noise = sampling.gumbel(key, weights.shape)
    scores = base.usable(active, weights + noise, excluded)
    return base.top(scores, slate_size)

  return act


@functools.partial(jax.jit, static_argnames="env")
def _sessions(
  env: UserSimulator,
  users: EnvParams,
  weights: Array,
  active: Array,
  key: PRNGKey,
  rows: Array,
):
  """Sessions of the pool's users `rows`, int32 [E]; leaves [E, T, ...]."""
  act = policy(env.slate_size)

  def session(episode):
    episode_key = jax.random.fold_in(key, episode)
    state = simulate.start(env, users, key, episode, rows[episode])

    def step(carry, t):
      state, alive = carry
      keys = jax.random.split(jax.random.fold_in(episode_key, t))
      slate = act((weights, active), state.observation, state.seen, keys[0])
      left = base.usable(active, weights, state.seen)
      propensity = jnp.exp(weights[slate] - jax.nn.logsumexp(left))
      before = Observation(*state.observation[:2])
      state, result = env.step(keys[1], state, slate, users)
      over = result.terminated | result.truncated
      record = (before, slate, propensity, result, alive)
      return (state, alive & ~over), record

    start = (state, jnp.bool(True))
    return jax.lax.scan(step, start, jnp.arange(env.max_steps))[1]

  episodes = jnp.arange(len(rows))
  return jax.lax.map(session, episodes, batch_size=_TOGETHER)


def draw(
  env: UserSimulator,
  users: EnvParams,
  user_id: np.ndarray,
  weights: Array,
  active: Array,
  *,
  slates: int,
  seed: int,
) -> Sessions:
  """Whole sessions of users of a pool, at least so many slates in all.

  Fewer slates are the start of more: the first sessions of the same.

  Args:
    env: the world.
    users: its parameters, with the pool of S users.
    user_id: int [S], who they are.
    weights: float32 [N + 1], see `log_weights`.
    active: bool [N + 1], which items may be shown.
    slates: how many at least.
    seed: of users, slates and responses.
  """
  parts, drawn = [], 0
  while drawn < slates:
    # As many sessions at once whatever is asked for, so that all begin alike.
    rows = simulate.sample(user_id, _TOGETHER, seed + len(parts))
    key = jax.random.fold_in(jax.random.key(seed), len(parts))
    made = _sessions(env, users, weights, active, key, jnp.asarray(rows))
    observation, slate, propensity, result, alive = jax.device_get(made)
    session, step = np.nonzero(alive)
    parts.append(
      Sessions(
        user_id=user_id[rows][session],
        profile=observation.profile[alive],
        history=observation.history[alive],
        exposed=slate[alive],
        response=result.response[alive],
        propensity=propensity[alive],
        session=session + len(parts) * _TOGETHER,
        step=step,
        reward=result.reward[alive],
        terminated=result.terminated[alive].astype(np.float32),
      )
    )
    drawn += len(session)
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def first(logs: Sessions, slates: int) -> Sessions:
  """The first sessions of `draw`, with at least so many slates in all."""
  session = logs.session[min(slates, len(logs.session)) - 1]
  return jax.tree.map(lambda x: x[logs.session <= session], logs)
