"""Click models: what makes users respond; their fit and quality.

A click model is a flax module in `networks/` and a line in `CLICK_MODELS`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.errors import InputError
from hsrl_jax.networks.user_response import UserResponseModel
from hsrl_jax.types import Array, Params, PRNGKey, Sessions

# (response params, profile [P], history [H], slate [K]) -> probabilities [K].
ResponseFn = Callable[[Any, Array, Array, Array], Array]


def _attention(config: SimulatorConfig) -> UserResponseModel:
  return UserResponseModel(
    config.features,
    config.hidden,
    config.heads,
    config.final_dense,
    config.dropout,
  )


# Name to what builds the flax module, from a SimulatorConfig. The module is
# called as UserResponseModel is, and returns logits, [K].
CLICK_MODELS = {"attention": _attention}
OF_FILES = "attention"  # Whose weights a `response_file` holds.


class ResponseParams(NamedTuple):
  """What a click model needs to answer.

  Attributes:
    network: parameters of the flax module.
    item_features: float32 [N + 1, D], row 0 for padding.
  """

  network: Params
  item_features: Array


def make_network(config: SimulatorConfig):
  """The flax module of the click model that `config` names.

  Raises:
    InputError: no click model has that name.
  """
  if config.click_model not in CLICK_MODELS:
    raise InputError(
      f"--simulator_click_model is {config.click_model!r}; expected one of "
      f"{', '.join(CLICK_MODELS)}"
    )
  return CLICK_MODELS[config.click_model](config)


def response_fn(config: SimulatorConfig) -> ResponseFn:
  """How users respond by `config`; its params are ResponseParams."""
  return functools.partial(_probabilities, make_network(config))


def _probabilities(
  network,
  params: ResponseParams,
  profile: Array,
  history: Array,
  slate: Array,
) -> Array:
  logits = network.apply(
    params.network, params.item_features, profile, history, slate
  )
  return jax.nn.sigmoid(logits)


class FitState(NamedTuple):
  """The whole state of fitting.

  Attributes:
    params: of the network.
    opt_state: of the optimizer.
    best_params: those of the least validation log loss so far.
    best_loss: float32 [], that loss.
    epoch: int32 [], epochs done.
  """

  params: Params
  opt_state: optax.OptState
  best_params: Params
  best_loss: Array
  epoch: Array


class Fit(NamedTuple):
  """Functions of fitting, jitted.

  Attributes:
    init: () -> FitState.
    epoch: FitState -> (FitState, mean training loss).
    predict: (params, Sessions) -> probabilities [S, K].
    keep_best: (FitState, validation loss) -> FitState.
  """

  init: Callable[[], FitState]
  epoch: Callable[[FitState], tuple[FitState, Array]]
  predict: Callable[[Params, Sessions], Array]
  keep_best: Callable[[FitState, Array], FitState]


class _Problem(NamedTuple):
  """What is fitted, to what, and how.

  Attributes:
    network: the flax module.
    optimizer: of its parameters.
    batch_size: slates per update.
    key: of initialisation, order and dropout.
    item_features: float32 [N + 1, D].
    train: the slates.
  """

  network: Any
  optimizer: optax.GradientTransformation
  batch_size: int
  key: PRNGKey
  item_features: Array
  train: Sessions

  @property
  def steps(self) -> int:
    """Updates in an epoch."""
    return len(self.train.exposed) // self.batch_size


def make_fit(
  config: SimulatorConfig, item_features: Array, train: Sessions
) -> Fit:
  """Prepares the fit of a click model by BCE on logits.

  Args:
    config: names the click model; of the sizes and of the fit.
    item_features: float32 [N + 1, D], row 0 for padding.
    train: the slates to fit to.
  """
  rows = len(train.exposed)
  batch_size = min(config.batch_size, rows)
  schedule = optax.cosine_decay_schedule(
    config.learning_rate, rows // batch_size * config.epochs
  )
  problem = _Problem(
    make_network(config),
    optax.adamw(schedule, weight_decay=config.weight_decay),
    batch_size,
    jax.random.key(config.seed),
    jnp.asarray(item_features),
    jax.tree.map(jnp.asarray, train),
  )
  return Fit(
    functools.partial(_init, problem),
    jax.jit(functools.partial(_epoch, problem)),
    jax.jit(functools.partial(_predict, problem)),
    jax.jit(_keep_best),
  )


def _logits(
  problem: _Problem, params: Params, row: Sessions, key: PRNGKey | None = None
) -> Array:
  """Logits of ONE logged slate, [K]; `key` of the dropout, None for none."""
  return problem.network.apply(
    params,
    problem.item_features,
    row.profile,
    row.history,
    row.exposed,
    deterministic=key is None,
    rngs=None if key is None else {"dropout": key},
  )


def _init(problem: _Problem) -> FitState:
  row = jax.tree.map(lambda x: x[0], problem.train)
  params = problem.network.init(
    jax.random.fold_in(problem.key, 0),
    problem.item_features,
    row.profile,
    row.history,
    row.exposed,
  )
  return FitState(
    params,
    problem.optimizer.init(params),
    jax.tree.map(jnp.copy, params),
    jnp.float32(jnp.inf),
    jnp.int32(0),
  )


def _epoch(problem: _Problem, state: FitState) -> tuple[FitState, Array]:
  """A pass over the training slates in an order by chance."""
  epoch_key = jax.random.fold_in(
    jax.random.fold_in(problem.key, 1), state.epoch
  )
  order_key, drop_key = jax.random.split(epoch_key)
  order = jax.random.permutation(order_key, len(problem.train.exposed))
  order = order[: problem.steps * problem.batch_size]

  def step(carry, batch):
    params, opt_state = carry
    value, grads = jax.value_and_grad(functools.partial(_loss, problem))(
      params, *batch
    )
    updates, opt_state = problem.optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value

  (params, opt_state), losses = jax.lax.scan(
    step,
    (state.params, state.opt_state),
    (
      order.reshape(problem.steps, -1),
      jax.random.split(drop_key, problem.steps),
    ),
  )
  state = state._replace(
    params=params, opt_state=opt_state, epoch=state.epoch + 1
  )
  return state, losses.mean()


def _loss(
  problem: _Problem, params: Params, indices: Array, key: PRNGKey
) -> Array:
  """Mean BCE of a batch of slates, float32 []."""
  batch = jax.tree.map(lambda x: x[indices], problem.train)
  keys = jax.random.split(key, problem.batch_size)
  logits = jax.vmap(functools.partial(_logits, problem), in_axes=(None, 0, 0))(
    params, batch, keys
  )
  return optax.sigmoid_binary_cross_entropy(logits, batch.response).mean()


def _predict(problem: _Problem, params: Params, sessions: Sessions) -> Array:
  logits = jax.vmap(functools.partial(_logits, problem), in_axes=(None, 0))
  return jax.nn.sigmoid(logits(params, sessions))


def _keep_best(state: FitState, loss: Array) -> FitState:
  better = loss < state.best_loss
  best = jax.tree.map(
    lambda new, old: jnp.where(better, new, old),
    state.params,
    state.best_params,
  )
  return state._replace(
    best_params=best, best_loss=jnp.minimum(loss, state.best_loss)
  )


def quality(
  probability: np.ndarray, response: np.ndarray, user_id: np.ndarray
) -> dict[str, float]:
  """Measures a click model by logged slates.

  Args:
    probability: float [S, K].
    response: [S, K], 0 or 1.
    user_id: [S].

  Returns:
    `log_loss`; `calibration_error`, the expected calibration error over ten
    bins of equal width; `auc`; `auc_within_users`, the mean over users with
    both responses. The last two only where there are both.
  """
  # Here, since it takes 100 MiB that training a policy has no use for.
  from sklearn import metrics as sk_metrics

  p = np.asarray(probability, np.float64).ravel()
  y = np.asarray(response).ravel()
  users = np.repeat(np.asarray(user_id), response.shape[1])
  within = [
    sk_metrics.roc_auc_score(y[rows], p[rows])
    for rows in (users == user for user in np.unique(users))
    if 0 < y[rows].mean() < 1
  ]
  bins = np.minimum((p * 10).astype(int), 9)
  count = np.bincount(bins, minlength=10)
  gap = np.abs(
    np.bincount(bins, weights=p, minlength=10)
    - np.bincount(bins, weights=y, minlength=10)
  )
  measured = {
    "log_loss": sk_metrics.log_loss(y, p, labels=[0, 1]),
    "calibration_error": gap.sum() / max(count.sum(), 1),
  }
  if 0 < y.mean() < 1:
    measured["auc"] = sk_metrics.roc_auc_score(y, p)
  if within:
    measured["auc_within_users"] = np.mean(within)
  return {name: float(value) for name, value in measured.items()}
