"""Stage `evaluate`: held-out logs first, then simulated sessions.

Held-out logs tell how the trained policy, the click model and simple lists rank
what users liked later; logs with propensities also what it would have earned.
Sessions in the simulator follow, of the policy and of the bounds, with the
verdict on the simulator.
"""

import json
from typing import Any

import numpy as np

from hsrl_jax import files
from hsrl_jax.data import source
from hsrl_jax.evaluation import bounds, measures, ranking, simulate, verdict
from hsrl_jax.evaluation.statistics import MIN_USERS
from hsrl_jax.report import examples, journeys
from hsrl_jax.stages import logged as logged_lib
from hsrl_jax.stages import score_from_logs as from_logs
from hsrl_jax.stages import score_on_logs as on_logs
from hsrl_jax.stages import score_pictures as pictures
from hsrl_jax.stages import score_sessions as sessions_lib
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params

RESULTS = "results.json"
SESSIONS = "sessions.npz"  # Measures of each evaluated session, by policy.
_EXAMPLES = 4


def run(parts: Parts, trained: list[tuple[simulate.Act, Params]]) -> None:
  """Writes results.json, sessions.npz and examples for the report."""
  c, agent = parts.config.evaluate, parts.config.agent
  params = [own for _, own in trained]
  held_out, lists = on_logs.measure(parts, params)
  active = parts.catalogue.index.active
  logged = parts.dataset.splits[c.split]
  # Session e is of row rows[e] of the split, whatever the policy.
  rows = simulate.sample(logged.user_id, c.episodes)
  sessions = sessions_lib.with_bounds(parts, {agent: trained}, rows)
  quality = _json(parts.folder("simulator") / "simulator" / "quality.json")
  measures.save(parts.workdir / SESSIONS, sessions, logged.user_id[rows])
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
      "recipe": parts.config.train.recipe,
      "ranks_next": on_logs.ranks_next_item(parts),
      **_learned(parts),
      **held_out,
      **from_logs.measure(parts, params),
      "policies": _policies(
        sessions, quality, logged.user_id[rows], int(active.sum())
      ),
      "simulator": quality,
      **_in_simulator(parts, quality, sessions, held_out),
      "sids": _json(parts.folder("quantize") / "sids/report.json"),
    },
  )
  items = parts.dataset.items
  if lists is None:
    shown = examples.of_sessions(
      sessions[agent][0], logged.history[rows], items, _EXAMPLES
    )
  else:
    _, likes = ranking.counts(parts.dataset.splits["train"], len(active) - 1)
    judged = on_logs.judged(parts)
    names = source.user_names(parts.folder("data") / "data")
    shown = examples.of_lists(lists, judged, items, likes, _EXAMPLES, names)
  files.write_json(parts.workdir / "report" / "examples.json", shown)
  if journeys.has_any(parts.judge):
    files.write_json(
      parts.workdir / "report" / journeys.FILE,
      pictures.of(parts, sessions, rows),
    )


def _learned(parts: Parts) -> dict[str, Any]:
  """`learned_from` of results.json, where that are logs."""
  if not parts.config.train.from_logs:
    return {}
  known = logged_lib.facts(parts.config, parts.training_logs)
  return {"learned_from": known}


def _in_simulator(
  parts: Parts,
  quality: dict[str, Any],
  sessions: dict[str, list[simulate.Simulated]],
  held_out: dict[str, Any],
) -> dict[str, Any]:
  """`policy_in_simulator` of results.json, if a judged click model answers."""
  if "verdict" not in quality or parts.ratings is not None:
    return {}
  items, train = parts.dataset.items, parts.dataset.splits["train"]
  known = verdict.baselines(train, len(items.features) - 1)
  if items.feedback.base_rate is not None:
    known = known._replace(rate=items.feedback.base_rate)
  agent, found = parts.config.agent, {}
  # Else they are of another list, or of users who are too few to tell.
  known_by = held_out.get("held_out_rows", {}).get("users", 0)
  if agent in held_out.get("held_out", {}) and known_by >= MIN_USERS:
    found = held_out["held_out_differences"]
  judged = verdict.of_policy(quality, known, sessions, agent, found)
  return {"policy_in_simulator": judged}


def _policies(
  sessions: dict[str, list[simulate.Simulated]],
  quality: dict[str, Any],
  user: np.ndarray,
  items: int,
) -> dict[str, Any]:
  """`policies` of results.json; a useless simulator normalises nothing."""
  policies = measures.report(sessions, user, items=items)
  if quality.get("verdict") == "useless":
    for name, seeds in sessions.items():
      policies[name]["normalised"] = bounds.withheld(
        len(seeds), f"the simulator is useless: {quality['reasons'][0]}"
      )
  return policies


def _json(path):
  return json.loads(path.read_text())
