"""Off-policy estimates of the policy's value, from logs with propensities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.data import transitions
from hsrl_jax.evaluation import logged, off_policy, ranking
from hsrl_jax.stages import score_on_logs as on_logs
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params, Sessions


def measure(parts: Parts, params: list[Params]) -> dict[str, Any]:
  """`off_policy` of results.json; empty where no propensities were logged.

  It is of the slates that have them, of which `off_policy_rows` says how many,
  or of the sessions all of whose slates do. The value is the mean response to
  an item; where sessions were logged, `off_policy_sessions` has the total
  reward of one beside it. Beside the trained policy there are the lists that
  know no user, and the policy that logged. Doubly robust estimates ask the
  click model, which has seen the training split alone.
  Parameters are those of each seed, with its Catalogue.
  """
  c, items = parts.config.evaluate, len(parts.dataset.items.features) - 1
  split = parts.dataset.splits[c.split]
  known = transitions.with_propensities(split)
  if not known.any():
    return {}
  logs = on_logs.drawn(_of_rows(split, known), items)
  rows = {
    "rows": len(logs.user_id),
    "with_propensities": int(known.sum()),
    "of_rows": len(known),
  }
  train, active = parts.dataset.splits["train"], parts.catalogue.index.active
  slate_size = logs.exposed.shape[1]

  def shows_best(scores, observation):
    del observation
    return logged.shows_best(scores, active, slate_size)

  policies = {
    name: (shows_best, [scores])
    for name, (_, scores) in (
      ("popularity", ranking.popularity(train, items)),
      ("item_mean", ranking.item_mean(train, items)),
    )
  }
  policies = {
    parts.config.agent: (_agent(parts, slate_size), params)
  } | policies
  model = on_logs.click_model(parts), parts.response
  seen = {
    name: logged.seen_by(policy, seeds, model, logs, items)
    for name, (policy, seeds) in policies.items()
  }
  of_items = {name: logged.of_items(x, logs) for name, x in seen.items()}
  found = {"off_policy_rows": rows} | off_policy.compare(of_items)
  if logs.session is None:
    return found
  others = _named(_of_rows(split, ~known))
  whole = ~np.isin(_named(logs), others)
  if not whole.any():
    return found
  logs, seen = (
    _of_rows(logs, whole),
    {name: _of_rows(x, whole) for name, x in seen.items()},
  )
  reward = parts.env.reward
  of_sessions = {
    name: logged.of_sessions(x, logs, reward) for name, x in seen.items()
  }
  return found | off_policy.compare(of_sessions, what="off_policy_sessions")


def _of_rows(rows: Any, chosen: np.ndarray) -> Any:
  """The rows that are chosen, by bool [S], of arrays [S, ...]."""
  return jax.tree.map(lambda x: np.asarray(x)[chosen], rows)


def _named(logs: Sessions) -> np.ndarray:
  """A number for the session of each slate, int64 [S]."""
  user = np.asarray(logs.user_id, np.int64)
  return user << 32 | np.asarray(logs.session, np.int64)


def _agent(parts: Parts, slate_size: int) -> logged.PolicyFn:
  """The agent's probabilities of items."""
  if not on_logs.ranks_next_item(parts):
    items = parts.catalogue.index.num_items
    return logged.of_agent(on_logs.agent_for(parts, items), slate_size)
  ranker = on_logs.ranking_of(parts)

  def probabilities(params, observation):
    active = params[1].index.active
    scores = ranker.shown(params, observation, jnp.arange(len(active)))
    return logged.softmax(scores, active)

  return probabilities
