"""Logged slates as transitions: sessions, next states and ends.

A session is what has one `session_id`; where that is not logged, the slates of
a user between two gaps of more than SESSION_GAP, or up to a logged end. A
state's next one is that of the session's next slate; after the last slate it is
the state with the last responses added. A session ends where the log says so
(`terminated`); where it says nothing of ends, with its last slate.
"""

from typing import NamedTuple

import numpy as np

from hsrl_jax.types import Observation, Sessions, Shown, Transition

SESSION_GAP = 1_800.0  # Of timestamps, such as seconds.
# The largest size of a reward and of an item's or a profile's numbers. Networks
# take them as they are, and float32 holds squares and products of these still.
LARGEST = 1e6


class Order(NamedTuple):
  """Slates by session and step."""

  rows: np.ndarray  # int [S], the row of each slate in the logs.
  # int [S], the number of its session, from 0, not falling.
  session: np.ndarray
  place: np.ndarray  # int [S], slates of the session before it.

  @property
  def last(self) -> np.ndarray:
    """Whether each slate is the last of its session, bool [S]."""
    return np.append(self.place[1:] == 0, True)


def order(logs: Sessions) -> Order:
  """Puts slates in the order of sessions; those of one session by step.

  Without a logged step they are in the order of time, then of rows.
  """
  time = np.zeros(len(logs.user_id))
  if logs.timestamp is not None:
    time = np.asarray(logs.timestamp, np.float64)
  user = np.asarray(logs.user_id)
  session = np.zeros(len(user), int)
  if logs.session is not None:
    session = np.asarray(logs.session)
  keys = (time,) if logs.step is None else (time, np.asarray(logs.step))
  if logs.session is None:  # By time, which cuts sessions.
    keys = keys[::-1]
  rows = np.lexsort((*keys, session, user))
  user, session, time = user[rows], session[rows], time[rows]
  begins = np.ones(len(rows), bool)
  begins[1:] = (user[1:] != user[:-1]) | (session[1:] != session[:-1])
  if logs.session is None:
    begins[1:] |= np.diff(time) > SESSION_GAP
    if logs.terminated is not None:
      begins[1:] |= np.asarray(logs.terminated)[rows][:-1] > 0
  number = np.cumsum(begins) - 1
  place = np.arange(len(rows)) - np.flatnonzero(begins)[number]
  return Order(rows, number, place)


def transitions(
  logs: Sessions,
  rewards: np.ndarray,
  log_prob: np.ndarray,
  observed_items: int = 0,
) -> Transition:
  """Logged slates as transitions, by session and step, leaves [S, ...].

  Args:
    logs: S slates.
    rewards: float [S], of their responses; a logged reward goes before, where
      it is not NaN.
    log_prob: float [S, K], of each item under the policy that showed it.
    observed_items: R of Observation.shown; 0: what was shown is not seen.
  """
  ordered = order(logs)
  logs = Sessions(
    *(None if x is None else np.asarray(x)[ordered.rows] for x in logs)
  )
  last, place = ordered.last, ordered.place
  step = place if logs.step is None else logs.step
  shown, next_shown = None, None
  if observed_items:
    shown = _shown(logs, place, step, observed_items)
    next_shown = _shown(logs, place, step, observed_items, after=True)
  rewards = earned(logs, rewards[ordered.rows])
  ends = last if logs.terminated is None else logs.terminated
  history = logs.history.astype(np.int32)
  next_history = np.where(
    last[:, None], _with_likes(logs), np.roll(history, -1, 0)
  )
  return Transition(
    observation=Observation(logs.profile.astype(np.float32), history, shown),
    slate=logs.exposed.astype(np.int32),
    log_prob=log_prob[ordered.rows].astype(np.float32),
    response=logs.response.astype(np.float32),
    reward=rewards.astype(np.float32),
    terminated=ends.astype(np.float32),
    truncated=np.zeros(len(place), np.float32),
    latent=np.zeros((len(place), 0), np.float32),
    next_history=next_history,
    next_shown=next_shown,
  )


