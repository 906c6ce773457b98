"""Records of the store, and what feedback makes of them: pure functions."""

import json
from typing import NamedTuple

from hsrl_jax.errors import InputError


class UnknownRequest(Exception):
  """No slate has this request id."""


def first_id(time: float) -> str:
  """The start of request ids made at a time, seconds since 1970.

  Those of earlier slates sort before it.
  """
  return f"{int(1e3 * time):012x}"


class Slate(NamedTuple):
  """A slate that was shown, of K items; lists are JSON texts."""

  request_id: str  # Unique; begins with `first_id` of its time.
  user_id: str  # Of the source.
  # Of the client; None: the slate is a session of its own.
  session_id: str | None
  step: int  # Slates of the session before, as the client says.
  time: float  # Seconds since 1970.
  width: int  # K.
  items: str  # Ids in the source, [K].
  propensities: str  # Probability of each item as drawn, in (0, 1], [K].
  history: str  # Items that the user liked before, newest last.
  profile: str  # Numbers about the user.
  version: str  # Of the policy.
  arm: str  # Of the canary.


class Feedback(NamedTuple):
  """A client's feedback on a slate."""

  request_id: str  # Of the slate.
  # 0 or 1 of each place, None where nothing is said; or of some items by their
  # ids in the source.
  responses: list[int | None] | dict[str, int]
  reward: float | None = None  # What the slate earned.
  terminated: bool | None = None  # Whether the user left after it.


class Kept(NamedTuple):
  """A slate with its feedback, as the store has it."""

  items: list[str]  # Ids in the source, [K].
  responses: list[int | None]  # Of each place; None where nobody answered.
  reward: float | None  # As in Feedback.
  terminated: bool | None  # As in Feedback.
  closed: bool  # Whether the slate was collected, and takes no more.
  is_last: bool  # Whether no later slate of its session was shown.

  @property
  def earned(self) -> float:
    """The reward; the number of positive responses where none was given."""
    likes = float(sum(x or 0 for x in self.responses))
    return likes if self.reward is None else self.reward


class Outcome(NamedTuple):
  """Counts of a feedback's values; each place, reward and end is one."""

  accepted: int  # Values that are kept now, durably.
  known: int  # Values that were kept already.
  ignored: int  # Values at odds with a kept one, or too late.
  closed: bool  # Whether the slate was collected before.


def kept_of(
  items: str,
  responses: str | None,
  reward: float | None,
  terminated: int | None,
  closed: int | None,
  is_last: int,
) -> Kept:
  """A record out of its columns; see `database`."""
  shown = json.loads(items)
  answered = json.loads(responses) if responses else [None] * len(shown)
  end = None if terminated is None else bool(terminated)
  return Kept(shown, answered, reward, end, closed is not None, bool(is_last))


def merge(kept: Kept, feedback: Feedback) -> tuple[Kept, Outcome]:
  """Fills what is open; what is there stays, whatever comes later.

  The result can always be written as logs: a reward above 0 has a positive
  response, one below 0 a response that is not; a session ends with its last
  slate.

  Raises:
    InputError: responses are not of this slate, or contradict the reward.
  """
  counts = {"accepted": 0, "known": 0, "ignored": 0}

  def settle(old, new, is_open=True):
    if new is None or (old is None and not is_open):
      counts["ignored"] += new is not None
      return old
    if old is None and not kept.closed:
      counts["accepted"] += 1
      return new
    counts["known" if old == new else "ignored"] += 1
    return old

  given = _by_place(kept.items, feedback.responses)
  responses = [
    settle(old, new) for old, new in zip(kept.responses, given, strict=True)
  ]
  ends = feedback.terminated
  merged = kept._replace(
    responses=responses,
    reward=settle(kept.reward, feedback.reward),
    # Who was shown more has not left.
    terminated=settle(kept.terminated, ends, kept.is_last or not ends),
  )
  if counts["accepted"]:
    _check_reward(merged)
  return merged, Outcome(**counts, closed=kept.closed)


def _by_place(
  items: list[str], responses: list[int | None] | dict[str, int]
) -> list[int | None]:
  """Responses of each place, [K]."""
  if isinstance(responses, list):
    if len(responses) not in (0, len(items)):
      raise InputError(
        f"responses has {len(responses)} entries; expected {len(items)}, one "
        "for each item of the slate, null where there is no answer yet"
      )
    return responses or [None] * len(items)
  for item in responses:
    if item not in items:
      raise InputError(
        f"responses has the item {item[:40]!r}, which the slate did not show; "
        f"expected some of {', '.join(items)[:200]}"
      )
  return [responses.get(item) for item in items]


def _check_reward(kept: Kept) -> None:
  """Raises InputError where the responses contradict the reward."""
  if kept.reward is None:
    return
  if kept.reward > 0 and not any(kept.responses):
    raise InputError(
      f"reward is {kept.reward:g} and no response is positive; expected at "
      "most 0, or the responses with the reward"
    )
  if kept.reward < 0 and all(kept.responses):
    raise InputError(
      f"reward is {kept.reward:g} and all responses are positive; expected at "
      "least 0"
    )
