"""Training on the next item of sequences, with early stopping."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hsrl_jax.data.sequences import Held, Packed
from hsrl_jax.networks.next_item import Catalogue, Model
from hsrl_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Settings of the training on the next item.

  Attributes:
    learning_rate: of AdamW, after the warm-up.
    weight_decay: of AdamW, on parameters with two axes or more.
    warmup: steps in which the learning rate rises from 0.
    final_rate: the learning rate's share that is left after `epochs`; it falls
      by a cosine.
    clip: global norm of the gradient.
    average: decay of the parameters' moving average, which is evaluated and
      kept; 0 for none.
    batch_rows: packed rows in a step.
    epochs: at most.
    patience: epochs without a better validation after which training ends.
    eval_every: epochs between validations.
    eval_users: validation users that are looked at, drawn once; 0 for all.
  """

  learning_rate: float = 1e-3
  weight_decay: float = 0.01
  warmup: int = 100
  final_rate: float = 0.1
  clip: float = 5.0
  average: float = 0.0
  batch_rows: int = 75
  epochs: int = 40
  patience: int = 6
  eval_every: int = 1
  eval_users: int = 0


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


# (parameters, histories int32 [E, T], targets int32 [E]) -> measure; the
# larger, the better.
Judge = Callable[[Params, np.ndarray, np.ndarray], float]


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
    config: TrainConfig,
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
    params = jax.jit(lambda key: self._model.init(key, self._catalogue))(key)
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
    self, state: TrainState, seed: int, validation: Held, judge: Judge
  ) -> Iterator[TrainState]:
    """Trains from `state` on; yields the state after each epoch.

    What was yielded may be saved and gone on from: the epochs that follow are
    the same ones, since random numbers depend on seed and epoch alone. A state
    is yielded once; its buffers are reused unless it was the last.

    Args:
      state: of `init`, or one that was yielded.
      seed: that of `init`.
      validation: what is held out to stop early.
      judge: measures parameters on it.
    """
    config = self.config
    chosen = np.arange(len(validation.target))
    if 0 < config.eval_users < len(chosen):
      rng = np.random.default_rng(0)
      chosen = np.sort(rng.choice(chosen, config.eval_users, replace=False))
    history, target = validation.history[chosen], validation.target[chosen]
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
      if epoch % config.eval_every == 0 or epoch == config.epochs:
        evaluated = averaged if config.average else params
        measure = judge(evaluated, history, target)
        if measure > float(state.best):
          state = state._replace(
            best=jnp.float32(measure),
            best_epoch=jnp.int32(epoch),
            best_params=jax.tree.map(jnp.copy, evaluated),
          )
      yield state

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


def _optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
  rate = optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    config.warmup,
    max(config.epochs * steps, config.warmup + 1),
    config.final_rate * config.learning_rate,
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.adamw(
      rate,
      weight_decay=config.weight_decay,
      mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    ),
  )
