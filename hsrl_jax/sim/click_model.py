"""Click models: what makes users respond, and their fit.

A click model is a flax module in `networks/` and a line in `CLICK_MODELS`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.errors import InputError
from hsrl_jax.networks.user_response import UserResponseModel
from hsrl_jax.ops import compilation
from hsrl_jax.sim import blend as blend_lib
from hsrl_jax.types import Array, Observation, Params, PRNGKey, Sessions

# (response params, profile [P], history [H], slate [K]) -> probabilities [K].
# Where a user's bias is known (see blend.py), it is a fifth argument.
ResponseFn = Callable[..., Array]


def _attention(
  config: SimulatorConfig,
  id_dropout: float | None = None,
  double_sigmoid: bool = False,
) -> UserResponseModel:
  return UserResponseModel(
    config.features,
    config.hidden,
    config.heads,
    config.final_dense,
    config.dropout,
    id_dropout,
    double_sigmoid,
  )


# Name to what builds the flax module, from a SimulatorConfig. The module is
# called as UserResponseModel is, and returns logits, [K].
CLICK_MODELS = {
  "attention": _attention,
  "blended": functools.partial(_attention, id_dropout=0.5),
  "double_sigmoid": functools.partial(_attention, double_sigmoid=True),
}
OF_FILES = "attention"  # Whose weights a `response_file` holds.
BLENDED = ("blended",)  # Whose logits are blended, see blend.py.


class ResponseParams(NamedTuple):
  """Parameters of a click model."""

  network: Params  # Parameters of the flax module.
  item_features: Array  # float32 [N + 1, D], row 0 for padding.
  # Statistics of the logs and their weights; None: the network alone.
  blend: blend_lib.Blend | None = None
  # float32 [], added to each logit, which brings probabilities that were fitted
  # to drawn negatives to a known base rate; None: nothing is added.
  shift: Array | None = None
  # Parameters of FittedBoredom; None where it is a rule, or none.
  boredom: Params | None = None


def make_network(config: SimulatorConfig):
  """The flax module of the click model that `config` names.

  Raises:
    InputError: no click model has that name.
  """
  name = config.click_model or OF_FILES
  if name not in CLICK_MODELS:
    raise InputError(
      f"--simulator_click_model is {name!r}; expected one of "
      f"{', '.join(CLICK_MODELS)}"
    )
  return CLICK_MODELS[name](config)


def with_items(params: ResponseParams, features: Array) -> ResponseParams:
  """The same for a catalogue [C + 1, D]; what came later has no statistics."""
  blend = params.blend
  if blend is not None:
    missing = max(len(features) - len(blend.items), 0)
    blend = blend._replace(items=jnp.pad(blend.items, (0, missing)))
  return params._replace(item_features=features, blend=blend)


def init(
  config: SimulatorConfig,
  key: PRNGKey,
  item_features: Array,
  observation: Observation,
) -> ResponseParams:
  """Parameters before any fit, of the shapes that a fit leaves.

  But for what only some logs lead to: users with a bias, and a shift.
  """
  history = observation.history
  params = make_network(config).init(
    key, item_features, observation.profile, history, history
  )
  blend = None
  if config.click_model in BLENDED:
    blend = blend_lib.unfitted(item_features)
  return ResponseParams(params, item_features, blend)


def response_fn(config: SimulatorConfig) -> ResponseFn:
  """How users respond by `config`; its params are ResponseParams."""
  return functools.partial(_probabilities, make_network(config))


def _probabilities(
  network,
  params: ResponseParams,
  profile: Array,
  history: Array,
  slate: Array,
  user: Array | float = 0.0,
) -> Array:
  features = params.item_features
  logits = network.apply(params.network, features, profile, history, slate)
  if params.blend is not None:
    logits = blend_lib.logits(
      params.blend, logits, features, history, slate, user
    )
  if params.shift is not None:
    logits = logits + params.shift
  return jax.nn.sigmoid(logits)


class FitState(NamedTuple):
  """The whole state of fitting."""

  params: Params  # Of the network.
  opt_state: optax.OptState  # Of the optimizer.
  best_params: Params  # Those of the least validation log loss so far.
  best_loss: Array  # float32 [], that loss.
  epoch: Array  # int32 [], epochs done.


class Fit(NamedTuple):
  """Functions of fitting, jitted."""

  init: Callable[[], FitState]  # () -> FitState.
  shapes: Callable[[], FitState]  # () -> the same, as jax.ShapeDtypeStruct.
  # FitState -> (FitState, mean training loss).
  epoch: Callable[[FitState], tuple[FitState, Array]]
  # (params, Sessions) -> probabilities [S, K].
  predict: Callable[[Params, Sessions], Array]
  # (FitState, validation loss) -> FitState.
  keep_best: Callable[[FitState, Array], FitState]


class _Problem(NamedTuple):
  """A network, the data that it is fitted to, and how."""

  network: Any  # The flax module.
  optimizer: optax.GradientTransformation  # Of its parameters.
  batch_size: int  # Slates per update.
  key: PRNGKey  # Of initialisation, order and dropout.
  item_features: Array  # float32 [N + 1, D].
  train: Sessions  # The slates.
  # float32 [N + 1], what the logit of an item owes to the drawing of negatives;
  # None for nothing.
  offset: Array | None

  @property
  def steps(self) -> int:
    """Updates in an epoch."""
    return len(self.train.exposed) // self.batch_size


def make_fit(
  config: SimulatorConfig,
  item_features: Array,
  train: Sessions,
  offset: Array | None = None,
) -> Fit:
  """Prepares the fit of a click model by BCE on logits.

  Args:
    config: names the click model; of the sizes and of the fit.
    item_features: float32 [N + 1, D], row 0 for padding.
    train: the slates to fit to.
    offset: float32 [N + 1], what the logit of an item owes to the drawing of
      negatives (`feedback.log_q_offset`): added in the loss and in `predict`,
      whose slates were drawn alike; None for nothing.
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
    jax.random.key(0),
    jnp.asarray(item_features),
    jax.tree.map(jnp.asarray, train),
    None if offset is None else jnp.asarray(offset, jnp.float32),
  )
  arrays = {
    name: getattr(problem, name)
    for name in ("key", "item_features", "train", "offset")
  }

  def compiled(function, jit=jax.jit):
    """Compiled with the data as arguments, of which a program knows shapes."""

    def run(arrays, *args):
      return function(problem._replace(**arrays), *args)

    return functools.partial(jit(run), arrays)

  return Fit(
    compiled(_init, compilation.once),
    functools.partial(jax.eval_shape, compiled(_init)),
    compiled(_epoch, compilation.often),
    compiled(_predict),
    jax.jit(_keep_best),
  )


def _logits(
  problem: _Problem, params: Params, row: Sessions, key: PRNGKey | None = None
) -> Array:
  """Logits of ONE logged slate, [K]; `key` of the dropout, None for none."""
  logits = problem.network.apply(
    params,
    problem.item_features,
    row.profile,
    row.history,
    row.exposed,
    deterministic=key is None,
    rngs=None if key is None else {"dropout": key},
  )
  return (
    logits if problem.offset is None else (logits + problem.offset[row.exposed])
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
