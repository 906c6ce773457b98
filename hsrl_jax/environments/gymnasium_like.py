"""Simulated users as an environment of gymnasium, which is the extra `gym`."""

from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from hsrl_jax.environments.gymnax_like import Box, Environment
from hsrl_jax.environments.worlds import Simulated
from hsrl_jax.types import Observation


class GymnasiumEnv(gymnasium.Env):
  """One user at a time; NumPy in and out.

  An action is a slate, integers [K] of item ids from 1 on; which were shown
  before is not checked, also where a session shows an item once. An observation
  is a dict with `history` int32 [H], `profile` float32 [P] where there is one,
  and, where what was shown is observed, `shown_items`, `shown_response`,
  `shown_position`, `shown_ago` [R] and `step` [1]. `info` has `response`,
  float32 [K]. An episode ends `terminated` where the user leaves,
  and `truncated` where the session has its full length.
  """

  metadata = {"render_modes": []}  # noqa: RUF012 (so does gymnasium.Env)

  def __init__(self, simulated: Simulated):
    """Of a simulator and its users; see `worlds`."""
    self._simulator, self._users = simulated
    whole = Environment(simulated)
    self.observation_space = spaces.Dict(
      {k: _space(x) for k, x in _flat(whole.observation_space()).items()}
    )
    size, items = self._simulator.slate_size, simulated.num_items
    self.action_space = spaces.MultiDiscrete(
      np.full(size, items), start=np.ones(size, np.int64)
    )
    self._reset = jax.jit(self._simulator.reset)
    self._step = jax.jit(self._simulator.step)
    self._state = None

  def reset(
    self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Starts a session of a user drawn from the pool; see gymnasium.Env."""
    super().reset(seed=seed, options=options)
    self._state = self._reset(self._key(), self._users)
    return _arrays(self._state.observation), {}

  def step(
    self, action: np.ndarray
  ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
    """Shows a slate; see gymnasium.Env.

    Raises:
      ValueError: it is no slate, or the first `reset` is missing.
    """
    action = np.asarray(action)
    if self._state is None or not self.action_space.contains(action):
      raise ValueError(
        f"step({action!r}); expected reset() first, then "
        f"{self._simulator.slate_size} items of 1..{self.action_space.nvec[0]}"
      )
    self._state, result = self._step(
      self._key(), self._state, np.int32(action), self._users
    )
    return (
      _arrays(result.observation),
      float(result.reward),
      bool(result.terminated),
      bool(result.truncated),
      {"response": np.asarray(result.response)},
    )

  def _key(self) -> jax.Array:
    return jax.random.key(self.np_random.integers(2**32, dtype=np.uint32))


def _flat(observation: Observation) -> dict[str, Any]:
  """By name the arrays, or boxes, of an observation; no empty profile."""
  flat = {"history": observation.history}
  if observation.profile.shape[0]:
    flat["profile"] = observation.profile
  if observation.shown is not None:
    shown = observation.shown._asdict()
    flat["step"] = shown.pop("step")
    flat |= {f"shown_{name}": x for name, x in shown.items()}
  return flat


def _space(box: Box) -> spaces.Box:
  return spaces.Box(box.low, box.high, box.shape or (1,), box.dtype)


def _arrays(observation: Observation) -> dict[str, np.ndarray]:
  flat = _flat(jax.device_get(observation))
  return {name: np.atleast_1d(np.asarray(x)) for name, x in flat.items()}
