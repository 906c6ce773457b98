"""Stage `evaluate`: held-out logs first, then simulated sessions.

Held-out logs tell how the trained policy, the click model and simple lists rank
what users liked later. Sessions in the simulator follow, of the policy and of
the bounds, with the verdict on the simulator.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import files
from hsrl_jax.agents import make_agent
from hsrl_jax.evaluation import held_out, ranking, verdict
from hsrl_jax.evaluation.simulated import bounds, measures, planned, simulate
from hsrl_jax.host import watch
from hsrl_jax.report import examples, journeys
from hsrl_jax.sim import topics as topics_lib
from hsrl_jax.stages import next_item
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params

RESULTS = "results.json"
SESSIONS = "sessions.npz"  # Measures of each evaluated session, by policy.
_EXAMPLES = 4
_JOURNEYS = 2  # Users whose sessions are drawn.
_RANKED_ITEMS = 20_000  # Larger catalogues are not ranked as a whole.


def run(parts: Parts, trained: list[tuple[simulate.Act, Params]]) -> None:
  """Writes results.json, sessions.npz and examples for the report.

  Args:
    parts: of the run.
    trained: the policy of each seed, with its parameters.
  """
  c, agent = parts.config.evaluate, parts.config.agent
  on_logs, lists = _on_logs(parts, [params for _, params in trained])
  users = parts.users(c.split)
  active = parts.catalogue.index.active
  policies = {
    name: [bound]
    for name, bound in bounds.bounds(parts.env, users, active).items()
  }
  sessions = _simulate(parts, policies | {agent: trained}, c.episodes)
  logged = parts.dataset.splits[c.split]
  few = {}
  if c.planned:
    planner = planned.planned(parts.env), (users, active)
    few = _simulate(parts, {planned.NAME: [planner]}, c.planned)
  quality = _quality(parts, sessions[agent])
  measures.save(parts.workdir / SESSIONS, sessions, logged.user_id)
  files.write_json(
    parts.workdir / RESULTS,
    {
      "format": measures.RESULTS_FORMAT,
      "protocol": parts.config.simulator.protocol,
      "dataset": parts.name,
      **({"world": parts.config.simulator.world} if parts.made_up else {}),
      "split": c.split,
      "episodes": c.episodes,
      "seeds": list(parts.config.train.seeds),
      "agent": agent,
      **on_logs,
      "policies": _policies(sessions | few, quality, int(active.sum())),
      "simulator": quality,
      "sids": _json(parts.folder("quantize") / "sids/report.json"),
    },
  )
  items = parts.dataset.items
  if lists is None:
    shown = examples.of_sessions(
      sessions[agent][0], logged.history, items, _EXAMPLES
    )
  else:
    _, likes = ranking.counts(parts.dataset.splits["train"], len(active) - 1)
    shown = examples.of_lists(lists, logged, items, likes, _EXAMPLES)
  files.write_json(parts.workdir / "report" / "examples.json", shown)
  if journeys.has_any(parts.env):
    files.write_json(
      parts.workdir / "report" / journeys.FILE, _journeys(parts, sessions)
    )


def _journeys(
  parts: Parts, sessions: dict[str, list[simulate.Sessions]]
) -> dict[str, Any]:
  """What journeys.json holds: of the policy, and what it is measured by."""
  c, env = parts.config.evaluate, parts.env
  users, key = parts.users(c.split), jax.random.key(c.seed)
  names = (parts.config.agent, "greedy_oracle", bounds.FARSIGHTED)
  return journeys.of_sessions(
    env,
    users,
    parts.topics or topics_lib.of_categories(parts.dataset.items.genres),
    {name: sessions[name][0] for name in names},
    [
      simulate.start(env, users, key, episode)
      for episode in range(min(_JOURNEYS, c.episodes))
    ],
  )


def _on_logs(
  parts: Parts, params: list[Params]
) -> tuple[dict[str, Any], np.ndarray | None]:
  """Held-out measures of results.json; empty where there is nothing to rank.

  Beside them the best items of the first seed's policy for each row, int [S,
  M], without items of the row's history; None where it ranks nothing.

  Args:
    parts: of the run.
    params: of the agent, of each seed, with its ActionSpace.
  """
  logs = parts.dataset.splits[parts.config.evaluate.split]
  train, active = parts.dataset.splits["train"], parts.catalogue.index.active
  items = len(parts.dataset.items.features) - 1
  if not logs.exposed.shape[1] or items > _RANKED_ITEMS:
    return {}, None
  scored = {
    "popularity": ranking.popularity(train, items),
    "item_mean": ranking.item_mean(train, items),
    "item_to_item": ranking.item_to_item(parts.dataset.items.features),
    "click_model": (_click_model(parts), parts.response),
  }
  rankers = {
    name: [(ranking.of_scores(score_fn, active), own)]
    for name, (score_fn, own) in scored.items()
  }
  agent = _ranker(parts)
  if agent is not None:
    rankers = {parts.config.agent: [(agent, x) for x in params]} | rankers
  rankings = {}
  without_history = not ranking.repeats(train)
  with watch.bar(sum(map(len, rankers.values())), "held out", "policy") as bar:
    for name, seeds in rankers.items():
      rankings[name] = []
      for ranker, own in seeds:
        rankings[name].append(
          ranking.rank(
            ranker, own, logs, items, without_history=without_history
          )
        )
        bar.update()
  reference = next(iter(rankings))
  logging = ranking.logging_policy(logs)
  if logging is not None:
    rankings["logging_policy"] = [logging]
  measured = held_out.measure(rankings, logs, train, items, reference)
  measured["held_out_rows"]["without_history"] = without_history
  if agent is None:
    return measured, None
  if without_history:
    return measured, rankings[parts.config.agent][0].top
  # Only the lists are wanted, not the scores of the logged slates once more.
  top = ranking.best(agent, params[0], logs, items, without_history=True)
  return measured, top


def _click_model(parts: Parts) -> ranking.ScoreFn:
  """The click model's probabilities as scores."""

  def score(response, observation):
    items = jnp.arange(1, len(parts.dataset.items.features))
    probability = parts.env.response_fn(
      response, observation.profile, observation.history, items
    )
    return jnp.concatenate([jnp.full(1, -jnp.inf), probability])

  return score


