"""Rewards of a policy, estimated from slates that others showed.

The policy draws one item of softmax(log pi / temperature). Logs are a dataset's
or drawn in the simulator; the estimators are those of off_policy.py.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents.base import ActionSpace, Agent
from hsrl_jax.evaluation import off_policy, statistics
from hsrl_jax.ops import sampling
from hsrl_jax.sim.reward import Reward
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.types import Array, Observation, Params, PRNGKey, Sessions

_CHUNK = 50  # Users at once.
_SHRINKAGE = 10.0  # Responses that the overall mean is worth.


class Scores(NamedTuple):
  """Scores of R logged slates under a policy at each of T temperatures.

  Attributes:
    log_pi: float32 [R, T, K], of the items shown.
    clicks: float32 [R, K], the click model's expected reward of them.
    by_clicks: float32 [R, T], the same of an item drawn from the policy.
    by_table: float32 [R, T], that by a table of the items' rewards.
    acted: float32 [R, T], the click model's mean over a slate as the policy
      acts, which is drawn without replacement.
  """

  log_pi: Array
  clicks: Array
  by_clicks: Array
  by_table: Array
  acted: Array


def log_probs(agent: Agent, params: Params, observation: Observation) -> Array:
  """log pi of every item, float32 [N + 1], up to a constant; -inf: never.

  Args:
    agent: made for slates of all items.
    params: the agent's, and the ActionSpace.
    observation: of one user.
  """
  params, catalogue = params
  nothing = jnp.zeros(0, jnp.int32)
  action = agent.act(params, catalogue, observation, nothing, None, 1.0)
  padded = jnp.full(len(catalogue.features), -jnp.inf)
  return padded.at[action.slate].set(action.log_prob)


@functools.partial(jax.jit, static_argnames=("agent", "env"))
def collect(
  agent: Agent,
  params: tuple[Params, ActionSpace],
  env: UserSimulator,
  users: EnvParams,
  user_id: Array,
  key: PRNGKey,
  *,
  temperature: Array | float,
) -> Sessions:
  """Logs whose propensities are known, one slate for each of R users.

  The K items of a slate are independent draws, which the estimators assume.

  Args:
    agent: see `log_probs`; static.
    params: see `log_probs`.
    env: the simulator; static.
    users: the pool; row r is of its user r modulo its size.
    user_id: int32 [R], who they are.
    key: of items and responses.
    temperature: at which the items are drawn.
  """

  def slate(row):
    item_key, response_key = jax.random.split(jax.random.fold_in(key, row))
    state = env.start(row % len(users.profiles), users)
    observation = state.observation
    log_pi = log_probs(agent, params, observation) / temperature
    noise = sampling.gumbel(item_key, (env.slate_size, len(log_pi)))
    shown = jnp.argmax(log_pi[None] + noise, -1).astype(jnp.int32)
    chance = env.chances(state, shown, users)
    draws = sampling.uniform(response_key, chance.shape)
    profile, history, _ = observation
    return profile, history, shown, (draws < chance).astype(jnp.float32)

  rows = jnp.arange(len(user_id))
  return Sessions(user_id, *jax.lax.map(slate, rows, batch_size=_CHUNK))


@functools.partial(jax.jit, static_argnames=("agent", "env"))
def score(
  agent: Agent,
  env: UserSimulator,
  params: tuple[Params, ActionSpace],
  users: EnvParams,
  sessions: Sessions,
  table: Array,
  temperatures: tuple[float, ...],
  key: PRNGKey,
) -> Scores:
  """Scores of logged slates; the policy is softmax(log pi / temperature).

  Args:
    agent: see `log_probs`; static.
    env: the simulator; static.
    params: see `log_probs`.
    users: whose click model is asked.
    sessions: the logs, R rows.
    table: float32 [N + 1], the items' rewards.
    temperatures: T of them.
    key: of the slates acted.
  """

  def of_row(inputs):
    row, session = inputs
    observation = Observation(session.profile, session.history)
    log_pi = log_probs(agent, params, observation)
    items = jnp.arange(len(log_pi))
    chance = env.probabilities(observation, items, users)
    clicks = _reward(chance, env.reward)
    noise = sampling.gumbel(jax.random.fold_in(key, row), log_pi.shape)

    def at(temperature):
      log_softmax = jax.nn.log_softmax(log_pi / temperature)
      pi = jnp.exp(log_softmax)
      _, slate = jax.lax.top_k(log_pi / temperature + noise, env.slate_size)
      return (
        log_softmax[session.exposed],
        pi @ clicks,
        pi @ table,
        clicks[slate].mean(),
      )

    shown, by_clicks, by_table, acted = jax.lax.map(
      at, jnp.asarray(temperatures)
    )
    return Scores(shown, clicks[session.exposed], by_clicks, by_table, acted)

  rows = jnp.arange(len(sessions.exposed))
  return jax.lax.map(of_row, (rows, sessions), batch_size=_CHUNK)


def estimates(
  sessions: Sessions,
  scores: Scores,
  temperatures: tuple[float, ...],
  *,
  env: UserSimulator,
  table: np.ndarray,
  clip: float,
  log_mu: np.ndarray | None = None,
) -> list[dict[str, Any]]:
  """The estimates at each temperature, and how much they rest on.

  Args:
    sessions: the logs, R rows.
    scores: of them.
    temperatures: those of `scores`; `collect` drew at the first.
    env: the simulator.
    table: float32 [N + 1], the items' rewards.
    clip: weights are cut there.
    log_mu: float32 [N + 1], the logs' propensities; None: what `collect` drew.
      Then the answer is known; the model of rewards is the click model if the
      logs are a dataset's, and the table, which is wrong, in the simulator.

  Returns:
    For each temperature but the first: `direct`, `snips` and `doubly_robust`,
    each with `value` and `ci95`; `effective_sample_size` of `draws`;
    `clipped`, share of the weights; `mean_weight` before clipping, 1 where
    the propensities are right and enough is drawn; with known propensities
    `truth` and `acted`, what slates without repeats earn.
  """
  slate, reward = (
    np.asarray(sessions.exposed),
    env.reward.items(sessions.response),
  )
  known = log_mu is None
  shown_mu = scores.log_pi[:, 0] if known else log_mu[slate]
  predicted = table[slate] if known else scores.clicks
  by_model = scores.by_table if known else scores.by_clicks
  units = len(np.unique(sessions.user_id))
  rows = []
  for place, temperature in enumerate(temperatures[1:], start=1):
    log_weight = np.asarray(scores.log_pi[:, place] - shown_mu, np.float64)
    weight = np.exp(log_weight)
    logged = off_policy.Logged(
      np.minimum(weight, clip),
      *(
        np.asarray(x, np.float64)
        for x in (reward, predicted, by_model[:, place])
      ),
      np.asarray(sessions.user_id),
    )
    row = {
      "temperature": temperature,
      "draws": weight.size,
      "effective_sample_size": off_policy.effective_sample_size(logged.weight),
      "mean_weight": float(weight.mean()),
      "clipped": float((weight > clip).mean()),
    }
    for name, estimator in (
      ("direct", off_policy.direct),
      ("snips", off_policy.snips),
      ("doubly_robust", off_policy.doubly_robust),
    ):
      value, error = estimator(logged)
      row[name] = {
        "value": value,
        "ci95": statistics.interval(value, error, units),
      }
    if known:
      row["truth"] = float(np.mean(scores.by_clicks[:, place], dtype=float))
      row["acted"] = float(np.mean(scores.acted[:, place], dtype=float))
    rows.append(row)
  return rows


def item_rewards(logs: Sessions, items: int, reward: Reward) -> np.ndarray:
  """Mean reward of each item in the logs, shrunk to that of all, [N + 1]."""
  rewards = np.asarray(reward.items(logs.response), np.float64)
  shown = np.asarray(logs.exposed).ravel()
  total = np.bincount(shown, rewards.ravel(), items + 1)
  count = np.bincount(shown, minlength=items + 1)
  shrunk = (total + _SHRINKAGE * rewards.mean()) / (count + _SHRINKAGE)
  return shrunk.astype(np.float32)


def log_popularity(logs: Sessions, items: int) -> np.ndarray:
  """log of each item's share of the logged items, one added, [N + 1]."""
  count = np.bincount(np.asarray(logs.exposed).ravel(), minlength=items + 1)
  count = np.where(np.arange(items + 1) > 0, count + 1.0, 0.0)
  with np.errstate(divide="ignore"):  # -inf for padding.
    return np.log(count / count.sum()).astype(np.float32)


def _reward(chance: Array, reward: Reward) -> Array:
  """Expected reward of an item by its probability of a positive response."""
  liked, missed = reward.items(jnp.array([1.0, 0.0]))
  return chance * liked + (1.0 - chance) * missed
