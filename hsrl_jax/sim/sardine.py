"""The worlds of SARDINE as pure functions, with the methods of UserSimulator.

docs/simulator.md, "Worlds of SARDINE", says what they are, and the package
`sardine-rec` 1.0.8 (MIT) is what they are equal to: boredom is
`dynamics.TopicBoredom` (its `user_car`: while a topic bores the user's vector
is 0; its `user_tloi`: its boring coordinates are). After 100 slates a session
is truncated, which the package calls `terminated`.

Items 1..N here are 0..N-1 there, and topics 1..T are 0..T-1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.ops import sampling
from hsrl_jax.sim import observed, reward, user_simulator
from hsrl_jax.sim.dynamics import TopicBoredom, TopicBoredomState
from hsrl_jax.sim.leave import LeaveRule, Length
from hsrl_jax.sim.user_simulator import EnvParams, StepResult
from hsrl_jax.types import Array, Observation, PRNGKey, Sessions


class SardineWorld(NamedTuple):
  """Settings of a world, in the package's words."""

  slate_size: int  # K.
  slope: float  # Of the relevance.
  omega: float  # What is left of the user's vector after a click.
  threshold: int  # Clicks of a topic that bore.


WORLDS = {
  "SlateTopK-Bored": SardineWorld(10, 100.0, 1.0, 5),
  "SlateTopK-BoredInf": SardineWorld(10, 100.0, 0.95, 5),
  "SlateTopK-Uncertain": SardineWorld(10, 10.0, 0.95, 5),
  "SingleItem-Static": SardineWorld(1, 100.0, 1.0, 11),
  "SingleItem-BoredInf": SardineWorld(1, 100.0, 0.95, 5),
  "SingleItem-Uncertain": SardineWorld(1, 10.0, 1.0, 11),
}
# What they have in common.
_OFFSET, _LOOKS, _STEPS, _MEMORY, _WINDOW = 0.65, 0.85, 100, 10, 5


class SardineItems(NamedTuple):
  """The items of a world."""

  vectors: Array  # float32 [N + 1, T]; zeros for padding.
  # float32 [], the largest norm among them, by which all products are divided.
  largest: Array


class SardineState(NamedTuple):
  """One user's session."""

  # What the agent knows: no profile, the clicked items and what was shown, the
  # random slate among them.
  observation: Observation
  # int32 [], slates shown in this session, the first, random one too; it is
  # also the step of `dynamics`.
  steps: Array
  seen: Array  # int32 [0]: items may be shown again.
  dynamics: TopicBoredomState  # What bores the user.
  taste: Array  # float32 [T], the user's vector, of length 1.


