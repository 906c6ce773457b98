"""Leave rules: when a user goes (docs/method.md).

A rule of another kind is a class here with the two methods of `LeaveRule`,
hashable and equal to its like alone, such as a frozen dataclass.
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


def of_config(config: SimulatorConfig) -> LeaveRule:
  """The rule that the flags of the simulator ask for."""
  return Patience(config.patience)
