"""Mode `advise`: what logs hold, and which recipe learns from that."""

import numpy as np

from hsrl_jax import agents
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation.statistics import MIN_USERS, by_group
from hsrl_jax.stages import logged
from hsrl_jax.stages.parts import Parts

_COMMAND = "python -m hsrl_jax.launch"


def lines(parts: Parts) -> list[str]:
  """Lines on what the prepared logs of a run hold, then commands to run.

  The first command is the one to begin with.

  Raises:
    InputError: the dataset has no logged slates.
  """
  if parts.without_slates:
    raise InputError(
      f"{parts.name} has no logged slates; expected a --dataset that has some"
    )
  splits = parts.dataset.splits
  user = np.concatenate([x.user_id for x in splits.values()])
  liked = np.concatenate([np.asarray(x.response) > 0 for x in splits.values()])
  slates, likes = (
    by_group(x, user) for x in (np.ones(len(user)), liked.sum(1))
  )
  known = logged.facts(parts.config, parts.training_logs)
  missing = logged.missing(known)
  is_drawn = parts.dataset.items.feedback.negatives is not None
  responses = f"liked or not, {liked.mean():.1%} of what was shown is liked"
  if is_drawn:
    responses = "likes alone; what stands beside them in slates was drawn"
  sizes = ", ".join(f"{k} {len(x.user_id):,}" for k, x in splits.items())
  cut = "logged" if known["sessions_logged"] else "cut at gaps of time"
  said = [
    f"slates of {liked.shape[1]}: {sizes}",
    f"users: {len(slates):,}; the median has {np.median(slates):g} slates and "
    f"{np.median(likes):g} likes",
    f"responses: {responses}",
    f"{known['slates']:,} training slates in {known['sessions']:,} sessions, "
    f"{cut}; propensities: {known['propensities']}",
    f"not in these logs: {', '.join(missing)}"
    if missing
    else "these logs have all that learning from logs reads",
  ]
  if len(slates) < MIN_USERS:
    said.append(f"warning: fewer than {MIN_USERS} users tell little")
  return said + _ways(parts, missing, is_drawn)


def _ways(parts: Parts, missing: list[str], is_drawn: bool) -> list[str]:
  """Goals, and the command that each of them takes."""
  run = f"{_COMMAND} --workdir={parts.workdir}"
  sessions = f"{run} --recipe=logs --agent={agents.FROM_LOGS}"
  if any(parts.dataset.items.genres):
    data = parts.config.data
    sessions = (
      f"{_COMMAND} --flagfile=launch/flags/logged_sessions.flags "
      f"--dataset={data.dataset} "
      f"--raw_data_dir={data.raw_data_dir or 'FOLDER'} "
      f"--workdir={parts.workdir}_sessions"
    )
  liked = "slates that are liked, in a simulator"
  if is_drawn:
    liked += "; negatives were drawn, so its figures compare policies alone"
  if logged.PROPENSITY not in missing:
    liked += "; with an estimate of what the policy would have earned"
  ways = [
    ("what users like next", f"{run} --recipe=next_item"),
    (liked, run),
  ]
  if logged.SESSIONS not in missing:
    ways.insert(0, ("long sessions", sessions))
  if logged.PROPENSITY not in missing:
    weighed = f"{run} --recipe=logs --importance_clip=10"
    ways.append(("slates that are liked, by propensities", weighed))
  said = [x for goal, command in ways for x in (f"{goal}:", f"  {command}")]
  said[0] = f"recommended, for {said[0]}"
  for name, what in (
    (logged.SESSIONS, "long sessions"),
    (logged.PROPENSITY, "what a policy would have earned"),
  ):
    if name in missing:
      said.append(f"{what}: not from these logs, without {name}")
  return said
