"""Learning from logs: what a run learns from, and what is said of it."""

from typing import Any

import jax
import numpy as np

from hsrl_jax.config import Config
from hsrl_jax.data import blocks, transitions
from hsrl_jax.errors import InputError
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Sessions, Transition

MEMORY_BYTES = 8 * 2**30  # What transitions may take.
ESTIMATED = "estimated by popularity"
SESSIONS, PROPENSITY = "session_id of several slates", "propensity"


def learned(
  logs: Sessions, reward: Reward, items: int, observed_items: int
) -> Transition:
  """The training slates as transitions, leaves [S, ...].

  Args:
    logs: S slates.
    reward: of slates whose reward was not logged.
    items: N of the catalogue.
    observed_items: R of Observation.shown; 0: what was shown is not seen.

  Raises:
    InputError: the transitions would take more than MEMORY_BYTES.
  """
  size = transitions.size(logs, observed_items)
  if size > MEMORY_BYTES:
    raise InputError(
      f"learning from logs: {len(logs.user_id):,} slates are "
      f"{size / 2**30:.1f} GiB as transitions; expected at most "
      f"{MEMORY_BYTES / 2**30:g}, since all are held in memory: a folder "
      "`sessions` of .parquet files (docs/logs.md), fewer slates, or "
      "--simulator_observed=likes"
    )
  earned = np.asarray(reward.slate(reward.items(np.asarray(logs.response))))
  log_prob = transitions.logging_policy(logs, items)
  made = transitions.transitions(logs, earned, log_prob, observed_items)
  return jax.tree.map(jax.numpy.asarray, made)


def facts(config: Config, logs: Sessions | blocks.Blocks) -> dict[str, Any]:
  """Facts of learning from slates, for results.json."""
  on_disk = isinstance(logs, blocks.Blocks)
  known = dict(logs.counts if on_disk else transitions.counts(logs))
  slates, logged = known["slates"], known["propensities"]
  source = "logged" if logged else ESTIMATED
  if 0 < logged < slates:
    source = f"logged in {logged:,} of {slates:,} slates, else {ESTIMATED}"
  return known | {
    "on_disk": on_disk,
    "propensities": source,
    "importance_clip": getattr(config.settings, "importance_clip", None),
  }


def missing(known: dict[str, Any]) -> list[str]:
  """Facts that learning from logs needs and these lack; see `facts`."""
  there = {
    SESSIONS: known["sessions_logged"] and known["sessions"] < known["slates"],
    PROPENSITY: known["propensities"] != ESTIMATED,
    "reward": known["rewards_logged"],
    "terminated": known["ends_logged"],
  }
  return [name for name, is_there in there.items() if not is_there]


def lines(known: dict[str, Any]) -> list[str]:
  """The facts for a terminal."""
  cut = "logged" if known["sessions_logged"] else "cut at gaps of time"
  ends = "logged" if known["ends_logged"] else "the last slates of sessions"
  said = [
    f"from logs: {known['slates']:,} slates in {known['sessions']:,} sessions "
    f"({cut}), {known['ends']:,} ends ({ends})"
  ]
  if known["on_disk"]:
    said.append("read from disk by windows; all else sees a sample of users")
  clip, source = known["importance_clip"], known["propensities"]
  if clip:
    guess = "; a guess, so the weights are one too"
    said.append(
      f"importance weights, cut at {clip:g}; propensities: {source}"
      + (guess if source == ESTIMATED else "")
    )
  elif clip is not None:
    said.append(
      f"importance weights are off; propensities ({source}) are not read "
      "without --importance_clip"
    )
  if len(lacking := missing(known)) == 4:
    said.append(
      f"warning: these logs have no {', '.join(lacking)}: likes are all there "
      "is to learn from. --recipe=next_item learns what users like next, "
      "--recipe=replay slates that are liked, each in a new workdir; "
      "--mode=advise says what logs hold"
    )
  return said
