"""Boredom that is fitted to the sessions of the logs; of stage `simulator`."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from hsrl_jax import files
from hsrl_jax.data import transitions
from hsrl_jax.data.source import Dataset
from hsrl_jax.errors import InputError, reading
from hsrl_jax.host import watch
from hsrl_jax.ops import tree
from hsrl_jax.sim import boredom_fit as fitting
from hsrl_jax.sim import topics as topics_lib
from hsrl_jax.sim.fitted_boredom import FittedBoredom
from hsrl_jax.types import Params, Sessions

FILE = "simulator/boredom.npz"
_FORMAT = 1
_EPOCHS = 6  # At least; as many as _UPDATES take where logs are few.
_UPDATES = 600
_LEAST = 1e-6  # Of a probability, so that its logit is finite.
_ASKED = "--simulator_boredom=fitted"


def check(dataset: Dataset) -> None:
  """Raises InputError where the logs of a dataset say nothing of boredom."""
  if dataset.items.feedback.per_positive:
    raise InputError(
      f"{_ASKED}, but negatives were drawn, which nobody was shown; expected "
      "logs of what was shown, or another --simulator_boredom"
    )
  if not topics_lib.of_categories(dataset.items.genres).names:
    raise InputError(
      f"{_ASKED}, but no item has a category; expected items with `genres`, or "
      "another --simulator_boredom"
    )
  if not transitions.order(dataset.splits["train"]).place.any():
    raise InputError(
      f"{_ASKED}, but each session of the logs has one slate; expected "
      "sessions of more: a column session_id, or timestamps at most "
      f"{transitions.SESSION_GAP:g} s apart"
    )


def fit(
  workdir: pathlib.Path, dataset: Dataset, probability: dict[str, np.ndarray]
) -> Params:
  """Fits to the training split, chooses the epoch by the validation split.

  Writes simulator/boredom.npz. The probabilities of `train` and `val`, float
  [S, K], are those of the click model.
  """
  slates = {
    name: _slates(dataset, dataset.splits[name], p)[0]
    for name, p in probability.items()
  }
  updates = fitting.updates(slates["train"])
  epochs = max(_EPOCHS, -(-_UPDATES // updates))
  with watch.bar(epochs, "boredom", "epoch") as bar:

    def tell(epoch: int, loss: float) -> None:
      del epoch
      bar.update()
      bar.set_postfix(val_log_loss=f"{loss:.4f}")

    fitted = fitting.fit(
      _dynamics(dataset),
      slates["train"],
      slates["val"],
      epochs=epochs,
      tell=tell,
    )
  files.write_npz(workdir / FILE, _FORMAT, **tree.by_name(fitted))
  return fitted


def unfitted(dataset: Dataset) -> Params:
  """Parameters before a fit."""
  return _dynamics(dataset).init(jax.random.key(0))


def load(workdir: pathlib.Path, dataset: Dataset, again: str) -> Params:
  """Reads the output of `fit`; `again` says what to do where that fails.

  Raises:
    InputError: it cannot be read.
  """
  like = jax.eval_shape(functools.partial(unfitted, dataset))
  with reading(workdir / FILE, f"the fitted boredom: {again}"):
    arrays = files.read_npz(workdir / FILE, _FORMAT)
    return jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.asarray(
        arrays[jax.tree_util.keystr(path)], x.dtype
      ).reshape(x.shape),
      like,
    )


def predicted(
  fitted: Params, dataset: Dataset, logs: Sessions, probability: np.ndarray
) -> np.ndarray:
  """Probabilities of likes after what the sessions had shown, [S, K] -> [S, K].

  Those that are given are the click model's.
  """
  slates, rows = _slates(dataset, logs, probability)
  logits = fitting.predicted(_dynamics(dataset), fitted, slates)
  changed = np.empty(probability.shape)
  changed[rows] = scipy.special.expit(np.asarray(logits, np.float64))
  return changed


def _dynamics(dataset: Dataset) -> FittedBoredom:
  topics = topics_lib.of_categories(dataset.items.genres)
  return FittedBoredom(len(topics.names))


def _slates(
  dataset: Dataset, logs: Sessions, probability: np.ndarray
) -> tuple[fitting.Slates, np.ndarray]:
  """Slates in the order of sessions and steps, and their rows in the logs."""
  topics = topics_lib.of_categories(dataset.items.genres)
  rows, _, place = transitions.order(logs)
  p = np.clip(probability.astype(np.float64), _LEAST, 1 - _LEAST)
  slates = fitting.Slates(
    topics=topics.of_items[logs.exposed[rows]].astype(np.int32),
    logits=scipy.special.logit(p)[rows].astype(np.float32),
    response=logs.response[rows].astype(np.float32),
    place=place.astype(np.int32),
  )
  return slates, rows
