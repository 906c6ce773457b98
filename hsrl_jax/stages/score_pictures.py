"""The sessions that the report draws."""

from typing import Any

import jax
import numpy as np

from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.report import journeys
from hsrl_jax.sim import topics as topics_lib
from hsrl_jax.stages.parts import Parts

_USERS = 2  # Whose sessions are drawn.


def of(
  parts: Parts,
  sessions: dict[str, list[simulate.Simulated]],
  rows: np.ndarray,
) -> dict[str, Any]:
  """What journeys.json holds: of the policy, and what it is measured by.

  Sessions are of the `rows` of the split, int32 [E].
  """
  c, env = parts.config.evaluate, parts.judge
  users, key = parts.judged_users(c.split), jax.random.key(simulate.SEED)
  names = (parts.config.agent, "greedy_oracle", bounds.FARSIGHTED)
  return journeys.of_sessions(
    env,
    users,
    parts.topics or topics_lib.of_categories(parts.dataset.items.genres),
    {name: sessions[name][0] for name in names},
    [
      simulate.start(env, users, key, episode, rows[episode])
      for episode in range(min(_USERS, len(rows)))
    ],
  )
