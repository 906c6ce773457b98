"""Leave rules: when a user goes (docs/simulator.md).

A rule of another kind is a class here with the two methods of `LeaveRule`,
hashable and equal to its like alone, such as a frozen dataclass. A rule that
depends on what the shown items are is a subclass of `ItemRule`.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.ops import distance
from hsrl_jax.types import Array

# Patience is often 1 up to the rounding of float32, which must not decide.
_ROUNDING = 1e-3
_PATIENCE = 20.0  # What a user starts with.
_MOST_ITEMS = 5_000  # Whose distances are computed once and for all.
_SAMPLED_PAIRS = 200_000


class LeaveRule(Protocol):
  """When ONE user leaves. The state is any pytree of arrays."""

  def start(self) -> Any:
    """The state at the start of a session."""

  def step(
    self, state: Any, slate: Array, response: Array, reward: Array, draw: Array
  ) -> tuple[Any, Array]:
    """The state after a slate, and whether the user leaves, bool [].

    Args:
      state: before.
      slate: int32 [K], the items shown.
      response: float32 [K], 1 for a positive response, else 0.
      reward: float32 [], of the slate.
      draw: float32 [], uniform in (0, 1), for rules that leave by chance.
    """


@dataclasses.dataclass(frozen=True)
class Patience:
  """Patience falls by (1 - reward) K + 1 a slate; below 1 the user leaves."""

  # Patience at the start of a session. The state is what is left.
  initial: float

  def start(self) -> Array:
    """See LeaveRule."""
    return jnp.float32(self.initial)

  def step(self, state, slate, response, reward, draw):
    """See LeaveRule."""
    del response, draw
    patience = state - ((1.0 - reward) * len(slate) + 1.0)
    return patience, patience < 1.0 - _ROUNDING


@dataclasses.dataclass(frozen=True)
class Length:
  """Nobody leaves: each session has its full length. The state is 0."""

  def start(self) -> Array:
    """See LeaveRule."""
    return jnp.int32(0)

  def step(self, state, slate, response, reward, draw):
    """See LeaveRule."""
    del slate, response, reward, draw
    return state, jnp.bool(False)


@dataclasses.dataclass(frozen=True)
class Disappointment:
  """Who was disappointed lately leaves by chance.

  Disappointment d, 0 at the start, becomes 0.7 d + 0.3 (1 - y) with each slate,
  of which y is the share that was liked. Then the user leaves with probability
  0.5 sigmoid(10 (d - 0.55)). The state is d.
  """

  def start(self) -> Array:
    """See LeaveRule."""
    return jnp.float32(0.0)

  def step(self, state, slate, response, reward, draw):
    """See LeaveRule."""
    del reward
    share = response.sum() / jnp.maximum((slate > 0).sum(), 1)
    disappointed = 0.7 * state + 0.3 * (1.0 - share)
    hazard = 0.5 * jax.nn.sigmoid(10.0 * (disappointed - 0.55))
    return disappointed, draw < hazard


class ItemRule:
  """Base class of the leave rules that depend on what the shown items are.

  A subclass has the field `window`, and `knows`: the field of `EnvParams` with
  what the rule knows of the items. `step` takes that as one more argument,
  `known`. The state is the ids of the last items shown, int32 [window], newest
  last, padded with 0.
  """

  knows: ClassVar[str]
  window: int

  def start(self) -> Array:
    """See LeaveRule."""
    return jnp.zeros(self.window, jnp.int32)

  def triggers(self, state: Array, items: Array, known: Any) -> Array:
    """Whether each item would make the user leave, bool [M].

    Args:
      state: before the slate.
      items: int32 [M].
      known: see the class.
    """
    raise NotImplementedError

  def step(self, state, slate, response, reward, draw, known):
    """See LeaveRule."""
    del response, reward, draw
    leaves = self.triggers(state, slate, known).any()
    shown = jnp.concatenate([state, slate])
    # A stable sort moves places that show nothing to the front.
    order = jnp.argsort(shown > 0, stable=True)[-self.window :]
    return shown[order], leaves


@dataclasses.dataclass(frozen=True)
class BoredomRule(ItemRule):
  """A user leaves when a category of a shown item was shown too often before.

  That is when one of its categories occurs more than `threshold` times among
  the last `window` items shown before the slate. The slate that makes the user
  leave still earns. The rule is that of the environments of EasyRL4Rec, CIRS
  (arXiv 2204.01266) and DORL (arXiv 2307.04571), which show one item a step.

  It knows bool [N + 1, C], which categories each item has; False for padding.
  """

  knows = "categories"
  window: int  # Items.
  threshold: int  # Of them, as many as a category may have.

  def triggers(self, state, items, known):
    """See ItemRule."""
    too_often = known[state].sum(0) > self.threshold
    return (known[items] & too_often[None]).any(-1)


class NearPairs(NamedTuple):
  """Which items are near each other, of all pairs."""

  pairs: Array  # bool [N + 1, N + 1]; padding is near nothing.

  def near(self, items: Array, others: Array) -> Array:
    """Whether each of `items` is near each of `others`, [M], [W] -> [M, W]."""
    return self.pairs[items[:, None], others[None]]


class NearVectors(NamedTuple):
  """The same by the items' vectors, for catalogues with too many pairs."""

  vectors: Array  # float32 [N + 1, D].
  # float32 [], the distance below which items are near each other.
  bound: Array

  def near(self, items: Array, others: Array) -> Array:
    """See NearPairs."""
    one, other = self.vectors[items], self.vectors[others]
    squared = (one * one).sum(-1)[:, None] + (other * other).sum(-1)[None]
    squared = jnp.maximum(squared - 2.0 * (one @ other.T), 0.0)
    there = (items > 0)[:, None] & (others > 0)[None]
    return there & (jnp.sqrt(squared) < self.bound)


