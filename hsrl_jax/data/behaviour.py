"""Who showed what was logged: logged propensities, or an estimate of them.

The estimate is the simplest one: the same for everybody and every state, by how
often each item was shown. It knows nothing of what the logging policy knew, so
importance weights by it are a guess.
"""

from typing import NamedTuple

import numpy as np

from hsrl_jax.types import Sessions


class Behaviour(NamedTuple):
  """The logging policy at what was logged.

  Attributes:
    log_prob: float32 [S, K], of each item shown.
    estimated: whether it was not logged.
  """

  log_prob: np.ndarray
  estimated: bool


def behaviour(
  logs: Sessions, items: int, exposures: np.ndarray | None = None
) -> Behaviour:
  """The logging policy of S slates.

  Args:
    logs: the slates.
    items: N of the catalogue.
    exposures: int [N + 1], how often each item was shown in all logs; None:
      `logs` are all.
  """
  if logs.propensity is not None:
    log_prob = np.log(np.asarray(logs.propensity, np.float64))
    return Behaviour(log_prob.astype(np.float32), False)
  exposed = np.asarray(logs.exposed)
  if exposures is None:
    exposures = np.bincount(exposed.ravel(), minlength=items + 1)
  count = exposures + 1.0  # One more of each, so that no share is 0.
  log_share = np.log(count / count[1:].sum())
  return Behaviour(log_share[exposed].astype(np.float32), True)