class Sardine(NamedTuple):
  """Static settings of a world; the methods are those of UserSimulator."""

  world: SardineWorld  # Which.
  slate_size: int  # K.
  reward: reward.Reward  # What clicks are worth.
  # How topics come to bore; None: not at all, as a farsighted bound asks for.
  dynamics: TopicBoredom | None
  max_steps: int = _STEPS  # Slates of a session, without the random one.
  leave: LeaveRule = Length()  # Nobody does.
  # R, items of Observation.shown; 0: clicks alone are seen.
  observed_items: int = 0

  @property
  def no_repeat(self) -> bool:
    """Whether an item is shown once a session."""
    return False

  def exploring(self) -> "Sardine":
    """The same: 100 slates without repeats would use up all items."""
    return self

  def reset(self, key: PRNGKey, params: EnvParams) -> SardineState:
    """Starts a session of a user drawn from the pool."""
    return self._reset(
      sampling.uniform(key, (1 + 2 * self.slate_size,)), params
    )

  def _reset(self, draws: Array, params: EnvParams) -> SardineState:
    row = sampling.index_of(draws[0], params.profiles.shape[0])
    return self._start(row, draws[1:], params)

  def start(
    self, row: Array, params: EnvParams, key: PRNGKey | None = None
  ) -> SardineState:
    """Starts a session of the pool's user `row`, int32 [].

    Args:
      row: of the pool.
      params: with the pool.
      key: of the random slate; None: one of the row's own.
    """
    if key is None:
      key = jax.random.fold_in(jax.random.key(0), row)
    draws = sampling.uniform(key, (2 * self.slate_size,))
    return self._start(row, draws, params)

  def _start(self, row: Array, draws: Array, params: EnvParams) -> SardineState:
    """The same by uniform draws [2 K]: items of the slate, then clicks."""
    items, clicks = draws[: self.slate_size], draws[self.slate_size :]
    slate = 1 + sampling.index_of(items, len(params.topics) - 1)
    return self.begin(
      params.profiles[row], params.histories[row], slate, clicks, params
    )

  def begin(
    self,
    taste: Array,
    history: Array,
    slate: Array,
    draws: Array,
    params: EnvParams,
  ) -> SardineState:
    """A session after its first slate.

    Args:
      taste: float32 [T], the user's vector.
      history: int32 [H], clicked before.
      slate: int32 [K], items, repeats allowed.
      draws: float32 [K], uniform; a place is clicked where its draw is below
        the probability.
      params: of the world.
    """
    state = SardineState(
      observed.start(jnp.zeros(0), history, self.observed_items),
      jnp.int32(0),
      jnp.zeros(0, jnp.int32),
      self.dynamics.start(),
      taste,
    )
    return self.after(state, slate, draws, params)[0]

  def attention(self) -> Array:
    """Probability that a user looks at each place of a slate, float32 [K]."""
    return jnp.float32(_LOOKS ** np.arange(self.slate_size))

  def current(self, state: SardineState) -> Array:
    """The user's vector as boredom leaves it, float32 [T]."""
    if self.dynamics is None:
      return state.taste
    bores = self.dynamics.bores(state.dynamics, state.steps)[1:]
    return jnp.where(bores, 0.0, state.taste)

  def _relevance(self, taste: Array, items: Array, params: EnvParams) -> Array:
    catalogue = params.response
    product = jnp.dot(
      catalogue.vectors[items], taste, precision=jax.lax.Precision.HIGHEST
    )
    cosine = product / catalogue.largest
    return jax.nn.sigmoid(self.world.slope * (cosine - _OFFSET))

  def chances(
    self, state: SardineState, items: Array, params: EnvParams
  ) -> Array:
    """Probability of a click on each of `items`, [M], in the first place.

    In the k-th place it is `attention()[k]` times as much.
    """
    return self._relevance(self.current(state), items, params)

  def after(
    self, state: SardineState, slate: Array, draws: Array, params: EnvParams
  ) -> tuple[SardineState, Array]:
    """The state after a slate, and its clicks, float32 [K].

    Args:
      state: before.
      slate: int32 [K]; a place with id 0 shows nothing.
      draws: float32 [K], uniform.
      params: of the world.
    """
    chances = self.attention() * self.chances(state, slate, params)
    there = slate > 0
    clicks = ((draws < chances) & there).astype(jnp.float32)
    dynamics = self.dynamics.after(
      state.dynamics, params.topics[slate], clicks, state.steps
    )
    # One number: the mean over all coordinates of all clicked items.
    means = params.response.vectors[slate].mean(-1)
    total = clicks.sum()
    towards = (clicks * means).sum() / jnp.maximum(total, 1.0)
    moved = self.world.omega * state.taste + (1 - self.world.omega) * towards
    moved = moved / jnp.linalg.norm(moved)
    state = state._replace(
      observation=observed.after(state.observation, slate, clicks),
      steps=state.steps + 1,
      dynamics=dynamics,
      taste=jnp.where(total > 0, moved, state.taste),
    )
    return state, clicks

  def step(
    self, key: PRNGKey, state: SardineState, action: Array, params: EnvParams
  ) -> tuple[SardineState, StepResult]:
    """Shows the slate `action`, int32 [K], to the user; see UserSimulator."""
    return self.step_by(self._draws(key), state, action, params)

  def _draws(self, key: PRNGKey) -> Array:
    """Uniform draws of a step: K clicks, then what `_reset` takes."""
    return sampling.uniform(key, (3 * self.slate_size + 1,))

  def step_by(
    self, draws: Array, state: SardineState, action: Array, params: EnvParams
  ) -> tuple[SardineState, StepResult]:
    """`step` by uniform draws, float32 [K] or more; see `after`."""
    state, clicks = self.after(state, action, draws[: self.slate_size], params)
    rewards = jnp.where(action > 0, self.reward.items(clicks), 0.0)
    result = StepResult(
      state.observation,
      self.reward.slate(rewards),
      jnp.bool(False),
      state.steps > self.max_steps,
      clicks,
    )
    return state, result

  def step_or_reset(
    self, key: PRNGKey, state: SardineState, action: Array, params: EnvParams
  ) -> tuple[SardineState, StepResult, SardineState]:
    """`step`, then a new user where the session is over; see UserSimulator."""
    draws = self._draws(key)
    last, result = self.step_by(draws, state, action, params)
    state = jax.tree.map(
      lambda new, old: jnp.where(result.truncated, new, old),
      self._reset(draws[self.slate_size :], params),
      last,
    )
    return state, result, last

  def hidden(self, state: SardineState, params: EnvParams) -> Array:
    """The package's `user_state`, float32 [3 T].

    The user's vector as boredom leaves it; by topic, counted clicks as a share
    of the threshold, at most 1; and the share of the window for which a boring
    topic goes on boring, 1 for others.
    """
    del params
    step = state.steps - 1  # The last one; those below go by topic 1..T.
    boring = state.dynamics.boring_until[1:] - step
    left = jnp.where(boring > 0, boring, self.dynamics.window)
    counts = self.dynamics.counts(state.dynamics, step)[1:]
    return jnp.concatenate(
      [
        self.current(state),
        jnp.minimum(counts / self.dynamics.threshold, 1.0),
        left / self.dynamics.window,
      ]
    )


