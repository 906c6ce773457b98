"""Held-out logs: how the policy, the click model and simple lists rank them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents import make_agent
from hsrl_jax.agents.base import Agent
from hsrl_jax.config import SPLITS
from hsrl_jax.evaluation import collaborative, held_out, ranking
from hsrl_jax.host import threads, watch
from hsrl_jax.stages import next_item
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params, Sessions

MOST_SCORES = 1e9  # Rows are drawn where all of them would take more.

# Name of a policy or list to its ranker with the parameters of each seed.
Rankers = dict[str, list[tuple[ranking.Ranker, Params]]]


def measure(
  parts: Parts, params: list[Params]
) -> tuple[dict[str, Any], np.ndarray | None]:
  """Held-out measures of results.json; empty where there is nothing to rank.

  So they are in the jobs of an experiment, which compares simulated sessions.

  Beside them the best items of the first seed's policy for each of the rows
  that are `judged`, int [S, M], without items of the row's history; None where
  it ranks nothing.
  Parameters are those of each seed, with its Catalogue.
  """
  if parts.shared is not None or not can_rank(parts):
    return {}, None
  logs, train = judged(parts), parts.dataset.splits["train"]
  items = len(parts.dataset.items.features) - 1
  own = of_policy(parts, params)
  ranked = rankings(parts, own | of_lists(parts))
  reference = next(iter(ranked))
  logging = ranking.logging_policy(logs)
  if logging is not None:
    ranked["logging_policy"] = [logging]
  measured = held_out.measure(ranked, logs, train, items, reference)
  without = ranked[reference][0].top_of_all is not None
  whole = parts.dataset.splits[parts.config.evaluate.split]
  measured["held_out_rows"] |= {
    "without": parts.config.evaluate.without if without else "nothing",
    "of_rows": len(whole.user_id),
  }
  if not own:
    return measured, None
  if without:
    return measured, ranked[parts.config.agent][0].top
  # Only the lists are wanted, not the scores of the logged slates once more.
  ranker, first = own[parts.config.agent][0]
  return measured, ranking.best(ranker, first, logs, items, logs.history)


def left_out_of(parts: Parts, logs: Sessions) -> np.ndarray | None:
  """The items that lists leave out by row, int32 [S, T]; None: nothing.

  What the splits before the evaluation's showed, or the history.
  """
  c, dataset = parts.config.evaluate, parts.dataset
  if c.without == "history":
    return None if ranking.repeats(dataset.splits["train"]) else logs.history
  before = SPLITS[: SPLITS.index(c.split)]
  shown = [dataset.seen(x).astype(np.int64) for x in before]
  owner = [dataset.splits[x].user_id[:, None] for x in before]
  width = len(dataset.items.features)
  pairs = [x * width + y for x, y in zip(owner, shown, strict=True)]
  keys = np.unique(np.concatenate([np.zeros(1, int), *map(np.ravel, pairs)]))
  users, row = np.unique(logs.user_id, return_inverse=True)
  first, last = (np.searchsorted(keys, x * width) for x in (users, users + 1))
  places = first[:, None] + np.arange(max((last - first).max(), 0))
  own = keys[np.minimum(places, len(keys) - 1)] % width
  own = np.where(places < last[:, None], own, 0)
  return np.concatenate([logs.history, own[row]], 1, dtype=np.int32)


def can_rank(parts: Parts) -> bool:
  """Whether there are held-out slates."""
  return parts.dataset.splits[parts.config.evaluate.split].exposed.shape[1] > 0


def judged(parts: Parts) -> Sessions:
  """The rows of the evaluation's split that are ranked; see `drawn`."""
  c, items = parts.config.evaluate, len(parts.dataset.items.features) - 1
  return drawn(parts.dataset.splits[c.split], items)


