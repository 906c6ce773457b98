"""The fit of FittedBoredom to logged sessions, by BCE on logits."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hsrl_jax.sim.fitted_boredom.dynamics import FittedBoredom
from hsrl_jax.types import Array, Params

MOST_STEPS = 100  # Of a session; what follows counts as a session of its own.
_BATCH = 64  # Sessions of an update.
_RATE = 3e-3


class Sessions(NamedTuple):
  """Sessions side by side, S sessions of at most T slates of K items.

  Attributes:
    topics: int32 [S, T, K], of the items.
    logits: float32 [S, T, K], of the click model.
    response: float32 [S, T, K].
    there: float32 [S, T], 1 where there is a slate.
  """

  topics: Array
  logits: Array
  response: Array
  there: Array


def side_by_side(
  place: np.ndarray,
  topics: np.ndarray,
  logits: np.ndarray,
  response: np.ndarray,
) -> tuple[Sessions, tuple[np.ndarray, np.ndarray]]:
  """Sessions of slates that are in the order of sessions and steps.

  Args:
    place: int [R], slates of the session before each; 0 begins a session.
    topics: int [R, K], of the items.
    logits: float [R, K], of the click model.
    response: float [R, K].

  Returns:
    The sessions, and where each slate is in them, (int [R], int [R]).
  """
  piece = np.cumsum(place % MOST_STEPS == 0) - 1
  at = piece, place % MOST_STEPS
  size = (piece[-1] + 1, at[1].max() + 1)

  def spread(x: np.ndarray, dtype: type) -> np.ndarray:
    made = np.zeros((*size, *x.shape[1:]), dtype)
    made[at] = x
    return made

  sessions = Sessions(
    spread(topics, np.int32),
    spread(logits, np.float32),
    spread(response, np.float32),
    spread(np.ones(len(place)), np.float32),
  )
  return sessions, at


@functools.partial(jax.jit, static_argnames="dynamics")
def predicted(
  dynamics: FittedBoredom, fitted: Params, sessions: Sessions
) -> Array:
  """Logits of likes, float32 [S, T, K]."""

  def of_session(session: Sessions) -> Array:
    def step(state, slate: Sessions):
      logits = dynamics.logits(fitted, state, slate.topics, slate.logits)
      after = dynamics.after(state, slate.topics, slate.response, jnp.int32(0))
      return after, logits

    return jax.lax.scan(step, dynamics.start(), session)[1]

  return jax.vmap(of_session)(sessions)


def log_loss(logits: Array, sessions: Sessions) -> Array:
  """Mean over what was shown, float32 []."""
  loss = optax.sigmoid_binary_cross_entropy(logits, sessions.response)
  loss = loss.mean(-1) * sessions.there
  return loss.sum() / sessions.there.sum()


def updates(sessions: Sessions) -> int:
  """Of a pass over the sessions."""
  return len(sessions.there) // min(_BATCH, len(sessions.there))


def fit(
  dynamics: FittedBoredom,
  train: Sessions,
  val: Sessions,
  *,
  epochs: int,
  seed: int,
  tell: Callable[[int, float], None],
) -> Params:
  """The parameters of least log loss of the validation sessions.

  Args:
    dynamics: what is fitted.
    train: sessions to fit to.
    val: sessions that choose the epoch.
    epochs: passes over the training sessions.
    seed: of initialisation and order.
    tell: called after each epoch with its number and validation log loss.
  """
  rows, steps = len(train.there), updates(train)
  batch = min(_BATCH, rows)
  key = jax.random.key(seed)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(_RATE, steps * epochs)),
  )
  params = dynamics.init(jax.random.fold_in(key, 0))
  state = (params, optimizer.init(params))

  def loss(params, sessions):
    return log_loss(predicted(dynamics, params, sessions), sessions)

  @jax.jit
  def epoch(state, key):
    order = jax.random.permutation(key, rows)[: steps * batch]

    def update(state, indices):
      params, moments = state
      sessions = jax.tree.map(lambda x: jnp.asarray(x)[indices], train)
      grads = jax.grad(loss)(params, sessions)
      updates, moments = optimizer.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(update, state, order.reshape(steps, batch))[0]

  best, least = params, np.inf
  for number in range(1, epochs + 1):
    state = epoch(state, jax.random.fold_in(key, number))
    value = float(loss(state[0], val))
    tell(number, value)
    if value < least:
      best, least = state[0], value
  return best
