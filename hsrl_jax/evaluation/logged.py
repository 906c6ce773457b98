"""Policies over a catalogue, as logs with propensities see them.

A policy draws the item of each place of a slate from one distribution, whatever
the place and the other items; so does the model of responses. That is how the
items of a logged slate become decisions of a bandit, see off_policy.bandit, and
the slates of a session its steps, see off_policy.sessions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents.base import Agent
from hsrl_jax.data import transitions
from hsrl_jax.evaluation import off_policy, ranking
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Array, Observation, Params, Sessions

# (params, observation of one user) -> probability of each item, [N + 1].
PolicyFn = Callable[[Params, Observation], Array]

TEMPERATURE = 1.0  # Of a softmax: the policy as it was trained.


class Seen(NamedTuple):
  """A policy and a model of responses at S logged slates of K items."""

  target: np.ndarray  # float64 [S, K], pi of each item shown.
  # float64 [S, K], the model's expected response q to it.
  predicted: np.ndarray
  # float64 [S, 1], sum_i pi(i) q(i), the same at each place.
  expected: np.ndarray


def softmax(scores: Array, active: Array) -> Array:
  """Probabilities of the active items at TEMPERATURE, [N + 1].

  Args:
    scores: float32 [N + 1], log pi up to a constant.
    active: bool [N + 1], the items that may be shown; False for padding.
  """
  allowed = jnp.where(active, scores, -jnp.inf)
  return jax.nn.softmax(allowed / TEMPERATURE)


def shows_best(scores: Array, active: Array, slate_size: int) -> Array:
  """A list that shows its best K items, each at any place alike, [N + 1]."""
  _, best = jax.lax.top_k(jnp.where(active, scores, -jnp.inf), slate_size)
  shown = jnp.zeros(len(scores)).at[best].set(1.0) * active
  return shown / jnp.maximum(shown.sum(), 1.0)


def of_agent(agent: Agent, slate_size: int) -> PolicyFn:
  """The policy of an agent that is made for slates of all items.

  One that has no probabilities shows its greedy slate of K items.

  Args:
    agent: the agent; its parameters come with their Catalogue.
    slate_size: K.
  """

  def probabilities(
    params: tuple[Params, Catalogue], observation: Observation
  ) -> Array:
    params, catalogue = params
    active = catalogue.index.active
    scores, has_probabilities = ranking.of_agent(
      agent, params, catalogue, observation
    )
    if has_probabilities:
      return softmax(scores, active)
    return shows_best(scores, active, slate_size)

  return probabilities


def seen_by(
  policy: PolicyFn,
  seeds: Sequence[Params],
  model: tuple[PolicyFn, Params],
  logs: Sessions,
  items: int,
) -> Seen:
  """A policy's probabilities at logged slates; of several seeds, their mixture.

  Args:
    policy: of one user; vmapped here.
    seeds: its parameters, of each seed.
    model: (params, observation) -> expected response to each item, [N + 1], and
      its parameters.
    logs: S rows of K items.
    items: N.
  """
  slate_size = logs.exposed.shape[1]
  parts = np.mean(
    [
      ranking.by_rows(
        _row, (policy, model[0]), (own, model[1]), logs, items
      ).astype(np.float64)
      for own in seeds
    ],
    axis=0,
  )
  return Seen(*np.split(parts, [slate_size, 2 * slate_size], axis=1))


def of_items(seen: Seen, logs: Sessions) -> off_policy.Logged:
  """Each item of S slates as a decision, worth its response.

  Raises:
    InputError: a propensity is outside (0, 1].
  """
  return off_policy.bandit(
    target=seen.target,
    logging=np.asarray(logs.propensity, np.float64),
    reward=np.asarray(logs.response, np.float64),
    predicted=seen.predicted,
    expected=np.broadcast_to(seen.expected, seen.target.shape),
    user=np.asarray(logs.user_id),
  )


def of_sessions(
  seen: Seen, logs: Sessions, reward: Reward
) -> off_policy.Logged:
  """Each slate as a decision, worth its reward; a session as its steps.

  The model knows what a slate earns, and nothing of later ones.

  Args:
    seen: at S slates.
    logs: the slates.
    reward: of slates whose reward was not logged.

  Raises:
    InputError: a propensity is outside (0, 1].
  """
  order = transitions.order(logs)

  def worth(q: np.ndarray) -> np.ndarray:
    if not reward.is_mean:  # Of the mean response nothing follows.
      return np.zeros(len(q))
    return np.asarray(reward.slate(q + (1 - q) * reward.penalty))

  of_responses = reward.slate(reward.items(np.asarray(logs.response)))
  columns = {
    "target": seen.target.prod(1),
    "logging": np.asarray(logs.propensity, np.float64).prod(1),
    "reward": transitions.earned(logs, np.asarray(of_responses)),
    "predicted": worth(seen.predicted),
    "expected": worth(np.broadcast_to(seen.expected, seen.target.shape)),
  }
  return off_policy.sessions(
    order.session,
    order.place,
    np.asarray(logs.user_id)[order.rows],
    **{name: x[order.rows] for name, x in columns.items()},
  )


@functools.partial(jax.jit, static_argnames="functions")
def _row(functions, params, profile, history, exposed):
  """pi and q of the items shown and sum pi q, of each row, [B, 2 K + 1]."""

  def of_row(profile, history, shown):
    observation = Observation(profile, history)
    pi, q = (f(p, observation) for f, p in zip(functions, params, strict=True))
    expected = jnp.where(pi > 0, pi * q, 0.0).sum(keepdims=True)
    return jnp.concatenate([pi[shown], q[shown], expected])

  return jax.vmap(of_row)(profile, history, exposed)
