"""A simulated user as a pure environment (docs/simulator.md).

The shape is gymnax's: `reset(key, params)` and `step(key, state, action,
params)` of ONE user; callers vmap. How users respond, how that changes them,
what it is worth and when they leave are pieces of their own: `click_model`,
`dynamics`, `reward`, `leave`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.ops import sampling
from hsrl_jax.sim import click_model, fatigue, leave, observed, reward
from hsrl_jax.sim import dynamics as dynamics_lib
from hsrl_jax.sim.topics import Topics
from hsrl_jax.types import Array, Observation, PRNGKey, Sessions


class EnvParams(NamedTuple):
  """Data of a simulator."""

  response: Any  # Whatever the ResponseFn takes.
  profiles: Array  # float32 [S, P], the logged pool of users.
  histories: Array  # int32 [S, H], theirs.
  # int32 [], the items that may be shown; None: more than a session can show.
  num_items: Array | None = None
  # float32 [S], what the click model knows of each user beside profile and
  # history; None: nothing.
  biases: Array | None = None
  # int32 [N + 1], the topic of each item, 0 for none; None: dynamics do not
  # depend on topics.
  topics: Array | None = None
  # bool [N + 1, C], the categories of each item; None: the leave rule does not
  # depend on them.
  categories: Array | None = None
  # Which items are near each other; None: the leave rule does not depend on it.
  near: leave.NearPairs | leave.NearVectors | None = None
  # float32 [N + 1, D], the vectors by which items are alike to users who tire;
  # None: the dynamics are others.
  kernel: Array | None = None
  # float32 [S, 2], how such users tire, see `fatigue.people`.
  people: Array | None = None


class EnvState(NamedTuple):
  """One user's session."""

  observation: Observation  # Profile and history.
  leave: Any  # State of the leave rule; of `leave.Patience` float32 [].
  steps: Array  # int32 [], taken in this session.
  # int32 [T], ids that may not be shown again, padded with 0; T is max_steps *
  # K in the `no_repeat` protocol and 0 in `paper`.
  seen: Array
  # float32 [], see `EnvParams.biases`; None: not known.
  bias: Array | None = None
  dynamics: Any = None  # State of the dynamics; None: there are none.


class StepResult(NamedTuple):
  """The outcome of a step."""

  observation: Observation  # After the step, of the same user.
  reward: Array  # float32 [].
  terminated: Array  # bool [], the user left.
  # bool [], the user had not left, but the session ends: the step limit was
  # reached, or fewer than K items are left to show.
  truncated: Array
  response: Array  # float32 [K], 1 for a positive response.


