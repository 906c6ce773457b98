"""Simulated sessions of the evaluation: of policies, and of the bounds.

Runs that share stages share the sessions of the bounds, which are the same.
"""

import jax
import numpy as np

from hsrl_jax import files
from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.host import threads, watch
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params

_BOUNDS, _BOUNDS_FORMAT = "sessions.npz", 1
_FIELDS = simulate.Simulated._fields


def with_bounds(
  parts: Parts,
  policies: dict[str, list[tuple[simulate.Act, Params]]],
  rows: np.ndarray,
) -> dict[str, list[simulate.Simulated]]:
  """Sessions of the bounds, then of policies."""
  known, own = _kept_bounds(parts), {}
  if not known:
    users = parts.judged_users(parts.config.evaluate.split)
    own = bounds.bounds(parts.judge, users, parts.catalogue.index.active)
  of_own = {name: [x] for name, x in own.items()}
  sessions = known | simulated(parts, of_own | policies, rows)
  if own and parts.shared is not None:
    _keep_bounds(parts, {name: sessions[name] for name in own})
  return sessions


def _kept_bounds(parts: Parts) -> dict[str, list[simulate.Simulated]]:
  """Sessions of each bound, of a run that shares stages; {}: there are none."""
  path = parts.folder("bounds") / _BOUNDS
  if parts.shared is None or not path.exists():
    return {}
  kept = files.read_npz(path, _BOUNDS_FORMAT)
  names = dict.fromkeys(x.partition("/")[0] for x in kept if "/" in x)
  return {
    name: [simulate.Simulated(*(kept[f"{name}/{x}"] for x in _FIELDS))]
    for name in names
  }


def _keep_bounds(
  parts: Parts, sessions: dict[str, list[simulate.Simulated]]
) -> None:
  """For the runs that share stages with this one."""
  arrays = {
    f"{name}/{field}": getattr(one, field)
    for name, (one,) in sessions.items()
    for field in _FIELDS
  }
  files.write_npz(parts.folder("bounds") / _BOUNDS, _BOUNDS_FORMAT, **arrays)


def simulated(
  parts: Parts,
  policies: dict[str, list[tuple[simulate.Act, Params]]],
  rows: np.ndarray,
) -> dict[str, list[simulate.Simulated]]:
  """Sessions of each policy and seed, of the same users with the same luck."""
  c = parts.config.evaluate
  users, key = parts.judged_users(c.split), jax.random.key(simulate.SEED)
  with watch.bar(sum(map(len, policies.values())), "evaluate", "policy") as bar:

    def of_seed(act, params):
      given = (act, parts.judge, params, users, key, rows)
      made = jax.device_get(simulate.simulate(*given, episodes=len(rows)))
      bar.update()
      return made

    made = threads.side_by_side(
      lambda seeds: [of_seed(*x) for x in seeds], policies.values()
    )
    return dict(zip(policies, made, strict=True))
