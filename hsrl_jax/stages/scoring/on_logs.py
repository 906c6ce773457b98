"""Held-out logs: how the policy, the click model and simple lists rank them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents import make_agent
from hsrl_jax.agents.base import Agent
from hsrl_jax.evaluation import held_out, ranking
from hsrl_jax.host import threads, watch
from hsrl_jax.stages import next_item
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params

RANKED_ITEMS = 20_000  # Larger catalogues are not ranked as a whole.


def measure(
  parts: Parts, params: list[Params]
) -> tuple[dict[str, Any], np.ndarray | None]:
  """Held-out measures of results.json; empty where there is nothing to rank.

  So they are in the jobs of an experiment, which compares simulated sessions.

  Beside them the best items of the first seed's policy for each row, int [S,
  M], without items of the row's history; None where it ranks nothing.

  Args:
    parts: of the run.
    params: of the agent, of each seed, with its ActionSpace.
  """
  logs = parts.dataset.splits[parts.config.evaluate.split]
  train, active = parts.dataset.splits["train"], parts.catalogue.index.active
  items = len(parts.dataset.items.features) - 1
  in_experiment = parts.shared is not None
  if in_experiment or not logs.exposed.shape[1] or items > RANKED_ITEMS:
    return {}, None
  scored = {
    "popularity": ranking.popularity(train, items),
    "item_mean": ranking.item_mean(train, items),
    "item_to_item": ranking.item_to_item(parts.dataset.items.features),
    "click_model": (click_model(parts), parts.response),
  }
  rankers = {
    name: [(ranking.of_scores(score_fn, active), own)]
    for name, (score_fn, own) in scored.items()
  }
  agent = ranking_of(parts)
  if agent is not None:
    rankers = {parts.config.agent: [(agent, x) for x in params]} | rankers
  without_history = not ranking.repeats(train)
  with watch.bar(sum(map(len, rankers.values())), "held out", "policy") as bar:

    def of_policy(seeds):
      found = []
      for ranker, own in seeds:
        found.append(
          ranking.rank(
            ranker, own, logs, items, without_history=without_history
          )
        )
        bar.update()
      return found

    made = threads.side_by_side(of_policy, rankers.values())
    ranked = dict(zip(rankers, made, strict=True))
  reference = next(iter(ranked))
  logging = ranking.logging_policy(logs)
  if logging is not None:
    ranked["logging_policy"] = [logging]
  measured = held_out.measure(ranked, logs, train, items, reference)
  measured["held_out_rows"]["without_history"] = without_history
  if agent is None:
    return measured, None
  if without_history:
    return measured, ranked[parts.config.agent][0].top
  # Only the lists are wanted, not the scores of the logged slates once more.
  top = ranking.best(agent, params[0], logs, items, without_history=True)
  return measured, top


def rankings(parts: Parts, params: list[Params]) -> list[ranking.Rankings]:
  """How the policy of each seed ranks the rows of the evaluation's split."""
  splits, items = parts.dataset.splits, parts.catalogue.index.num_items
  logs, ranker = splits[parts.config.evaluate.split], ranking_of(parts)
  without_history = not ranking.repeats(splits["train"])
  return [
    ranking.rank(ranker, own, logs, items, without_history=without_history)
    for own in params
  ]


def click_model(parts: Parts) -> ranking.ScoreFn:
  """The click model's probabilities as scores."""

  def score(response, observation):
    items = jnp.arange(1, len(parts.dataset.items.features))
    probability = parts.env.response_fn(
      response, observation.profile, observation.history, items
    )
    return jnp.concatenate([jnp.full(1, -jnp.inf), probability])

  return score


def ranks_next_item(parts: Parts) -> bool:
  """Whether the policy is a model of the next item."""
  return parts.config.train.task == "next_item" or parts.config.supervised


def ranking_of(parts: Parts) -> ranking.Ranker | None:
  """How the agent ranks items; None where it has no order of them."""
  if ranks_next_item(parts):
    return next_item.ranker(parts.config, parts.catalogue.index.num_items)
  return _by_greedy_slates(parts)


def of_all_items(parts: Parts) -> Agent:
  """The agent for slates of all items.

  A slate that is composed for a sweet point is no order, so it is made for a
  reward without one.
  """
  simulator = dataclasses.replace(parts.config.simulator, sweet_point=None)
  config = dataclasses.replace(parts.config, simulator=simulator)
  items = parts.catalogue.index.num_items
  return make_agent(config, items, items)


def _by_greedy_slates(parts: Parts) -> ranking.Ranker | None:
  """Ranks by the greedy slate of all items."""
  agent, items = of_all_items(parts), parts.catalogue.index.num_items
  if agent.draws:
    return None
  if agent.scores is not None:
    return ranking.of_scores(
      lambda params, observation: agent.scores(*params, observation),
      parts.catalogue.index.active,
    )

  def score(params, observation):
    params, catalogue = params
    nothing = jnp.zeros(0, jnp.int32)
    slate = agent.act(params, catalogue, observation, nothing, None, 1.0).slate
    places = jnp.arange(items, 0, -1, dtype=jnp.float32)
    return jnp.zeros(len(catalogue.features)).at[slate].set(places)

  return ranking.of_scores(score, parts.catalogue.index.active)
