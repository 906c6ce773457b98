"""The fit of FittedBoredom to logged sessions, by BCE on logits.

What was shown and liked before a slate is in the logs, whatever the parameters
are. So slates are drawn one by one, each with those before it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hsrl_jax.sim.fitted_boredom import STEPS, FittedBoredom
from hsrl_jax.types import Array, Params

_BATCH = 512  # Slates of an update.
_RATE = 3e-3


class Slates(NamedTuple):
  """S slates of K items, in the order of their sessions and steps."""

  topics: Array  # int32 [S, K], of the items.
  logits: Array  # float32 [S, K], of the click model.
  response: Array  # float32 [S, K].
  # int32 [S], slates of the session before each; 0 begins a session.
  place: Array


def _logits(
  dynamics: FittedBoredom, fitted: Params, slates: Slates, row: Array
) -> Array:
  """Logits of likes in a slate, [K]."""
  ago = jnp.arange(1, STEPS + 1)
  rows = jnp.maximum(row - ago, 0)
  before = slates.topics[rows], slates.response[rows], ago <= slates.place[row]
  return dynamics.logits_after(
    fitted, before, slates.topics[row], slates.logits[row]
  )


@functools.partial(jax.jit, static_argnames="dynamics")
def predicted(dynamics: FittedBoredom, fitted: Params, slates: Slates) -> Array:
  """Logits of likes, float32 [S, K]."""
  return jax.lax.map(
    functools.partial(_logits, dynamics, fitted, slates),
    jnp.arange(len(slates.place)),
    batch_size=_BATCH,
  )


def log_loss(logits: Array, response: Array) -> Array:
  """Mean over what was shown, float32 []."""
  return optax.sigmoid_binary_cross_entropy(logits, response).mean()


def updates(slates: Slates) -> int:
  """Of a pass over the slates."""
  return len(slates.place) // min(_BATCH, len(slates.place))


def fit(
  dynamics: FittedBoredom,
  train: Slates,
  val: Slates,
  *,
  epochs: int,
  tell: Callable[[int, float], None],
) -> Params:
  """The parameters of least log loss of the validation slates.

  Args:
    dynamics: what is fitted.
    train: slates to fit to.
    val: slates that choose the epoch.
    epochs: passes over the training slates.
    tell: called after each epoch with its number and validation log loss.
  """
  train = jax.tree.map(jnp.asarray, train)
  rows, steps = len(train.place), updates(train)
  batch = min(_BATCH, rows)
  key = jax.random.key(0)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(_RATE, steps * epochs)),
  )
  params = dynamics.init(jax.random.fold_in(key, 0))
  state = (params, optimizer.init(params))

  @jax.jit
  def epoch(state, train, key):
    def loss(params, own):
      logits = jax.vmap(functools.partial(_logits, dynamics, params, train))(
        own
      )
      return log_loss(logits, train.response[own])

    def update(state, own):
      params, moments = state
      grads = jax.grad(loss)(params, own)
      updates, moments = optimizer.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), None

    order = jax.random.permutation(key, rows)[: steps * batch]
    return jax.lax.scan(update, state, order.reshape(steps, batch))[0]

  best, least = params, np.inf
  for number in range(1, epochs + 1):
    state = epoch(state, train, jax.random.fold_in(key, number))
    value = float(log_loss(predicted(dynamics, state[0], val), val.response))
    tell(number, value)
    if value < least:
      best, least = state[0], value
  return best
