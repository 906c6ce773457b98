"""Types that cross module boundaries. Shapes are of ONE user unless stated."""

from typing import Any, NamedTuple

import jax

Array = jax.Array
PRNGKey = jax.Array
Params = Any  # A pytree of arrays.
Metrics = dict[str, Array]


class Shown(NamedTuple):
  """The last R items that a user was shown, newest last, padded on the left."""

  items: Array  # int32 [R], ids; 0 for padding.
  response: Array  # float32 [R], 1 where the user responded positively.
  position: Array  # int32 [R], place in its slate, 0..K-1.
  ago: Array  # int32 [R], steps since it was shown, 1 for the last slate.
  step: Array  # int32 [], steps of the session so far.


class Observation(NamedTuple):
  """A user as the agent observes it."""

  profile: Array  # float32 [P], P may be 0.
  # int32 [H], ids of the last items with a positive response, newest last,
  # left-padded with 0.
  history: Array
  # What was shown lately, whatever the response; None where the agent sees what
  # was liked alone.
  shown: Shown | None = None


class Transition(NamedTuple):
  """One step of one user."""

  observation: Observation  # Before the step.
  slate: Array  # int32 [K], the items shown.
  # float32 [K], log pi of each item under the policy that acted.
  log_prob: Array
  response: Array  # float32 [K], 1 where the user responded positively.
  reward: Array  # float32 [].
  terminated: Array  # float32 [], 1 where the user left (no future reward).
  # float32 [], 1 where the session was cut, such as by a step limit, and the
  # user had not left.
  truncated: Array
  # float32 [A], what the agent chose before it became a slate; A is 0 where an
  # agent chooses items directly.
  latent: Array
  # int32 [H], after the step, of the same user even where the simulator has
  # meanwhile started another one.
  next_history: Array
  # The same of what was shown; None where nobody sees it.
  next_shown: Shown | None = None
  # float32 [Z], the simulator's state before the step as a critic may see it, Z
  # may be 0; None but for agents that learn on-policy.
  hidden: Array | None = None
  next_hidden: Array | None = None  # The same after the step.
  notes: Any = None  # Action.notes of the slate; None likewise.

  @property
  def next_observation(self) -> Observation:
    """After the step; a profile stays the same."""
    return self.observation._replace(
      history=self.next_history, shown=self.next_shown
    )


class Sessions(NamedTuple):
  """Logged slates, S rows (the columns: docs/bring_your_own.md)."""

  user_id: Array  # int32 [S].
  profile: Array  # float32 [S, P].
  history: Array  # int32 [S, H], left-padded with 0.
  exposed: Array  # int32 [S, K].
  response: Array  # float32 [S, K].
  # float64 [S], such as seconds; None where it is not known.
  timestamp: Array | None = None
  # float32 [S, K], probability by which the logging policy chose each item, NaN
  # in slates without; None where it was never logged.
  propensity: Array | None = None
  # int32 [S, K], where each item was shown; None likewise.
  position: Array | None = None
  # int32 [S], number of the session, which another user's may have too; None
  # where it was not logged, as all that follows.
  session: Array | None = None
  step: Array | None = None  # int32 [S], slates of the session before this one.
  # float32 [S], what the slate earned; NaN where nobody said.
  reward: Array | None = None
  # float32 [S], 1 where the user left after the slate.
  terminated: Array | None = None
