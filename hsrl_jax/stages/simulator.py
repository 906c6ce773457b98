"""Stage `simulator`: fits or loads the click model that users respond by."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import files
from hsrl_jax.config import SimulatorConfig
from hsrl_jax.data.source import Dataset
from hsrl_jax.engine import checkpoint
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import verdict
from hsrl_jax.host import metrics as metrics_lib
from hsrl_jax.host import stop, watch
from hsrl_jax.ops import tree
from hsrl_jax.sim import click_model
from hsrl_jax.sim.click_model import ResponseParams
from hsrl_jax.sim.response_file import ResponseFile
from hsrl_jax.types import Array, Sessions

FOLDER = "simulator"
GIVEN = "response.npz"  # The copy of a file with weights.
QUALITY_FORMAT = 2  # Of quality.json; format 1 had no verdict and no number.


def run(
  config: SimulatorConfig, workdir: pathlib.Path, dataset: Dataset
) -> dict[str, Any]:
  """Fits the click model.

  Writes `simulator/`: checkpoints, metrics, quality.json. Resumes after the
  last complete epoch.

  Returns:
    What quality.json holds, see `_judged`.

  Raises:
    FloatingPointError: a parameter became NaN or infinite.
  """
  folder = workdir / FOLDER
  val = dataset.splits["val"]
  fit = click_model.make_fit(
    config, dataset.items.features, dataset.splits["train"]
  )
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
        measured = click_model.quality(
          fit.predict(state.params, val), val.response, val.user_id
        )
        state = fit.keep_best(state, measured["log_loss"])
        writer.write(epoch, {"train_loss": float(loss), **measured})
        checkpoint.save(checkpointer, epoch, state)
        bar.update()
        bar.set_postfix(val_log_loss=f"{measured['log_loss']:.4f}")
        if signals.due():
          break
  quality = _judged(
    lambda sessions: fit.predict(state.best_params, sessions), dataset
  )
  files.write_json(folder / "quality.json", quality)
  return quality


def _judged(
  predict: Callable[[Sessions], Array], dataset: Dataset
) -> dict[str, Any]:
  """Measures of a click model on held-out slates, and the verdict on it.

  Args:
    predict: logged slates -> probabilities, [S, K].
    dataset: with its logs.

  Returns:
    `format`; `click_model.quality` on the validation split; and what
    `verdict.of_fit` says, where responses are logged.
  """
  splits = {"validation": dataset.splits["val"], "test": dataset.splits["test"]}
  predicted = {name: np.asarray(predict(x)) for name, x in splits.items()}
  val = splits["validation"]
  known = verdict.baselines(
    dataset.splits["train"], len(dataset.items.features) - 1
  )
  return {
    "format": QUALITY_FORMAT,
    **click_model.quality(predicted["validation"], val.response, val.user_id),
    **verdict.of_fit(predicted, splits, known),
  }


def load(
  config: SimulatorConfig, workdir: pathlib.Path, dataset: Dataset
) -> ResponseParams:
  """The click model that `run` fitted.

  Raises:
    InputError: no checkpoint can be read.
  """
  fit = click_model.make_fit(
    config, dataset.items.features, dataset.splits["train"]
  )
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
    InputError: the heads do not divide F, or another click model is asked for.
  """
  if config.click_model != click_model.OF_FILES:
    raise InputError(
      f"--simulator_click_model is {config.click_model!r}; expected "
      f"{click_model.OF_FILES!r}, whose weights {given.name} holds"
    )
  try:
    return dataclasses.replace(
      config, features=given.features, hidden=given.hidden
    )
  except ValueError as error:
    raise InputError(f"{given.name}: --simulator_{error}") from error


def of_file(
  config: SimulatorConfig, given: ResponseFile, dataset: Dataset
) -> ResponseParams:
  """The click model whose weights a file gives.

  Args:
    config: `sized` by the file.
    given: the file.
    dataset: its users and items.

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

  Args:
    config: `sized` by the file.
    workdir: of the run.
    dataset: the users and items.
    given: the file.
    path: where it lies.

  Returns:
    The rest of quality.json, see `_judged`; empty where no slates are logged.

  Raises:
    InputError: see `of_file`.
  """
  params = of_file(config, given, dataset)
  quality = {}
  if dataset.splits["val"].exposed.shape[1]:
    respond = jax.jit(
      jax.vmap(click_model.response_fn(config), in_axes=(None, 0, 0, 0))
    )
    quality = _judged(
      lambda x: respond(params, x.profile, x.history, x.exposed), dataset
    )
  folder = workdir / FOLDER
  files.write_atomic(folder / GIVEN, path.read_bytes())
  source = {"file": given.name, "sha256": given.digest}
  files.write_json(folder / "quality.json", {"source": source, **quality})
  return quality
