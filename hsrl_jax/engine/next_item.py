"""Training on the next item of sequences, with early stopping."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.config import NextItemConfig
from hsrl_jax.data.sequences import Packed
from hsrl_jax.networks.next_item import Catalogue, Model
from hsrl_jax.ops import compilation
from hsrl_jax.types import Array, Params, PRNGKey

_CLIP = 5.0  # Global norm of the gradient.
_FINAL_RATE = 0.1  # What is left of the learning rate at the end.
_WARMUP = 100  # Updates in which it rises, at most a tenth of all.


class TrainState(NamedTuple):
  """All that training goes on from; a pytree of arrays.

  Attributes:
    epoch: int32 [], epochs done.
    params: of the model.
    averaged: moving average of the parameters.
    opt_state: of the optimizer.
    best_params: those of the best validation.
    best: float32 [], the best validation's measure.
    best_epoch: int32 [].
    loss: float32 [], mean of the last epoch.
  """

  epoch: Array
  params: Params
  averaged: Params
  opt_state: optax.OptState
  best_params: Params
  best: Array
  best_epoch: Array
  loss: Array


# Parameters to a measure of what is held out; the larger, the better.
Judge = Callable[[Params], float]


class Trainer:
  """Epochs of one model on one set of packed rows.

  Attributes:
    config: the settings.
  """

  def __init__(
    self,
    model: Model,
    catalogue: Catalogue,
    packed: Packed,
    config: NextItemConfig,
  ):
    """Puts the rows on the device; compiles nothing yet."""
    self.config = config
    self._model, self._catalogue = model, catalogue
    self._packed = jax.tree.map(jnp.asarray, packed)
    rows = len(packed.item)
    self._batch = min(config.batch_rows, rows)
    self._steps = rows // self._batch
    self._optimizer = _optimizer(config, self._steps)
    self._epoch = jax.jit(self._run_epoch, donate_argnums=(0, 1, 2))

  def init(self, seed: int) -> TrainState:
    """The state before the first epoch."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    return self._begun(compilation.once(self._params)(key))

  def shapes(self) -> TrainState:
    """What `init` returns, as shapes and dtypes."""
    return jax.eval_shape(
      lambda key: self._begun(self._params(key)), jax.random.key(0)
    )

  def _params(self, key: PRNGKey) -> Params:
    return self._model.init(key, self._catalogue)

  def _begun(self, params: Params) -> TrainState:
    copy = functools.partial(jax.tree.map, jnp.copy)
    return TrainState(
      epoch=jnp.int32(0),
      params=params,
      averaged=copy(params),
      opt_state=self._optimizer.init(params),
      best_params=copy(params),
      best=jnp.float32(-jnp.inf),
      best_epoch=jnp.int32(0),
      loss=jnp.float32(jnp.nan),
    )

  def run(
    self, state: TrainState, seed: int, judge: Judge
  ) -> Iterator[tuple[TrainState, float | None]]:
    """Trains from `state` on; yields the state after each epoch.

    Beside it is the epoch's measure, None where it was not validated. A state
    that was yielded may be saved and gone on from: the epochs that follow are
    the same ones, since random numbers depend on seed and epoch alone. A state
    is yielded once; its buffers are reused unless it was the last.

    Args:
      state: of `init`, or one that was yielded.
      seed: that of `init`.
      judge: measures parameters, to keep the best and to stop early.
    """
    config = self.config
    while not self.finished(state):
      epoch = int(state.epoch) + 1
      key = jax.random.fold_in(jax.random.key(seed), epoch)
      params, averaged, opt_state, loss = self._epoch(
        state.params,
        state.averaged,
        state.opt_state,
        key,
        self._catalogue,
        self._packed,
      )
      state = state._replace(
        epoch=jnp.int32(epoch),
        params=params,
        averaged=averaged,
        opt_state=opt_state,
        loss=loss,
      )
      measure = None
      if epoch % config.eval_every == 0 or epoch == config.epochs:
        evaluated = averaged if config.average else params
        measure = judge(evaluated)
        if jnp.float32(measure) > state.best:  # As it is kept.
          state = state._replace(
            best=jnp.float32(measure),
            best_epoch=jnp.int32(epoch),
            best_params=jax.tree.map(jnp.copy, evaluated),
          )
      yield state, measure

  def finished(self, state: TrainState) -> bool:
    """Whether all epochs are done, or validation has not improved for long."""
    epoch, best_epoch = int(state.epoch), int(state.best_epoch)
    out_of_patience = epoch - best_epoch >= self.config.patience
    return epoch >= self.config.epochs or out_of_patience

  def _run_epoch(self, params, averaged, opt_state, key, catalogue, packed):
    order = jax.random.permutation(key, len(packed.item))
    order = order[: self._steps * self._batch].reshape(self._steps, -1)
    decay = self.config.average

    def step(carry, inputs):
      params, averaged, opt_state = carry
      number, rows = inputs
      batch = jax.tree.map(lambda x: x[rows], packed)
      loss, grad = jax.value_and_grad(self._model.loss)(
        params, catalogue, batch, jax.random.fold_in(key, number)
      )
      updates, opt_state = self._optimizer.update(grad, opt_state, params)
      params = optax.apply_updates(params, updates)
      if decay:
        averaged = optax.incremental_update(params, averaged, 1 - decay)
      return (params, averaged, opt_state), loss

    (params, averaged, opt_state), losses = jax.lax.scan(
      step, (params, averaged, opt_state), (jnp.arange(self._steps), order)
    )
    return params, averaged, opt_state, losses.mean()


def _optimizer(
  config: NextItemConfig, steps: int
) -> optax.GradientTransformation:
  total = config.epochs * steps
  rate = optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    min(_WARMUP, total // 10),
    total,
    _FINAL_RATE * config.learning_rate,
  )
  return optax.chain(
    optax.clip_by_global_norm(_CLIP),
    optax.adamw(
      rate,
      weight_decay=config.weight_decay,
      mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    ),
  )