def nearness(
  vectors: np.ndarray,
  percentile: float = 30.0,
  most_items: int = _MOST_ITEMS,
  pairs: int = _SAMPLED_PAIRS,
) -> NearPairs | NearVectors:
  """Which items are near each other: nearer than most pairs are.

  The bound is the percentile of the Euclidean distances of all pairs of
  different items; above `most_items` items of a sample of pairs, and then
  distances are computed when they are asked for.

  Args:
    vectors: float [N + 1, D], row 0 for padding; N at least 2.
    percentile: in [0, 100].
    most_items: as many items have their distances computed once and for all.
    pairs: that are drawn where there are more items.
  """
  own = np.asarray(vectors, np.float32)[1:]
  if len(own) > most_items:
    bound = np.percentile(distance.sample(own, pairs), percentile)
    # Distances stay as they are; smaller numbers round less.
    padded = np.pad(own - own.mean(0), ((1, 0), (0, 0)))
    return NearVectors(jnp.asarray(padded), jnp.float32(bound))
  distances = distance.pairwise(own)
  upper = distances[np.triu_indices(len(own), 1)]
  near = distances < np.percentile(upper, percentile)
  return NearPairs(jnp.asarray(np.pad(near, ((1, 0), (1, 0)))))


@dataclasses.dataclass(frozen=True)
class DistanceRule(ItemRule):
  """A user leaves when a shown item is near one of the last `window` shown.

  The slate that makes the user leave still earns. The rule is that of the
  environments of EasyRL4Rec (arXiv 2402.15164) for Coat, Yahoo and MovieLens,
  where distances are those of the columns of a rating matrix, and a published
  bound is a percentile of the whole matrix of distances, with the zeros of its
  diagonal; here the diagonal does not count (see `nearness`). An item is near
  itself, so one that is shown again within the window makes the user leave.

  It knows a NearPairs or NearVectors.
  """

  knows = "near"
  window: int  # Items.

  def triggers(self, state, items, known):
    """See ItemRule."""
    return known.near(items, state).any(-1)


def of_config(config: SimulatorConfig) -> LeaveRule:
  """The rule that the flags of the simulator ask for."""
  return {
    "patience": Patience(_PATIENCE),
    "length": Length(),
    "disappointment": Disappointment(),
    "boredom": BoredomRule(config.leave_window, config.leave_threshold),
    "distance": DistanceRule(config.leave_window),
  }[config.leave]
