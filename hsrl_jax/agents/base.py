"""What the training engine asks of an agent: three pure functions."""

from collections.abc import Callable
from typing import NamedTuple

from hsrl_jax.sid.index import SidIndex
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  Params,
  PRNGKey,
  Transition,
)


class Catalogue(NamedTuple):
  """The items that an agent chooses from; an input, so that it may change.

  Attributes:
    features: float32 [N + 1, D], row 0 for padding.
    index: their SIDs.
    codebooks: float32 [L, V, D], what the tokens mean.
  """

  features: Array
  index: SidIndex
  codebooks: Array


class Agent(NamedTuple):
  """An algorithm. All functions are of ONE user; the engine vmaps.

  Attributes:
    init: (key, catalogue, observation) -> params.
    act: (params, catalogue, observation, excluded, key, temperature) ->
      (slate [K], log pi of each item [K]). With key None the slate is greedy;
      else it is sampled without replacement at the temperature. `excluded`,
      int32 [T], holds ids that may not be shown; 0 is ignored.
    loss: (params, target_params, catalogue, transition, key, progress) ->
      (loss [], metrics). `progress` in [0, 1] drives schedules.
  """

  init: Callable[[PRNGKey, Catalogue, Observation], Params]
  act: Callable[..., tuple[Array, Array]]
  loss: Callable[
    [Params, Params, Catalogue, Transition, PRNGKey, Array],
    tuple[Array, Metrics],
  ]


def geometric(start: float, end: float, progress: Array) -> Array:
  """A schedule: from `start` to `end` by equal ratios; both above 0."""
  return start * (end / start) ** progress
