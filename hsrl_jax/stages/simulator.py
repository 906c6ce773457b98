"""Stage `simulator`: fits or loads the click model that users respond by."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from hsrl_jax import files
from hsrl_jax.config import Config, SimulatorConfig
from hsrl_jax.data import feedback
from hsrl_jax.data.source import Dataset
from hsrl_jax.engine import checkpoint
from hsrl_jax.errors import InputError, reading
from hsrl_jax.evaluation import verdict
from hsrl_jax.host import metrics as metrics_lib
from hsrl_jax.host import stop, watch
from hsrl_jax.ops import tree
from hsrl_jax.session_config import FITTED_TO_LOGS
from hsrl_jax.sim import blend as blend_lib
from hsrl_jax.sim import click_model
from hsrl_jax.sim.click_model import ResponseParams
from hsrl_jax.sim.response_file import ResponseFile
from hsrl_jax.stages import boredom
from hsrl_jax.types import Params, Sessions

FOLDER = "simulator"
GIVEN = "response.npz"  # The copy of a file with weights.
QUALITY_FORMAT = 2  # Of quality.json.
_SAVE_AFTER = 10.0  # Seconds; the state is saved after the epoch then.
_LEAST = 1e-7  # Of a probability, so that its logit is finite.
_TOGETHER = 4_096  # Slates that the click model is asked about at once.


def chosen(config: Config) -> SimulatorConfig:
  """`config.simulator` with a click model, where none is named.

  One's own logs get `blended`. What was published is compared by `attention`,
  which for RL4RS has no final Dense.
  """
  simulator = config.simulator
  if config.data.dataset == "rl4rs":
    simulator = dataclasses.replace(simulator, final_dense=False)
  if simulator.click_model is not None:
    return simulator
  own = config.data.dataset == "logs" and config.data.response_params is None
  name = "blended" if own else click_model.OF_FILES
  return dataclasses.replace(simulator, click_model=name)


def run(
  config: SimulatorConfig, workdir: pathlib.Path, dataset: Dataset
) -> dict[str, Any]:
  """Fits the click model.

  Writes `simulator/`: checkpoints, metrics, quality.json. Resumes after the
  last epoch that was saved.

  Returns:
    What quality.json holds, see `_judged`.

  Raises:
    FloatingPointError: a parameter became NaN or infinite.
    InputError: the logs say nothing of boredom, which is to be fitted to them.
  """
  folder = workdir / FOLDER
  if config.boredom == FITTED_TO_LOGS:
    boredom.check(dataset)
  val = dataset.splits["val"]
  users = np.asarray(val.user_id)
  fit = _make_fit(config, dataset)
  state = fit.init()
  with (
    stop.deferred() as signals,
    checkpoint.open_directory(folder / "checkpoints") as checkpointer,
  ):
    state = checkpoint.restore_latest(checkpointer, state) or state
    done, saved = int(state.epoch), time.monotonic()
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
        predicted = np.asarray(fit.predict(state.params, val))
        measured = _scalars(verdict.measure(predicted, val.response, users))
        state = fit.keep_best(state, measured["log_loss"])
        writer.write(epoch, {"train_loss": float(loss), **measured})
        last = epoch == config.epochs or signals.due()
        if last or time.monotonic() - saved > _SAVE_AFTER:
          checkpoint.save(checkpointer, epoch, state)
          saved = time.monotonic()
        bar.update()
        bar.set_postfix(val_log_loss=f"{measured['log_loss']:.4f}")
        if last:
          break
  blend = _blended(config, dataset, fit, state.best_params)
  params = _params(dataset, state.best_params, blend)
  if config.boredom == FITTED_TO_LOGS:
    splits = {name: dataset.splits[name] for name in ("train", "val")}
    predict = _predictor(config, params, dataset)
    known = {name: predict(logs) for name, logs in splits.items()}
    fitted = boredom.fit(workdir, dataset, known)
    params = params._replace(boredom=fitted)
  quality = _judged(config, params, dataset)
  if blend is not None:
    names = blend_lib.TERMS, np.asarray(blend.weights).tolist()
    quality["blend"] = dict(zip(*names, strict=True))
  files.write_json(folder / "quality.json", quality)
  return quality


def _make_fit(config: SimulatorConfig, dataset: Dataset) -> click_model.Fit:
  return click_model.make_fit(
    config, dataset.items.features, dataset.splits["train"], _offset(dataset)
  )


def _offset(dataset: Dataset) -> np.ndarray | None:
  """Offsets of logits for drawn negatives, [N + 1]; None: zeros."""
  items = dataset.items
  if items.feedback.negatives != feedback.POPULARITY:
    return None  # Uniform negatives owe nothing.
  return feedback.log_q_offset(items.sampling)


def _logit(probability: np.ndarray) -> np.ndarray:
  """Finite logits of probabilities, float64."""
  p = np.clip(np.asarray(probability, np.float64), _LEAST, 1 - _LEAST)
  return scipy.special.logit(p)


def _scalars(measured: dict[str, Any]) -> dict[str, float]:
  return {k: v for k, v in measured.items() if isinstance(v, float)}


def _blended(
  config: SimulatorConfig,
  dataset: Dataset,
  fit: click_model.Fit,
  network: Params,
) -> blend_lib.Blend | None:
  """The blend of a fitted network; None where the click model has none."""
  if config.click_model not in click_model.BLENDED:
    return None
  val, offset = dataset.splits["val"], _offset(dataset)
  blend, positions = blend_lib.of_logs(
    dataset.splits["train"], dataset.items.features, offset
  )
  drawn = np.zeros(val.exposed.shape) if offset is None else offset[val.exposed]
  logits = _logit(fit.predict(network, val)) - drawn
  known = drawn
  if positions is not None and val.position is not None:
    known = known + positions(val.position)
  return blend_lib.fit(blend, logits, dataset.items.features, val, known)


def _params(
  dataset: Dataset, network: Params, blend: blend_lib.Blend | None
) -> ResponseParams:
  """Parameters by which the simulator answers."""
  about, shift = dataset.items.feedback, None
  if about.per_positive and about.base_rate is not None:
    shift = jnp.float32(feedback.shift(about.per_positive, about.base_rate))
  features = jnp.asarray(dataset.items.features)
  return ResponseParams(network, features, blend, shift)


def _judged(
  config: SimulatorConfig, params: ResponseParams, dataset: Dataset
) -> dict[str, Any]:
  """Measures of a click model on held-out slates, and the verdict on it.

  Where negatives were drawn, the slates are not what would have been shown: the
  model is asked as it was fitted, with what its logits owe to the drawing and
  without the base rate.
  """
  predict = _predictor(config, params, dataset)
  splits = {"validation": dataset.splits["val"], "test": dataset.splits["test"]}
  known = verdict.baselines(
    dataset.splits["train"], len(dataset.items.features) - 1
  )
  judged = verdict.of_fit(
    {name: predict(logs) for name, logs in splits.items()},
    splits,
    known,
    dataset.items.feedback,
  )
  return {"format": QUALITY_FORMAT, **_scalars(judged["validation"]), **judged}


def _predictor(
  config: SimulatorConfig, params: ResponseParams, dataset: Dataset
) -> Callable[[Sessions], np.ndarray]:
  """Logged slates to probabilities of likes, [S, K].

  Negatives that were drawn are expected as drawn, and without a base rate.
  """
  params = params._replace(shift=None)
  respond = click_model.response_fn(config)

  @jax.jit
  def of_slates(params, *slates):
    # Some at a time: each has its history's activations.
    return jax.lax.map(
      lambda slate: respond(params, *slate), slates, batch_size=_TOGETHER
    )

  offset = _offset(dataset)

  def predict(logs: Sessions) -> np.ndarray:
    users = np.zeros(len(logs.user_id), np.float32)
    if params.blend is not None:
      users = np.float32(params.blend.of_users(logs.user_id))
    p = of_slates(params, logs.profile, logs.history, logs.exposed, users)
    p = np.asarray(p)
    if params.boredom is not None:
      p = boredom.predicted(params.boredom, dataset, logs, p)
    if offset is None:
      return p
    return scipy.special.expit(_logit(p) + offset[logs.exposed])

  return predict


def load(
  config: SimulatorConfig, workdir: pathlib.Path, dataset: Dataset
) -> ResponseParams:
  """The click model that `run` fitted.

  Raises:
    InputError: no checkpoint can be read, quality.json has no weights of the
      blend, or the fitted boredom cannot be read.
  """
  folder = workdir / FOLDER / "checkpoints"
  again = f"delete {workdir}/.done/simulator and run --mode=simulator again"
  with checkpoint.open_directory(folder, read_only=True) as checkpointer:
    like = _make_fit(config, dataset).shapes()
    state = checkpoint.restore_latest(checkpointer, like)
  if state is None:
    raise InputError(f"{folder}: no checkpoint can be read; {again}")
  params = _params(dataset, state.best_params, None)
  if config.boredom == FITTED_TO_LOGS:
    fitted = boredom.load(workdir, dataset, again)
    params = params._replace(boredom=fitted)
  if config.click_model not in click_model.BLENDED:
    return params
  path = workdir / FOLDER / "quality.json"
  with reading(path, f"the weights of the blend: {again}"):
    weights = json.loads(path.read_text())["blend"]
    weights = jnp.float32([weights[name] for name in blend_lib.TERMS])
  blend, _ = blend_lib.of_logs(
    dataset.splits["train"], dataset.items.features, _offset(dataset)
  )
  return params._replace(blend=blend._replace(weights=weights))


def made_up(workdir: pathlib.Path) -> dict[str, Any]:
  """Takes users whose responses are known in place of `run`.

  Writes `simulator/quality.json`, which says so; what it measures: nothing.
  """
  source = {"known": True}
  files.write_json(workdir / FOLDER / "quality.json", {"source": source})
  return {}


def sized(config: SimulatorConfig, given: ResponseFile) -> SimulatorConfig:
  """`config` with the sizes of the network in a file.

  Raises:
    InputError: the heads do not divide F, or another click model is asked for.
  """
  if (config.click_model or click_model.OF_FILES) != click_model.OF_FILES:
    raise InputError(
      f"--simulator_click_model is {config.click_model!r}; expected "
      f"{click_model.OF_FILES!r}, whose weights {given.name} holds"
    )
  try:
    return dataclasses.replace(
      config,
      features=given.features,
      hidden=given.hidden,
      final_dense=given.final_dense,
    )
  except ValueError as error:
    raise InputError(f"{given.name}: --simulator_{error}") from error


def of_file(
  config: SimulatorConfig, given: ResponseFile, dataset: Dataset
) -> ResponseParams:
  """The click model whose weights a file gives.

  Raises:
    InputError: the dataset's profiles or features have another width.
  """
  train, features = dataset.splits["train"], dataset.items.features
  for what, width, expected in (
    ("profiles", given.profile_width, train.profile.shape[1]),
    ("item features", given.feature_width, features.shape[1]),
  ):
    if width != expected:
      raise InputError(
        f"{given.name} takes {what} of {width} numbers; expected {expected}, "
        "as the dataset has: choose the dataset that it was fitted to, or let "
        "the file bring its own users and items"
      )
  like = jax.eval_shape(
    click_model.make_network(config).init,
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
) -> dict[str, Any]:
  """Takes the click model of a file in place of `run`.

  Writes `simulator/`: a copy of the file, and quality.json, which names it.

  Returns:
    The rest of quality.json, see `_judged`; empty where no slates are logged.
  """
  params = of_file(config, given, dataset)
  quality = {}
  if dataset.splits["val"].exposed.shape[1]:
    quality = _judged(config, params, dataset)
  folder = workdir / FOLDER
  files.write_atomic(folder / GIVEN, path.read_bytes())
  source = {"file": given.name, "sha256": given.digest}
  files.write_json(folder / "quality.json", {"source": source, **quality})
  return quality