class UserSimulator(NamedTuple):
  """Static settings of the simulator."""

  response_fn: click_model.ResponseFn  # How users respond.
  slate_size: int  # K.
  no_repeat: bool  # Whether an item is shown once a session.
  max_steps: int  # A session is truncated there.
  reward: reward.Reward  # What responses are worth.
  leave: leave.LeaveRule  # When the user goes.
  # Whether, with `no_repeat`, all items may be shown again once fewer than K
  # are left; else the session is truncated then.
  forgets: bool = False
  # How responses change what the user likes later; None: not at all.
  dynamics: dynamics_lib.Dynamics | None = None
  # R, items of Observation.shown; 0: likes alone are seen.
  observed_items: int = 0
  # (response params, items [K], user's bias) -> what the items earn, in place
  # of what `reward` says of the responses; None: that.
  earned: Callable[[Any, Array, Array], Array] | None = None

  def exploring(self) -> "UserSimulator":
    """The same for training that shows items once a session, if it can.

    Where the protocol allows repeats, a small catalogue ends no session.
    """
    return (
      self if self.no_repeat else self._replace(no_repeat=True, forgets=True)
    )

  def reset(self, key: PRNGKey, params: EnvParams) -> EnvState:
    """Starts a session of a user drawn from the pool."""
    return self._reset(sampling.uniform(key), params)

  def _reset(self, draw: Array, params: EnvParams) -> EnvState:
    row = sampling.index_of(draw, params.profiles.shape[0])
    return self.start(row, params)

  def start(
    self, row: Array, params: EnvParams, key: PRNGKey | None = None
  ) -> EnvState:
    """Starts a session of the pool's user `row`, int32 [].

    Args:
      row: of the pool.
      params: with the pool.
      key: of what a session begins with by chance; here nothing does.
    """
    del key
    return EnvState(
      observed.start(
        params.profiles[row], params.histories[row], self.observed_items
      ),
      self.leave.start(),
      jnp.int32(0),
      jnp.zeros(
        self.max_steps * self.slate_size if self.no_repeat else 0, jnp.int32
      ),
      None if params.biases is None else params.biases[row],
      None if self.dynamics is None else self.dynamics.start(params, row),
    )

  def probabilities(
    self, observation: Observation, items: Array, params: EnvParams
  ) -> Array:
    """Probability of a positive response to each of `items`, [M] -> [M].

    The user is one of whom no more is known than the observation. A bias of
    the user (see `chances`) adds to all logits alike.
    """
    return self.response_fn(
      params.response, observation.profile, observation.history, items
    )

  def chances(self, state: EnvState, items: Array, params: EnvParams) -> Array:
    """`probabilities` of the user of a session, as dynamics have changed it."""
    profile, history, _ = state.observation
    known = () if state.bias is None else (state.bias,)
    probability = self.response_fn(
      params.response, profile, history, items, *known
    )
    if self.dynamics is None:
      return probability
    return self.dynamics.probabilities(
      state.dynamics,
      self.dynamics.known(params, items),
      probability,
      state.steps,
      getattr(params.response, "boredom", None),
    )

  def hidden(self, state: EnvState, params: EnvParams) -> Array:
    """The hidden state as a critic sees it, float32 [Z], about 1 each.

    It is the step, and the states of dynamics and leave rule.
    """
    parts = [(state.steps / self.max_steps)[None]]
    if isinstance(self.leave, leave.Patience):
      parts.append((state.leave / self.leave.initial)[None])
    if isinstance(self.leave, leave.Disappointment):
      parts.append(state.leave[None])
    if isinstance(self.leave, leave.BoredomRule):
      counts = params.categories[state.leave].sum(0)
      parts.append(counts / (self.leave.threshold + 1.0))
    if self.dynamics is not None:
      parts.append(self.dynamics.hidden(state.dynamics, state.steps))
    return jnp.concatenate(parts).astype(jnp.float32)

  def step(
    self, key: PRNGKey, state: EnvState, action: Array, params: EnvParams
  ) -> tuple[EnvState, StepResult]:
    """Shows the slate `action`, int32 [K] distinct item ids, to the user.

    A place with id 0 shows nothing: no response, and a reward of 0. The
    returned state is of the same user even if the user has left.
    """
    return self._step(self._draws(key), state, action, params)

  def _draws(self, key: PRNGKey) -> Array:
    """Uniform draws of a step: K responses, the next user, the leave rule."""
    # One call: on a CPU each call of the generator costs more than its bits.
    return sampling.uniform(key, (self.slate_size + 2,))

  def _step(
    self, draws: Array, state: EnvState, action: Array, params: EnvParams
  ) -> tuple[EnvState, StepResult]:
    observation = state.observation
    probability = self.chances(state, action, params)
    there = action > 0
    liked = (draws[: self.slate_size] < probability) & there
    response = liked.astype(jnp.float32)
    if self.earned is None:
      rewards = self.reward.items(response)
    else:
      rewards = self.earned(params.response, action, state.bias)
    slate_reward = self.reward.slate(jnp.where(there, rewards, 0.0))
    more = {}
    if isinstance(self.leave, leave.ItemRule):
      more["known"] = getattr(params, self.leave.knows)
    left, terminated = self.leave.step(
      state.leave, action, response, slate_reward, draws[-1], **more
    )
    if self.dynamics is not None:
      known = self.dynamics.known(params, action)
      changed = self.dynamics.after(
        state.dynamics, known, response, state.steps
      )
      state = state._replace(dynamics=changed)
    steps = state.steps + 1
    seen, used_up = self._remember(state, action, params)
    observation = observed.after(observation, action, response)
    truncated = ((steps >= self.max_steps) | used_up) & ~terminated
    return (
      state._replace(
        observation=observation, leave=left, steps=steps, seen=seen
      ),
      StepResult(observation, slate_reward, terminated, truncated, response),
    )

  def _remember(
    self, state: EnvState, slate: Array, params: EnvParams
  ) -> tuple[Array, Array]:
    """`seen` after a slate, and whether too few items are left for another."""
    if not self.no_repeat:
      return state.seen, jnp.bool(False)
    seen = state.seen.reshape(self.max_steps, self.slate_size)
    now = jnp.arange(self.max_steps) == state.steps
    seen = jnp.where(now[:, None], slate[None], seen).reshape(-1)
    if params.num_items is None:
      return seen, jnp.bool(False)
    left = params.num_items - jnp.count_nonzero(seen)
    used_up = left < self.slate_size
    if self.forgets:
      return jnp.where(used_up, 0, seen), jnp.bool(False)
    return seen, used_up

  def step_or_reset(
    self, key: PRNGKey, state: EnvState, action: Array, params: EnvParams
  ) -> tuple[EnvState, StepResult, EnvState]:
    """`step`, then a new user where the session is over.

    Returns:
      The state to go on from, the result, whose observation stays that of the
      old user, and the state of the old user.
    """
    draws = self._draws(key)
    last, result = self._step(draws, state, action, params)
    over = result.terminated | result.truncated
    state = jax.tree.map(
      lambda new, old: jnp.where(over, new, old),
      self._reset(draws[self.slate_size], params),
      last,
    )
    return state, result, last


