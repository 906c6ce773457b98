"""Simulated users in the shape of gymnax environments.

The shape alone: nothing of gymnax is imported. Observations are NamedTuples,
`types.Observation`; an action is a slate of item ids from 1 on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.environments.worlds import Simulated
from hsrl_jax.sim.user_simulator import EnvParams
from hsrl_jax.types import Array, Observation, PRNGKey


class Slates(NamedTuple):
  """The space of slates: K distinct items of 1..N."""

  num_items: int  # N.
  slate_size: int  # K.

  @property
  def shape(self) -> tuple[int]:
    """Of an action."""
    return (self.slate_size,)

  @property
  def dtype(self) -> Any:
    """Of an action."""
    return jnp.int32

  def sample(self, key: PRNGKey) -> Array:
    """A slate drawn uniformly, int32 [K]."""
    drawn = jax.random.choice(
      key, self.num_items, (self.slate_size,), replace=False
    )
    return 1 + drawn.astype(jnp.int32)

  def contains(self, slate: Array) -> Array:
    """Whether it is a slate, bool []."""
    slate = jnp.asarray(slate)
    if slate.shape != self.shape:
      return jnp.bool(False)
    ordered = jnp.sort(slate)
    distinct = (ordered[1:] != ordered[:-1]).all()
    return distinct & (ordered[0] >= 1) & (ordered[-1] <= self.num_items)


class Box(NamedTuple):
  """Arrays of a shape whose entries lie in [low, high]."""

  low: float  # The least entry.
  high: float  # The largest one.
  shape: tuple[int, ...]  # Of the arrays.
  dtype: Any  # Of the arrays.


class Environment:
  """`reset` and `step` of one user; callers jit and vmap.

  A session that is over begins anew within `step`, with another user, as in
  gymnax; `info` then has the last observation of the old one.

  Attributes:
    default_params: the simulator's parameters, with the pool of users.
    name: of the environment.
  """

  def __init__(self, simulated: Simulated, name: str = "hsrl_jax"):
    """Of a simulator and its users; see `worlds`."""
    self._simulator, self.default_params = simulated
    self._num_items = simulated.num_items
    self.name = name

  @property
  def num_actions(self) -> int:
    """N, items that a place of a slate may have."""
    return self._num_items

  def reset(
    self, key: PRNGKey, params: EnvParams | None = None
  ) -> tuple[Observation, Any]:
    """Starts a session of a user drawn from the pool: observation, state."""
    params = self.default_params if params is None else params
    state = self._simulator.reset(key, params)
    return state.observation, state

  def step(
    self,
    key: PRNGKey,
    state: Any,
    action: Array,
    params: EnvParams | None = None,
  ) -> tuple[Observation, Any, Array, Array, dict[str, Any]]:
    """Shows a slate.

    Args:
      key: of the user's response, and of the next user.
      state: of `reset` or `step`.
      action: int32 [K], items 1..N.
      params: None: default_params.

    Returns:
      The observation (of a new user where the session is over), the state, the
      reward float32 [], whether the session is over bool [], and `response`
      float32 [K], `terminated`, `truncated` and `final_observation`, of the old
      user.
    """
    params = self.default_params if params is None else params
    state, result, _ = self._simulator.step_or_reset(key, state, action, params)
    info = {
      "response": result.response,
      "terminated": result.terminated,
      "truncated": result.truncated,
      "final_observation": result.observation,
    }
    done = result.terminated | result.truncated
    return state.observation, state, result.reward, done, info

  def action_space(self, params: EnvParams | None = None) -> Slates:
    """The space of slates."""
    del params
    return Slates(self._num_items, self._simulator.slate_size)

  def observation_space(self, params: EnvParams | None = None) -> Observation:
    """An Observation with a Box for each array."""
    params = self.default_params if params is None else params
    like = jax.eval_shape(
      lambda: self._simulator.start(jnp.int32(0), params).observation
    )
    return _spaces(like, self._num_items, self._simulator)


def _spaces(like: Observation, items: int, simulator) -> Observation:
  """Boxes of the arrays of an observation."""

  def box(low, high, array):
    return Box(low, high, array.shape, np.dtype(array.dtype))

  shown = like.shown
  if shown is not None:
    steps = simulator.max_steps + 1  # SARDINE shows a slate before the first.
    shown = type(shown)(
      items=box(0, items, shown.items),
      response=box(0, 1, shown.response),
      position=box(0, simulator.slate_size - 1, shown.position),
      ago=box(0, steps, shown.ago),
      step=box(0, steps, shown.step),
    )
  return Observation(
    box(-np.inf, np.inf, like.profile), box(0, items, like.history), shown
  )
