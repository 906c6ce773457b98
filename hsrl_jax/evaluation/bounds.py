"""Policies that bound a trained one from below and above, and their scale."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents import base
from hsrl_jax.evaluation import statistics
from hsrl_jax.evaluation.simulate import CHUNK, Act, Oracle
from hsrl_jax.ops import masking, sampling
from hsrl_jax.sim.dynamics import TopicBoredom
from hsrl_jax.sim.fatigue import Fatigue
from hsrl_jax.sim.leave import ItemRule
from hsrl_jax.sim.user_simulator import EnvParams, EnvState, UserSimulator
from hsrl_jax.types import Array, Params

BOUNDS = ("random", "best_constant", "greedy_oracle")
FARSIGHTED = "farsighted"  # One more, where there is something to foresee.
MYOPIC = "myopic"  # One more, where users tire of what is like what they had.
KNOWING = (FARSIGHTED, MYOPIC)  # How what is shown changes what is liked.


def bounds(
  env: UserSimulator, users: EnvParams, active: Array
) -> dict[str, tuple[Act, Params]]:
  """The policy and the params of each of BOUNDS; see docs/method.md.

  Of one of KNOWING too, where what was shown matters later.

  Args:
    env: the simulator.
    users: its parameters, with the pool's users.
    active: bool [N + 1], the items that may be shown; False for padding.
  """
  constant = mean_probabilities(env, users, num_items=len(active) - 1)
  policies = {
    "random": (random_policy(env.slate_size), active),
    "best_constant": (constant_policy(env.slate_size), (constant, active)),
    "greedy_oracle": (greedy_oracle(env), (users, active)),
  }
  if _has_room(env) or isinstance(env.leave, ItemRule):
    policies[FARSIGHTED] = (farsighted(env), (users, active))
  if _tires(env):
    policies[MYOPIC] = (myopic(env), (users, active))
  return policies


def withheld(seeds: int, why: str) -> dict[str, Any]:
  """A normalised reward that is not shown, of so many seeds, and why."""
  return {
    "mean": None,
    "ci95": [None, None],
    "per_seed": [None] * seeds,
    "withheld": why,
  }


def best(rewards: Mapping[str, float]) -> str:
  """The name of the bound whose reward is 1 when normalised.

  Args:
    rewards: mean total reward by policy, with that of `greedy_oracle`.
  """
  rivals = [x for x in ("greedy_oracle", *KNOWING) if x in rewards]
  return max(rivals, key=lambda name: rewards[name])


def normalised(
  per_seed: Sequence[np.ndarray],
  rewards: Mapping[str, float],
  user: np.ndarray | None = None,
) -> dict[str, Any]:
  """Rewards on the scale on which `random` is 0 and the `best` bound is 1.

  Args:
    per_seed: for each of S seeds, total rewards, [E].
    rewards: mean total reward of the bounds.
    user: int [E], the user of each session; see `statistics.summarise`.

  Returns:
    See `statistics.summarise`. Where both bounds earn the same there is no
    scale: the numbers are None, and `withheld` says why.
  """
  top = best(rewards)
  low, high = rewards["random"], rewards[top]
  if low == high:
    return withheld(len(per_seed), f"random and {top} earn the same")
  return statistics.summarise(
    [(np.asarray(x, np.float64) - low) / (high - low) for x in per_seed], user
  )


@functools.cache  # One function for all catalogues: one compilation.
def random_policy(slate_size: int) -> Act:
  """Uniform over what may be shown; `params` are who is active, [N + 1]."""

  def act(params, observation, excluded, key):
    del observation
    scores = sampling.uniform(key, params.shape)
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

  Where users tire, of that before they do: see `myopic`.

  `params` are EnvParams and who is active, bool [N + 1].
  """
  return myopic(env._replace(dynamics=None) if _tires(env) else env)


@functools.cache
def myopic(env: UserSimulator) -> Act:
  """The items of the largest true probability, as dynamics have changed it.

  `params` are EnvParams and who is active, bool [N + 1].
  """

  def act(params, state, key):
    del key
    env_params, active = params
    scores = _worth(env, env_params, state, jnp.arange(len(active)))
    return base.top(base.usable(active, scores, state.seen), env.slate_size)

  return Oracle(act)


@functools.cache
def farsighted(env: UserSimulator) -> Act:
  """The items of the largest probability that do no harm later.

  An item does harm if it makes the user leave (`ItemRule.triggers`), or if
  its topic has no room (`Dynamics.room`): the items of a topic get its room in
  the order of their probability, a place each, as if all were liked. Where that
  does not fill the slate, items without room follow, the least probable first,
  then those that make the user leave, the most probable first.

  `params` are EnvParams and who is active, bool [N + 1].
  """

  def act(params, state, key):
    del key
    scores = base.usable(params[1], _later(env, *params, state), state.seen)
    return base.top(scores, env.slate_size)

  return Oracle(act)


def _has_room(env: UserSimulator) -> bool:
  """Whether a rule says how many likes of a topic do no harm."""
  return isinstance(env.dynamics, TopicBoredom)


def _tires(env: UserSimulator) -> bool:
  """Whether users tire of what is like what they were shown."""
  return isinstance(env.dynamics, Fatigue)


def _is_rated(env: UserSimulator) -> bool:
  """Whether items earn what a matrix says; see truth.py."""
  return getattr(env, "earned", None) is not None


def _worth(
  env: UserSimulator, env_params: EnvParams, state: EnvState, items: Array
) -> Array:
  """Worth of each item now, [M]: chance of a like, or rating over the best."""
  if not _is_rated(env):
    return env.chances(state, items, env_params)
  ratings = env.earned(env_params.response, items, state.bias)
  return ratings / env_params.response.most


def _later(
  env: UserSimulator, env_params: EnvParams, active: Array, state: EnvState
) -> Array:
  fresh = env._replace(dynamics=None)  # Probabilities of users who never bore.
  topics, items = env_params.topics, jnp.arange(len(active))
  chances = _worth(fresh, env_params, state, items)
  scores = base.usable(active, chances, state.seen)
  if _has_room(env):
    room = env.dynamics.room(state.dynamics, state.steps)[topics]
    fits = masking.rank_within(topics, scores) < room
    scores = jnp.where(fits, chances, -chances)
  if isinstance(env.leave, ItemRule):
    known = getattr(env_params, env.leave.knows)
    leaves = env.leave.triggers(state.leave, items, known)
    scores = jnp.where(leaves, chances - 3.0, scores)
  return scores


@functools.partial(jax.jit, static_argnames=("env", "num_items"))
def mean_probabilities(
  env: UserSimulator, env_params: EnvParams, *, num_items: int
) -> Array:
  """Mean over the pool of each item's probability, [N + 1]; 0 for padding."""
  items = jnp.arange(1, num_items + 1)

  def of_user(row):
    return _worth(env, env_params, env.start(row, env_params), items)

  users = jnp.arange(env_params.profiles.shape[0])
  total = jax.lax.map(of_user, users, batch_size=CHUNK).mean(0)
  return jnp.concatenate([jnp.zeros(1), total])