def _ranker(parts: Parts) -> ranking.Ranker | None:
  """How the agent ranks items; None where it has no order of them."""
  if parts.config.train.task == "next_item" or parts.config.supervised:
    return next_item.ranker(parts.config, parts.catalogue.index.num_items)
  return _by_greedy_slates(parts)


def _by_greedy_slates(parts: Parts) -> ranking.Ranker | None:
  """Ranks by the greedy slate of all items.

  A slate that is composed for a sweet point is no order, so the agent is made
  for a reward without one.
  """
  simulator = dataclasses.replace(parts.config.simulator, sweet_point=None)
  config = dataclasses.replace(parts.config, simulator=simulator)
  items = parts.catalogue.index.num_items
  agent = make_agent(config, items, items)
  if agent.draws:
    return None

  def score(params, observation):
    params, catalogue = params
    nothing = jnp.zeros(0, jnp.int32)
    slate = agent.act(params, catalogue, observation, nothing, None, 1.0).slate
    places = jnp.arange(items, 0, -1, dtype=jnp.float32)
    return jnp.zeros(len(catalogue.features)).at[slate].set(places)

  return ranking.of_scores(score, parts.catalogue.index.active)


def _quality(parts: Parts, sessions: list[simulate.Sessions]) -> dict[str, Any]:
  """quality.json of the simulator, with the verdict on the policy's slates."""
  path = parts.folder("simulator") / "simulator" / "quality.json"
  quality = _json(path)
  if "verdict" not in quality:
    return quality
  known = verdict.baselines(
    parts.dataset.splits["train"], len(parts.dataset.items.features) - 1
  )
  base_rate = parts.dataset.items.feedback.base_rate
  if base_rate is not None:
    known = known._replace(rate=base_rate)
  slates = np.stack([x.slates for x in sessions])
  liked = sum(float(x.positives.sum()) for x in sessions)
  rate = liked / max(int((slates > 0).sum()), 1)
  return verdict.of_slates(quality, slates, rate, known)


def _policies(
  sessions: dict[str, list[simulate.Sessions]],
  quality: dict[str, Any],
  items: int,
) -> dict[str, Any]:
  """`policies` of results.json; a useless simulator normalises nothing."""
  policies = measures.report(sessions, items)
  if quality.get("verdict") == "useless":
    for name, seeds in sessions.items():
      policies[name]["normalised"] = bounds.withheld(
        len(seeds), f"the simulator is useless: {quality['reasons'][0]}"
      )
  return policies


def _simulate(
  parts: Parts,
  policies: dict[str, list[tuple[simulate.Act, Params]]],
  episodes: int,
) -> dict[str, list[simulate.Sessions]]:
  """Sessions of each policy and seed, of the same users with the same luck."""
  c = parts.config.evaluate
  users, key = parts.users(c.split), jax.random.key(c.seed)
  sessions = {}
  with watch.bar(sum(map(len, policies.values())), "evaluate", "policy") as bar:
    for name, seeds in policies.items():
      sessions[name] = []
      for act, params in seeds:
        of_seed = simulate.simulate(
          act, parts.env, params, users, key, episodes=episodes
        )
        sessions[name].append(jax.device_get(of_seed))
        bar.update()
  return sessions


def _json(path):
  return json.loads(path.read_text())