def drawn(sessions: Sessions, items: int, seed: int = 0) -> Sessions:
  """All rows, or where these are too many those of users drawn at random.

  Where a single user has too many, some of that user's sessions are drawn, or
  rows if the logs name no sessions.

  Args:
    sessions: S logged rows.
    items: N; S N above MOST_SCORES are too many.
    seed: of the draw.
  """
  user, rng = np.asarray(sessions.user_id), np.random.default_rng(seed)
  most = max(int(MOST_SCORES // (items + 1)), 1)
  if len(user) <= most:
    return sessions
  rows = _of_some(user, most, rng)
  if len(rows) > most:
    parts = rows
    if sessions.session is not None:
      parts = np.asarray(sessions.session)[rows]
    rows = rows[_of_some(parts, most, rng)]
  return jax.tree.map(lambda x: np.asarray(x)[rows], sessions)


def _of_some(
  group: np.ndarray, most: int, rng: np.random.Generator
) -> np.ndarray:
  """The rows of groups drawn at random, at most so many, of one at least."""
  groups, count = np.unique(group, return_counts=True)
  order = rng.permutation(len(groups))
  number = np.searchsorted(count[order].cumsum(), most, side="right")
  return np.flatnonzero(np.isin(group, groups[order[: max(number, 1)]]))


def of_policy(parts: Parts, params: list[Params]) -> Rankers:
  """The agent with the parameters of each seed; empty if it has no order."""
  agent = ranking_of(parts)
  if agent is None:
    return {}
  return {parts.config.agent: [(agent, x) for x in params]}


def of_lists(parts: Parts) -> Rankers:
  """Simple lists and the click model, by name."""
  train, active = parts.dataset.splits["train"], parts.catalogue.index.active
  items = len(parts.dataset.items.features) - 1
  scored = {
    "popularity": ranking.popularity(train, items),
    "item_mean": ranking.item_mean(train, items),
    "item_to_item": ranking.item_to_item(parts.dataset.items.features),
    "click_model": (click_model(parts), parts.response),
  }
  if items <= collaborative.MOST_ITEMS:
    scored["ease"] = collaborative.ease(train, items)
    scored["als"] = collaborative.als(train, items)
  return {
    name: [(ranking.of_scores(score_fn, active), own)]
    for name, (score_fn, own) in scored.items()
  }


def rankings(
  parts: Parts, rankers: Rankers
) -> dict[str, list[ranking.Rankings]]:
  """How all of them rank the rows that are `judged`."""
  logs, items = judged(parts), len(parts.dataset.items.features) - 1
  left_out = left_out_of(parts, logs)
  with watch.bar(sum(map(len, rankers.values())), "held out", "policy") as bar:

    def of_policy(seeds):
      found = []
      for ranker, own in seeds:
        found.append(ranking.rank(ranker, own, logs, items, left_out))
        bar.update()
      return found

    made = threads.side_by_side(of_policy, rankers.values())
    return dict(zip(rankers, made, strict=True))


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
  return parts.config.train.recipe == "next_item"


def ranking_of(parts: Parts) -> ranking.Ranker | None:
  """How the agent ranks items; None where it has no order of them."""
  if ranks_next_item(parts):
    return next_item.ranker(parts.config, parts.catalogue.index.num_items)
  return _by_scores(parts)


def agent_for(parts: Parts, slate_size: int) -> Agent:
  """The agent for slates of so many items.

  A slate that is composed for a sweet point is no order, so it is made for a
  reward without one. And a list of next items is what the first slot says,
  where that slot alone is held.
  """
  simulator = dataclasses.replace(parts.config.simulator, sweet_point=None)
  config = dataclasses.replace(parts.config, simulator=simulator)
  if getattr(config.settings, "hold_logged", None) == "slot":
    own = dataclasses.replace(config.settings, hold_logged="slate")
    config = dataclasses.replace(config, settings=own)
  return make_agent(config, slate_size, parts.catalogue.index.num_items)


def _by_scores(parts: Parts) -> ranking.Ranker | None:
  """Ranks by the agent's scores of items; its best items as it finds them."""
  index = parts.catalogue.index
  # Its candidates may be more for a longer slate.
  agent = agent_for(parts, index.num_items)
  if agent.draws:
    return None

  def score(params, observation):
    scores, _ = ranking.of_agent(agent, *params, observation)
    return scores

  ranker = ranking.of_scores(score, index.active)
  if not agent.beams and not parts.config.train.goes_on:
    return ranker
  listing = agent_for(parts, min(ranking.LISTED, index.num_items))
  return ranker._replace(best=ranking.by_slates(listing.act))