def make(
  config: SimulatorConfig, slate_size: int, topics: int = 0
) -> UserSimulator:
  """The simulator that `config` asks for.

  Args:
    config: of the simulator.
    slate_size: K.
    topics: T, of the catalogue; 0 where `config` uses none.
  """
  return UserSimulator(
    response_fn=click_model.response_fn(config),
    slate_size=slate_size,
    no_repeat=config.protocol == "no_repeat",
    max_steps=config.max_steps,
    reward=reward.of_config(config),
    leave=leave.of_config(config),
    dynamics=dynamics_lib.of_config(config, topics),
    observed_items=observed_items(config),
  )


OBSERVED = 50  # Last shown items that agents see, where they see any.


def observed_items(config: SimulatorConfig) -> int:
  """R of Observation.shown; 0: what was shown is not seen."""
  return OBSERVED if config.observed == "interactions" else 0


def pool(
  params: click_model.ResponseParams,
  sessions: Sessions,
  topics: Topics | None = None,
  near: leave.NearPairs | leave.NearVectors | None = None,
  kernel: np.ndarray | None = None,
) -> EnvParams:
  """The simulator's parameters: users are those of `sessions`, all items.

  Args:
    params: of the click model.
    sessions: S rows.
    topics: of the items; None: users do not depend on topics.
    near: which items are near each other; None: nobody leaves for that.
    kernel: see EnvParams; None: nobody tires by it.
  """
  blend = params.blend
  biases = None if blend is None else blend.of_users(sessions.user_id)
  return EnvParams(
    params,
    jnp.asarray(sessions.profile),
    jnp.asarray(sessions.history),
    jnp.int32(len(params.item_features) - 1),
    None if biases is None else jnp.asarray(biases, jnp.float32),
    None if topics is None else jnp.asarray(topics.of_items),
    None if topics is None else jnp.asarray(topics.categories),
    near,
    None if kernel is None else jnp.asarray(kernel),
    None if kernel is None else fatigue.people(sessions.user_id),
  )
