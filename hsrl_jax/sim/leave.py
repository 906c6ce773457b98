"""Leave rules: when a user goes (docs/method.md).

A rule of another kind is a class here with the two methods of `LeaveRule`,
hashable and equal to its like alone, such as a frozen dataclass. A rule that
depends on the categories of items is a subclass of `CategoryRule`.
"""

import dataclasses
from typing import Any, Protocol

import jax.numpy as jnp

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.types import Array

# Patience is often 1 up to the rounding of float32, which must not decide.
_ROUNDING = 1e-3


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
  """Patience falls by (1 - reward) K + 1 a slate; below 1 the user leaves.

  Attributes:
    initial: patience at the start of a session. The state is what is left.
  """

  initial: float

  def start(self) -> Array:
    """See LeaveRule."""
    return jnp.float32(self.initial)

  def step(
    self,
    state: Array,
    slate: Array,
    response: Array,
    reward: Array,
    draw: Array,
  ) -> tuple[Array, Array]:
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

  def step(
    self,
    state: Array,
    slate: Array,
    response: Array,
    reward: Array,
    draw: Array,
  ) -> tuple[Array, Array]:
    """See LeaveRule."""
    del slate, response, reward, draw
    return state, jnp.bool(False)


class CategoryRule:
  """Base class of the leave rules that depend on the items' categories.

  `step` takes one more argument: `categories`, bool [N + 1, C], which
  categories each item has; False for padding.
  """

  def triggers(self, state: Any, items: Array, categories: Array) -> Array:
    """Whether each item would make the user leave, bool [M].

    Args:
      state: before the slate.
      items: int32 [M].
      categories: see the class.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Boredom(CategoryRule):
  """A user leaves when a category of a shown item was shown too often before.

  That is when one of its categories occurs more than `threshold` times among
  the last `window` items shown before the slate. The slate that makes the user
  leave still earns. The rule is that of the environments of EasyRL4Rec, CIRS
  (arXiv 2204.01266) and DORL (arXiv 2307.04571), which show one item a step.

  Attributes:
    window: items. The state is their ids, int32 [window], newest last, padded
      with 0.
    threshold: of them, as many as a category may have.
  """

  window: int
  threshold: int

  def start(self) -> Array:
    """See LeaveRule."""
    return jnp.zeros(self.window, jnp.int32)

  def triggers(self, state: Array, items: Array, categories: Array) -> Array:
    """See CategoryRule."""
    too_often = categories[state].sum(0) > self.threshold
    return (categories[items] & too_often[None]).any(-1)

  def step(
    self,
    state: Array,
    slate: Array,
    response: Array,
    reward: Array,
    draw: Array,
    categories: Array,
  ) -> tuple[Array, Array]:
    """See LeaveRule."""
    del response, reward, draw
    leaves = self.triggers(state, slate, categories).any()
    shown = jnp.concatenate([state, slate])
    # A stable sort moves places that show nothing to the front.
    order = jnp.argsort(shown > 0, stable=True)[-self.window :]
    return shown[order], leaves


def of_config(config: SimulatorConfig) -> LeaveRule:
  """The rule that the flags of the simulator ask for."""
  return {
    "patience": Patience(config.patience),
    "length": Length(),
    "boredom": Boredom(config.leave_window, config.leave_threshold),
  }[config.leave]
