"""An agent's view of a session: the last likes, and what was shown."""

import jax.numpy as jnp

from hsrl_jax.types import Array, Observation, Shown


def start(profile: Array, history: Array, size: int) -> Observation:
  """The observation at the start of a session.

  Args:
    profile: float32 [P].
    history: int32 [H], left-padded with 0.
    size: R, items of `shown`; 0: what was shown is not seen.
  """
  if not size:
    return Observation(profile, history)
  none = jnp.zeros(size, jnp.int32)
  shown = Shown(none, jnp.zeros(size), none, none, jnp.int32(0))
  return Observation(profile, history, shown)


def seen(observation: Observation) -> Observation:
  """With nothing shown yet where it is not known what was."""
  if observation.shown is not None:
    return observation
  return start(observation.profile, observation.history, 1)


def after(
  observation: Observation, slate: Array, response: Array
) -> Observation:
  """The observation after a slate, int32 [K], and its response, float32 [K]."""
  history = append_positives(observation.history, slate, response)
  shown = observation.shown
  if shown is not None:
    shown = _append_shown(shown, slate, response)
  return observation._replace(history=history, shown=shown)


def append_positives(history: Array, slate: Array, response: Array) -> Array:
  """Appends the items with a positive response; the oldest drop out.

  Args:
    history: int32 [H], left-padded with 0.
    slate: int32 [K].
    response: float32 [K].

  Returns:
    int32 [H], left-padded with 0.
  """
  joined = jnp.concatenate([history, jnp.where(response > 0, slate, 0)])
  # A stable sort moves the zeros to the front and keeps the order of the rest.
  order = jnp.argsort(joined > 0, stable=True)
  return joined[order][-history.shape[0] :]


def _append_shown(shown: Shown, slate: Array, response: Array) -> Shown:
  """Appends a slate; places of it that show nothing stay empty."""
  size = len(shown.items)
  aged = jnp.where(shown.items > 0, shown.ago + 1, 0)
  there = (slate > 0).astype(jnp.int32)
  new = (slate, response * there, jnp.arange(len(slate)) * there, there)
  old = (shown.items, shown.response, shown.position, aged)
  return Shown(
    *(jnp.concatenate(x)[-size:] for x in zip(old, new, strict=True)),
    shown.step + 1,
  )
