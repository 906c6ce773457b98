"""Dynamics: how responses change what a user likes later (docs/simulator.md).

Dynamics of another kind are a class here with the methods of `Dynamics`,
hashable and equal to its like alone, such as a frozen dataclass.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.session_config import BOREDOM_MEMORY, FITTED_TO_LOGS
from hsrl_jax.sim.fatigue import Fatigue
from hsrl_jax.sim.fitted_boredom import FittedBoredom
from hsrl_jax.types import Array

# Likes of so many last steps count; a boring topic stays so as many steps.
_WINDOW = 5
_NEVER = -1  # A step before the session.


class Dynamics(Protocol):
  """How ONE user changes in a session. The state is any pytree of arrays.

  `step` is int32 [], the number of steps before the one in question. Of items
  the methods are told what `known` says: their topics, int32, 0 for none, or
  whatever else the dynamics go by.
  """

  def known(self, params: Any, items: Array) -> Any:
    """Facts of items [M], out of the simulator's `EnvParams`."""

  def start(self, params: Any = None, row: Array | None = None) -> Any:
    """The state at the start of a session of the pool's user `row`."""

  def probabilities(
    self,
    state: Any,
    topics: Array,
    probability: Array,
    step: Array,
    fitted: Any,
  ) -> Array:
    """Probabilities of a positive response in a step, float32 [M].

    Args:
      state: before the step.
      topics: [M], of the items; see `known`.
      probability: float32 [M], by the click model.
      step: which step.
      fitted: what was fitted to logs; None where the dynamics are a rule.
    """

  def after(
    self, state: Any, topics: Array, response: Array, step: Array
  ) -> Any:
    """The state after a step.

    Args:
      state: before the step.
      topics: [K], of the slate's items; see `known`.
      response: float32 [K], 1 for a positive response, else 0.
      step: which step.
    """

  def hidden(self, state: Any, step: Array) -> Array:
    """The state as a critic sees it, float32 [Z], each about 1."""

  def room(self, state: Any, step: Array) -> Array:
    """Likes that a topic can take in a step without harm, int32 [T + 1].

    0 where items of the topic get no likes. It is what the bound `farsighted`
    knows of the dynamics; those that are no rule by topic have no such number.
    """


class TopicBoredomState(NamedTuple):
  """Topics that bore a user, and counts of those that may soon."""

  liked: Array  # int32 [memory], topics of the last liked items, newest last.
  # int32 [memory], the step in which each was liked; -1: no item.
  liked_at: Array
  # int32 [T + 1], the last step in which each topic bores; -1: it never did.
  boring_until: Array


@dataclasses.dataclass(frozen=True)
class TopicBoredom:
  """A topic that was liked too often lately bores for a while.

  Of the last `memory` liked items, those of the last `window` steps are counted
  by topic after each step. A topic with `threshold` or more is boring in the
  next `window` steps. Items without a topic do not bore.

  These are the counts and times of SARDINE (https://github.com/naver/sardine,
  its boredom types `user_tloi` and `user_car`), with these differences. There
  boredom sets parts of the user's vector to 0, and an item is still clicked for
  its other parts, or hardly; here it gets no like at all. There a session
  begins with a random slate, and clicks change the user's taste; not here.
  """

  topics: int  # T.
  # Whether no item gets likes while a topic bores; else only the items of
  # boring topics get none.
  everything: bool
  memory: int  # Last liked items that count.
  window: int  # Steps.
  threshold: int  # Likes.

  def known(self, params: Any, items: Array) -> Array:
    """See Dynamics: the topics."""
    return params.topics[items]

  def start(self, params=None, row=None) -> TopicBoredomState:
    """See Dynamics."""
    del params, row
    return TopicBoredomState(
      jnp.zeros(self.memory, jnp.int32),
      jnp.full(self.memory, _NEVER, jnp.int32),
      jnp.full(self.topics + 1, _NEVER, jnp.int32),
    )

  def bores(self, state: TopicBoredomState, step: Array) -> Array:
    """Whether items of each topic get no likes in a step, bool [T + 1]."""
    boring = state.boring_until >= step
    return jnp.full_like(boring, boring.any()) if self.everything else boring

  def probabilities(self, state, topics, probability, step, fitted=None):
    """See Dynamics."""
    del fitted
    return jnp.where(self.bores(state, step)[topics], 0.0, probability)

  def after(self, state, topics, response, step):
    """See Dynamics."""
    now = jnp.where(response > 0, step, _NEVER)
    liked = jnp.concatenate([state.liked, topics])
    liked_at = jnp.concatenate([state.liked_at, now])
    # A stable sort moves what was not liked to the front.
    kept = jnp.argsort(liked_at != _NEVER, stable=True)[-self.memory :]
    state = state._replace(liked=liked[kept], liked_at=liked_at[kept])
    too_many = self.counts(state, step) >= self.threshold
    # A topic that still bores in the next step does not begin anew.
    begins = too_many & (state.boring_until <= step)
    until = jnp.where(begins, step + self.window, state.boring_until)
    return state._replace(boring_until=until)

  def hidden(self, state: TopicBoredomState, step: Array) -> Array:
    """See Dynamics: how near each topic is to boring, and how long it bores."""
    counts = self.counts(state, step - 1) / self.threshold
    left = jnp.maximum(state.boring_until - step + 1, 0) / self.window
    return jnp.concatenate([counts, left])

  def room(self, state: TopicBoredomState, step: Array) -> Array:
    """See Dynamics. Older likes count even if the step's push them out."""
    left = self.threshold - 1 - self.counts(state, step)
    without_topic = jnp.arange(self.topics + 1) == 0
    left = jnp.where(without_topic, jnp.iinfo(jnp.int32).max, left)
    return jnp.where(self.bores(state, step), 0, jnp.maximum(left, 0))

  def counts(self, state: TopicBoredomState, step: Array) -> Array:
    """Likes by topic that count at the end of a step; 0 of topic 0; [T + 1]."""
    first = jnp.maximum(step - self.window + 1, 0)
    topics = jnp.arange(self.topics + 1)
    counted = (state.liked_at >= first) & (state.liked > 0)
    return ((state.liked[:, None] == topics[None]) & counted[:, None]).sum(0)


def of_config(config: SimulatorConfig, topics: int) -> Dynamics | None:
  """The dynamics that the flags of the simulator ask for; None: none.

  Args:
    config: of the simulator.
    topics: T, of the catalogue.
  """
  if config.boredom == "none":
    return None
  if config.boredom == FITTED_TO_LOGS:
    return FittedBoredom(topics)
  if config.tires:
    return Fatigue(config.fatigue_power, config.fatigue_scale)
  return TopicBoredom(
    topics,
    config.boredom == "all",
    BOREDOM_MEMORY,
    _WINDOW,
    config.boredom_threshold,
  )