def make(config: SimulatorConfig, topics: int) -> Sardine:
  """The world that `config` names.

  Args:
    config: of the simulator.
    topics: T.
  """
  world = WORLDS[config.world]
  boredom = TopicBoredom(topics, True, _MEMORY, _WINDOW, world.threshold)
  return Sardine(
    world,
    world.slate_size,
    reward.of_config(config),
    boredom,
    observed_items=user_simulator.observed_items(config),
  )


def pool(vectors: np.ndarray, sessions: Sessions) -> EnvParams:
  """The world's parameters: users are those of `sessions`.

  Args:
    vectors: float32 [N + 1, T], of the items; row 0 is padding.
    sessions: S rows; their profiles, [S, T], are the users' vectors.
  """
  topics = np.argmax(vectors, 1).astype(np.int32) + 1
  topics[0] = 0
  largest = np.linalg.norm(vectors, axis=1).max()
  return EnvParams(
    SardineItems(jnp.asarray(vectors), jnp.float32(largest)),
    jnp.asarray(sessions.profile),
    jnp.asarray(sessions.history),
    jnp.int32(len(vectors) - 1),
    topics=jnp.asarray(topics),
  )


def taste(rng: np.random.Generator, topics: int = 10) -> np.ndarray:
  """A user's vector by the law of the package, float64 [topics].

  Each coordinate is uniform and kept with probability 0.4; masks with fewer
  than 3 or more than 5 topics are drawn again. The length is 1.
  """
  vector = rng.uniform(size=topics)
  while True:
    mask = rng.uniform(size=topics) > 0.6
    if 3 <= mask.sum() <= 5:
      vector = vector * mask
      return vector / np.linalg.norm(vector)
