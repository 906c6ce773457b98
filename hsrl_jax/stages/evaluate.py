"""Stage `evaluate`: sessions of the trained policies, and of the bounds."""

import json

import jax

from hsrl_jax import files
from hsrl_jax.evaluation import bounds, measures, simulate
from hsrl_jax.host import watch
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params

RESULTS = "results.json"
SESSIONS = "sessions.npz"  # Measures of each evaluated session, by policy.
_EXAMPLES = 4


def run(parts: Parts, trained: list[tuple[simulate.Act, Params]]) -> None:
  """Writes results.json, sessions.npz and examples for the report.

  Args:
    parts: of the run.
    trained: the policy of each seed, with its parameters.
  """
  c, agent = parts.config.evaluate, parts.config.agent
  users = parts.users(c.split)
  active = parts.catalogue.index.active
  policies = {
    name: [bound]
    for name, bound in bounds.bounds(parts.env, users, active).items()
  }
  sessions = _simulate(parts, policies | {agent: trained})
  logged = parts.dataset.splits[c.split]
  measures.save(parts.workdir / SESSIONS, sessions, logged.user_id)
  files.write_json(
    parts.workdir / RESULTS,
    {
      "format": measures.RESULTS_FORMAT,
      "protocol": parts.config.simulator.protocol,
      "dataset": parts.name,
      "split": c.split,
      "episodes": c.episodes,
      "seeds": list(parts.config.train.seeds),
      "agent": agent,
      "policies": measures.report(sessions),
      "simulator": _json(parts.folder("simulator") / "simulator/quality.json"),
      "sids": _json(parts.folder("quantize") / "sids/report.json"),
    },
  )
  shown = simulate.examples(
    sessions[agent][0], logged.history, parts.dataset.items.titles, _EXAMPLES
  )
  files.write_json(parts.workdir / "report" / "examples.json", shown)


def _simulate(
  parts: Parts, policies: dict[str, list[tuple[simulate.Act, Params]]]
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
          act, parts.env, params, users, key, episodes=c.episodes
        )
        sessions[name].append(jax.device_get(of_seed))
        bar.update()
  return sessions


def _json(path):
  return json.loads(path.read_text())
