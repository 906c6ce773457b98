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
  parts: Parts, sessions: dict[str, list[simulate.Simulated]], rows: np.ndarray
) -> dict[str, Any]:
  """Content of journeys.json: sessions of the policy and of its bounds.

  Sessions are of the `rows` of the split, int32 [E].
  """
  env, users = parts.judge, parts.judged_users()
  key = jax.random.key(simulate.SEED)
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
