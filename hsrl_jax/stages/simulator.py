"""Stage `simulator`: fits or loads a user response model; the simulator."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hsrl_jax import files
from hsrl_jax.config import SimulatorConfig
from hsrl_jax.data.source import Dataset
from hsrl_jax.engine import checkpoint
from hsrl_jax.errors import InputError
from hsrl_jax.host import metrics as metrics_lib
from hsrl_jax.host import stop, watch
from hsrl_jax.networks.user_response import UserResponseModel
from hsrl_jax.ops import tree
from hsrl_jax.sim.response_file import ResponseFile
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.types import Array, Params, Sessions

FOLDER = "simulator"
GIVEN = "response.npz"  # The copy of a file with weights.


class ResponseParams(NamedTuple):
  """What the URM needs to answer.

  Attributes:
    network: of UserResponseModel.
    item_features: float32 [N + 1, D].
  """

  network: Params
  item_features: Array


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


def make_network(config: SimulatorConfig) -> UserResponseModel:
  """The URM with the sizes of `config`."""
  return UserResponseModel(
    config.features,
    config.hidden,
    config.heads,
    config.final_dense,
    config.dropout,
  )


def response_probabilities(
  network: UserResponseModel,
  params: ResponseParams,
  profile: Array,
  history: Array,
  slate: Array,
) -> Array:
  """A ResponseFn, once `network` is bound."""
  logits = network.apply(
    params.network, params.item_features, profile, history, slate
  )
  return jax.nn.sigmoid(logits)


def make_env(config: SimulatorConfig, slate_size: int) -> UserSimulator:
  """The simulator on the URM of `config`."""
  return UserSimulator(
    response_fn=functools.partial(response_probabilities, make_network(config)),
    slate_size=slate_size,
    no_repeat=config.protocol == "no_repeat",
    patience=config.patience,
    max_steps=config.max_steps,
    penalty=config.penalty,
    sweet_point=config.sweet_point,
  )


def pool(params: ResponseParams, sessions: Sessions) -> EnvParams:
  """EnvParams whose users are those of `sessions`."""
  return EnvParams(
    params, jnp.asarray(sessions.profile), jnp.asarray(sessions.history)
  )


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


def make_fit(
  config: SimulatorConfig, item_features: Array, train: Sessions
) -> Fit:
  """Prepares the fit of the URM by BCE on logits."""
  network = make_network(config)
  item_features = jnp.asarray(item_features)
  train = jax.tree.map(jnp.asarray, train)
  rows = train.exposed.shape[0]
  batch_size = min(config.batch_size, rows)
  steps = rows // batch_size
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(config.learning_rate, steps * config.epochs),
    weight_decay=config.weight_decay,
  )
  key = jax.random.key(config.seed)

  def logits(params, row: Sessions, key=None):
    return network.apply(
      params,
      item_features,
      row.profile,
      row.history,
      row.exposed,
      deterministic=key is None,
      rngs=None if key is None else {"dropout": key},
    )

  def init() -> FitState:
    row = jax.tree.map(lambda x: x[0], train)
    params = network.init(
      jax.random.fold_in(key, 0),
      item_features,
      row.profile,
      row.history,
      row.exposed,
    )
    return FitState(
      params,
      optimizer.init(params),
      jax.tree.map(jnp.copy, params),
      jnp.float32(jnp.inf),
      jnp.int32(0),
    )

  @jax.jit
  def epoch(state: FitState) -> tuple[FitState, Array]:
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, 1), state.epoch)
    order_key, drop_key = jax.random.split(epoch_key)
    order = jax.random.permutation(order_key, rows)[: steps * batch_size]

    def step(carry, batch):
      params, opt_state = carry
      indices, step_key = batch

      def loss(params):
        batch = jax.tree.map(lambda x: x[indices], train)
        keys = jax.random.split(step_key, batch_size)
        predicted = jax.vmap(logits, in_axes=(None, 0, 0))(params, batch, keys)
        return optax.sigmoid_binary_cross_entropy(
          predicted, batch.response
        ).mean()

      value, grads = jax.value_and_grad(loss)(params)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), value

    (params, opt_state), losses = jax.lax.scan(
      step,
      (state.params, state.opt_state),
      (order.reshape(steps, -1), jax.random.split(drop_key, steps)),
    )
    state = state._replace(
      params=params, opt_state=opt_state, epoch=state.epoch + 1
    )
    return state, losses.mean()

  @jax.jit
  def predict(params: Params, sessions: Sessions) -> Array:
    return jax.nn.sigmoid(jax.vmap(logits, in_axes=(None, 0))(params, sessions))

  @jax.jit
  def keep_best(state: FitState, loss: Array) -> FitState:
    better = loss < state.best_loss
    best = jax.tree.map(
      lambda new, old: jnp.where(better, new, old),
      state.params,
      state.best_params,
    )
    return state._replace(
      best_params=best, best_loss=jnp.minimum(loss, state.best_loss)
    )

  return Fit(init, epoch, predict, keep_best)


def quality(
  probability: np.ndarray, response: np.ndarray, user_id: np.ndarray
) -> dict[str, float]:
  """How good a click model is.

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


