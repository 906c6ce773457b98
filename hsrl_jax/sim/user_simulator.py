"""A simulated user as a pure environment (DESIGN, section 5).

The shape is gymnax's: `reset(key, params)` and `step(key, state, action,
params)` of ONE user; callers vmap.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.ops import returns, sampling
from hsrl_jax.types import Array, Observation, PRNGKey

# (response params, profile [P], history [H], slate [K]) -> probabilities [K].
ResponseFn = Callable[[Any, Array, Array, Array], Array]

# Patience is often 1 up to the rounding of float32, which must not decide.
_ROUNDING = 1e-3


class EnvParams(NamedTuple):
  """What a simulator needs besides its code.

  Attributes:
    response: whatever the ResponseFn takes.
    profiles: float32 [S, P], the logged pool of users.
    histories: int32 [S, H], theirs.
  """

  response: Any
  profiles: Array
  histories: Array


class EnvState(NamedTuple):
  """One user's session.

  Attributes:
    observation: profile and history.
    patience: float32 [].
    steps: int32 [], taken in this session.
    seen: int32 [T], ids that may not be shown again, padded with 0; T is
      max_steps * K in the `no_repeat` protocol and 0 in `paper`.
  """

  observation: Observation
  patience: Array
  steps: Array
  seen: Array


class StepResult(NamedTuple):
  """What a step tells.

  Attributes:
    observation: after the step, of the same user.
    reward: float32 [].
    terminated: bool [], the user left.
    truncated: bool [], the step limit was reached and the user had not left.
    response: float32 [K], 1 for a positive response.
  """

  observation: Observation
  reward: Array
  terminated: Array
  truncated: Array
  response: Array


class UserSimulator(NamedTuple):
  """Static settings of the simulator; see SimulatorConfig for the meanings."""

  response_fn: ResponseFn
  slate_size: int
  no_repeat: bool
  patience: float
  max_steps: int
  penalty: float
  sweet_point: float | None

  def reset(self, key: PRNGKey, params: EnvParams) -> EnvState:
    """Starts a session of a user drawn from the pool."""
    return self._reset(sampling.uniform(key), params)

  def _reset(self, draw: Array, params: EnvParams) -> EnvState:
    row = sampling.index_of(draw, params.profiles.shape[0])
    return self.start(row, params)

  def start(self, row: Array, params: EnvParams) -> EnvState:
    """Starts a session of the pool's user `row`, int32 []."""
    return EnvState(
      Observation(params.profiles[row], params.histories[row]),
      jnp.float32(self.patience),
      jnp.int32(0),
      jnp.zeros(
        self.max_steps * self.slate_size if self.no_repeat else 0, jnp.int32
      ),
    )

  def probabilities(
    self, observation: Observation, items: Array, params: EnvParams
  ) -> Array:
    """Probability of a positive response to each of `items`, [M] -> [M]."""
    return self.response_fn(
      params.response, observation.profile, observation.history, items
    )

  def step(
    self, key: PRNGKey, state: EnvState, action: Array, params: EnvParams
  ) -> tuple[EnvState, StepResult]:
    """Shows the slate `action`, int32 [K] distinct item ids, to the user.

    The returned state is of the same user even if the user has left.
    """
    draws = sampling.uniform(key, action.shape)
    return self._step(draws, state, action, params)

  def _step(
    self, draws: Array, state: EnvState, action: Array, params: EnvParams
  ) -> tuple[EnvState, StepResult]:
    observation = state.observation
    probability = self.probabilities(observation, action, params)
    response = (draws < probability).astype(jnp.float32)
    rewards = returns.item_rewards(response, self.penalty)
    reward = returns.slate_reward(rewards, self.sweet_point)
    patience = state.patience - ((1.0 - reward) * self.slate_size + 1.0)
    steps = state.steps + 1
    seen = state.seen
    if self.no_repeat:
      seen = jax.lax.dynamic_update_slice(
        seen, action, (state.steps * self.slate_size,)
      )
    observation = observation._replace(
      history=append_positives(observation.history, action, response)
    )
    terminated = patience < 1.0 - _ROUNDING
    truncated = (steps >= self.max_steps) & ~terminated
    return (
      EnvState(observation, patience, steps, seen),
      StepResult(observation, reward, terminated, truncated, response),
    )

  def step_or_reset(
    self, key: PRNGKey, state: EnvState, action: Array, params: EnvParams
  ) -> tuple[EnvState, StepResult]:
    """`step`, then a new user where the session is over.

    The result's observation stays that of the old user.
    """
    # One draw for the responses and the next user: on a CPU each call of the
    # generator costs more than its bits.
    draws = sampling.uniform(key, (action.shape[0] + 1,))
    state, result = self._step(draws[:-1], state, action, params)
    over = result.terminated | result.truncated
    state = jax.tree.map(
      lambda new, old: jnp.where(over, new, old),
      self._reset(draws[-1], params),
      state,
    )
    return state, result


def append_positives(history: Array, slate: Array, response: Array) -> Array:
  """Appends the items with a positive response; the oldest drop out.

  Args:
    history: int32 [H], left-padded with 0.
    slate: int32 [K].
    response: float32 [K].

  Returns:
    int32 [H], left-padded with 0.
  """
  joined = jnp.concatenate([history, jnp.where(response > 0, slate, 0)])
  # A stable sort moves the zeros to the front and keeps the order of the rest.
  order = jnp.argsort(joined > 0, stable=True)
  return joined[order][-history.shape[0] :]