def logging_policy(
  logs: Sessions, items: int, exposures: np.ndarray | None = None
) -> np.ndarray:
  """Log-probability of each item shown under the policy that showed it, [S, K].

  Where a slate has no propensities it is an estimate, the simplest one: the
  same for everybody and every state, by how often each item was shown. It knows
  nothing of what that policy knew, so importance weights by it are a guess.

  Args:
    logs: S slates.
    items: N of the catalogue.
    exposures: int [N + 1], how often each item was shown in all logs; None:
      `logs` are all.

  Returns:
    float32.
  """
  exposed = np.asarray(logs.exposed)
  if exposures is None:
    exposures = np.bincount(exposed.ravel(), minlength=items + 1)
  count = exposures + 1.0  # One more of each, so that no share is 0.
  log_prob = np.log(count / count[1:].sum())[exposed]
  if logs.propensity is not None:
    known = np.asarray(logs.propensity, np.float64)
    log_prob = np.where(np.isnan(known), log_prob, np.log(known))
  return log_prob.astype(np.float32)


def earned(logs: Sessions, rewards: np.ndarray) -> np.ndarray:
  """The logged rewards of S slates, [S]; where there is none, those given."""
  if logs.reward is None:
    return rewards
  return np.where(np.isnan(logs.reward), rewards, logs.reward)


def counts(logs: Sessions) -> dict[str, int]:
  """Slates, sessions and ends of S slates, and which of these were logged.

  Of propensities it is in how many slates they were.
  """
  ordered = order(logs)
  ends = ordered.last if logs.terminated is None else logs.terminated
  rewards = logs.reward is not None and not np.isnan(logs.reward).all()
  return {
    "slates": len(ordered.rows),
    "sessions": int(ordered.session[-1]) + 1 if len(ordered.rows) else 0,
    "sessions_logged": logs.session is not None,
    "ends": int(np.sum(ends)),
    "ends_logged": logs.terminated is not None,
    "rewards_logged": rewards,
    "propensities": int(with_propensities(logs).sum()),
  }


def with_propensities(logs: Sessions) -> np.ndarray:
  """Which of S slates have a propensity of each item, bool [S]."""
  if logs.propensity is None:
    return np.zeros(len(logs.user_id), bool)
  return np.isfinite(logs.propensity).all(1)


def size(logs: Sessions, observed_items: int = 0) -> int:
  """Bytes of `transitions` of S slates."""
  width = logs.profile.shape[1] + 2 * logs.history.shape[1]
  width += 3 * logs.exposed.shape[1] + 3
  if observed_items:
    width += 2 * (4 * observed_items + 1)
  return 4 * width * len(logs.user_id)


def _with_likes(logs: Sessions) -> np.ndarray:
  """Histories with the likes of their slates, int32 [S, H], 0 on the left."""
  liked = np.where(logs.response > 0, logs.exposed, 0)
  joined = np.concatenate([logs.history, liked], 1)
  by_row = np.argsort(joined > 0, axis=1, kind="stable")
  joined = np.take_along_axis(joined, by_row, 1)
  return joined[:, -logs.history.shape[1] :].astype(np.int32)


def _shown(
  logs: Sessions,
  place: np.ndarray,
  step: np.ndarray,
  size: int,
  after: bool = False,
) -> Shown:
  """Items that had been shown before each slate, or `after` it too.

  Args:
    logs: in the order of sessions, S slates of K.
    place: int [S], see Order.
    step: int [S], slates of the session before.
    size: R.
    after: whether the slate itself counts.
  """
  width = logs.exposed.shape[1]
  ago = np.arange(-(-size // width), 0, -1)  # Slates back, the oldest first.
  rows = np.arange(len(place))[:, None] - ago + after
  there = place[:, None] + after >= ago
  rows = np.where(there, rows, 0)

  def last(x: np.ndarray, dtype: type) -> np.ndarray:
    """[S, A] or [S, A, K] -> the last R items, [S, R]; 0 where none was."""
    x = x if x.ndim == 3 else x[..., None]
    x = np.broadcast_to(x * there[..., None], (*there.shape, width))
    return np.ascontiguousarray(x.reshape(len(place), -1)[:, -size:], dtype)

  return Shown(
    items=last(logs.exposed[rows], np.int32),
    response=last(logs.response[rows], np.float32),
    position=last(np.arange(width)[None, None], np.int32),
    ago=last(np.broadcast_to(ago, there.shape), np.int32),
    step=(step + after).astype(np.int32),
  )