def run(
  config: SimulatorConfig, workdir: pathlib.Path, dataset: Dataset
) -> dict[str, float]:
  """Fits the URM; writes `simulator/`: checkpoints, metrics, quality.json.

  Resumes after the last complete epoch.

  Returns:
    Its `quality` on the validation split.

  Raises:
    FloatingPointError: a parameter became NaN or infinite.
  """
  folder = workdir / FOLDER
  val = dataset.splits["val"]
  fit = make_fit(config, dataset.items.features, dataset.splits["train"])
  state = fit.init()
  with (
    stop.deferred() as signals,
    checkpoint.open_directory(folder / "checkpoints") as checkpointer,
  ):
    state = checkpoint.restore_latest(checkpointer, state) or state
    done = int(state.epoch)
    with (
      metrics_lib.MetricsWriter(folder, done, axis="epoch") as writer,
      watch.bar(config.epochs, "simulator", "epoch", done) as bar,
    ):
      for epoch in range(done + 1, config.epochs + 1):
        state, loss = fit.epoch(state)
        bad = tree.first_not_finite(state._replace(best_loss=0.0))
        if bad:
          raise FloatingPointError(
            f"the click model's {bad} is not finite by epoch {epoch}: lower "
            "--simulator_learning_rate"
          )
        measured = quality(
          fit.predict(state.params, val), val.response, val.user_id
        )
        state = fit.keep_best(state, measured["log_loss"])
        writer.write(epoch, {"train_loss": float(loss), **measured})
        checkpoint.save(checkpointer, epoch, state)
        bar.update()
        bar.set_postfix(val_log_loss=f"{measured['log_loss']:.4f}")
        if signals.due():
          break
  measured = quality(
    fit.predict(state.best_params, val), val.response, val.user_id
  )
  files.write_json(folder / "quality.json", measured)
  return measured


def load(
  config: SimulatorConfig, workdir: pathlib.Path, dataset: Dataset
) -> ResponseParams:
  """The URM that `run` fitted.

  Raises:
    InputError: no checkpoint can be read.
  """
  fit = make_fit(config, dataset.items.features, dataset.splits["train"])
  folder = workdir / FOLDER / "checkpoints"
  with checkpoint.open_directory(folder, read_only=True) as checkpointer:
    state = checkpoint.restore_latest(checkpointer, jax.eval_shape(fit.init))
  if state is None:
    raise InputError(
      f"{folder}: no checkpoint can be read; delete {workdir}/.done/simulator "
      "and run --mode=simulator again"
    )
  return ResponseParams(state.best_params, jnp.asarray(dataset.items.features))


def sized(config: SimulatorConfig, given: ResponseFile) -> SimulatorConfig:
  """`config` with the sizes of the network in a file.

  Raises:
    InputError: the heads do not divide F.
  """
  try:
    return dataclasses.replace(
      config, features=given.features, hidden=given.hidden
    )
  except ValueError as error:
    raise InputError(f"{given.name}: --simulator_{error}") from error


def of_file(
  config: SimulatorConfig, given: ResponseFile, dataset: Dataset
) -> ResponseParams:
  """The URM whose weights a file gives.

  Args:
    config: `sized` by the file.
    given: the file.
    dataset: the users and items to be answered for.

  Raises:
    InputError: their profiles or features have another width.
  """
  train, features = dataset.splits["train"], dataset.items.features
  for what, found, expected in (
    ("profiles", given.profile_width, train.profile.shape[1]),
    ("item features", given.feature_width, features.shape[1]),
  ):
    if found != expected:
      raise InputError(
        f"{given.name} takes {what} of {found} numbers; expected {expected}, "
        "as the dataset has: choose the dataset that it was fitted to, or let "
        "the file bring its own users and items"
      )
  like = jax.eval_shape(
    make_network(config).init,
    jax.random.key(0),
    features,
    *(x[0] for x in (train.profile, train.history, train.history)),
  )

  def fill(path, leaf):
    name = ".".join(key.key for key in path[1:])  # Below "params".
    return jnp.asarray(given.weights[name]).reshape(leaf.shape)

  network = jax.tree_util.tree_map_with_path(fill, like)
  return ResponseParams(network, jnp.asarray(features))


def adopt(
  config: SimulatorConfig,
  workdir: pathlib.Path,
  dataset: Dataset,
  given: ResponseFile,
  path: pathlib.Path,
) -> dict[str, float]:
  """Takes the URM of a file in place of `run`.

  Writes `simulator/`: a copy of the file, and quality.json, which names it.

  Args:
    config: `sized` by the file.
    workdir: of the run.
    dataset: the users and items.
    given: the file.
    path: where it lies.

  Returns:
    Its `quality` on the validation split; empty where no slates are logged.

  Raises:
    InputError: see `of_file`.
  """
  params = of_file(config, given, dataset)
  val, measured = dataset.splits["val"], {}
  if val.exposed.shape[1]:
    predict = functools.partial(response_probabilities, make_network(config))
    probability = jax.jit(jax.vmap(predict, in_axes=(None, 0, 0, 0)))(
      params, val.profile, val.history, val.exposed
    )
    measured = quality(probability, val.response, val.user_id)
  folder = workdir / FOLDER
  files.write_atomic(folder / GIVEN, path.read_bytes())
  source = {"file": given.name, "sha256": given.digest}
  files.write_json(folder / "quality.json", {"source": source, **measured})
  return measured
