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


def behaviour(logs: Sessions, items: int) -> Behaviour:
  """The logging policy of S slates, of a catalogue of N `items`."""
  if logs.propensity is not None:
    log_prob = np.log(np.asarray(logs.propensity, np.float64))
    return Behaviour(log_prob.astype(np.float32), False)
  exposed = np.asarray(logs.exposed)
  # One more of each, so that no share is 0.
  count = np.bincount(exposed.ravel(), minlength=items + 1) + 1.0
  log_share = np.log(count / count[1:].sum())
  return Behaviour(log_share[exposed].astype(np.float32), True)
