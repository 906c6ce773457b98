"""Types that cross module boundaries. Shapes are of ONE user unless stated."""

from typing import Any, NamedTuple

import jax

Array = jax.Array
PRNGKey = jax.Array
Params = Any  # A pytree of arrays.
Metrics = dict[str, Array]


class Shown(NamedTuple):
  """The last R items that a user was shown, newest last, padded on the left.

  Attributes:
    items: int32 [R], ids; 0 for padding.
    response: float32 [R], 1 where the user responded positively.
    position: int32 [R], place in its slate, 0..K-1.
    ago: int32 [R], steps since it was shown, 1 for the last slate.
    step: int32 [], steps of the session so far.
  """

  items: Array
  response: Array
  position: Array
  ago: Array
  step: Array


class Observation(NamedTuple):
  """A user as the agent observes it.

  Attributes:
    profile: float32 [P], P may be 0.
    history: int32 [H], ids of the last items with a positive response, newest
      last, left-padded with 0.
    shown: what was shown lately, whatever the response; None where the agent
      sees what was liked alone.
  """

  profile: Array
  history: Array
  shown: Shown | None = None


class Transition(NamedTuple):
  """One step of one user.

  Attributes:
    observation: before the step.
    slate: int32 [K], the items shown.
    log_prob: float32 [K], log pi of each item under the policy that acted.
    response: float32 [K], 1 where the user responded positively.
    reward: float32 [].
    terminated: float32 [], 1 where the user left (no future reward).
    truncated: float32 [], 1 where the session was cut, such as by a step limit,
      and the user had not left.
    latent: float32 [A], what the agent chose before it became a slate; A is 0
      where an agent chooses items directly.
    next_history: int32 [H], after the step, of the same user even where the
      simulator has meanwhile started another one.
    next_shown: the same of what was shown; None where nobody sees it.
    hidden: float32 [Z], the simulator's state before the step as a critic may
      see it, Z may be 0; None but for agents that learn on-policy.
    next_hidden: the same after the step.
    notes: Action.notes of the slate; None likewise.
  """

  observation: Observation
  slate: Array
  log_prob: Array
  response: Array
  reward: Array
  terminated: Array
  truncated: Array
  latent: Array
  next_history: Array
  next_shown: Shown | None = None
  hidden: Array | None = None
  next_hidden: Array | None = None
  notes: Any = None

  @property
  def next_observation(self) -> Observation:
    """After the step; a profile stays the same."""
    return self.observation._replace(
      history=self.next_history, shown=self.next_shown
    )


class Sessions(NamedTuple):
  """Logged slates, S rows (the columns: docs/bring_your_own.md).

  Attributes:
    user_id: int32 [S].
    profile: float32 [S, P].
    history: int32 [S, H], left-padded with 0.
    exposed: int32 [S, K].
    response: float32 [S, K].
    timestamp: float64 [S], such as seconds; None where it is not known.
    propensity: float32 [S, K], probability by which the logging policy chose
      each item, NaN in slates without; None where it was never logged.
    position: int32 [S, K], where each item was shown; None likewise.
    session: int32 [S], number of the session, which another user's may have
      too; None where it was not logged, as all that follows.
    step: int32 [S], slates of the session before this one.
    reward: float32 [S], what the slate earned; NaN where nobody said.
    terminated: float32 [S], 1 where the user left after the slate.
  """

  user_id: Array
  profile: Array
  history: Array
  exposed: Array
  response: Array
  timestamp: Array | None = None
  propensity: Array | None = None
  position: Array | None = None
  session: Array | None = None
  step: Array | None = None
  reward: Array | None = None
  terminated: Array | None = None
