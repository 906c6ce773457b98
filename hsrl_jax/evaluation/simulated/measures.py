"""Measures of simulated sessions, in results.json and sessions.npz.

A new measure is an entry of MEASURES, and nothing else.
"""

import io
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hsrl_jax import files
from hsrl_jax.evaluation import statistics
from hsrl_jax.evaluation.simulated import bounds
from hsrl_jax.evaluation.simulated.simulate import Sessions
from hsrl_jax.sid import SidIndex

RESULTS_FORMAT = 2  # Of a run's results.json; 1 had no held-out measures.
SESSIONS_FORMAT = 1  # Of sessions.npz.


class Measure(NamedTuple):
  """A number for each session.

  Attributes:
    of: sessions -> [E].
    label: in tables for people; None: it is not summarised in results.json.
    form: how tables show its mean.
    saved: whether sessions.npz has it.
  """

  of: Callable[[Sessions], np.ndarray]
  label: str | None = None
  form: str = "{:.2f}"
  saved: bool = True


def _liked_slates(sessions: Sessions) -> np.ndarray:
  liked = (np.asarray(sessions.responses) > 0).any(-1)
  return liked.sum(-1, dtype=np.float32)


def _positive_share(sessions: Sessions) -> np.ndarray:
  shown = sessions.depth * sessions.slates.shape[-1]
  return np.asarray(sessions.positives / shown)


MEASURES = {
  "total_reward": Measure(lambda x: np.asarray(x.total_reward), "Total reward"),
  "depth": Measure(lambda x: np.asarray(x.depth), "Depth"),
  "positives": Measure(lambda x: np.asarray(x.positives)),
  "liked_slates": Measure(_liked_slates),  # With a positive response.
  "positive_share": Measure(
    _positive_share, "Positive responses", "{:.1%}", saved=False
  ),
}


def report(
  policies: dict[str, list[Sessions]], user: np.ndarray | None = None
) -> dict:
  """The `policies` of results.json.

  Args:
    policies: name to the sessions of each seed; with `random` and
      `greedy_oracle`, the 0 and, unless `farsighted` earns more, the 1 of
      `normalised`.
    user: int [E], the user of each session; None: each is of its own.

  Returns:
    Policy to measure to what `statistics.summarise` says.
  """
  earned = {
    name: np.mean(first.total_reward, dtype=np.float64)
    for name, (first, *_) in policies.items()
  }
  table = {}
  for policy, seeds in policies.items():
    table[policy] = {
      name: statistics.summarise([measure.of(x) for x in seeds], user)
      for name, measure in MEASURES.items()
      if measure.label is not None
    }
    rewards = [x.total_reward for x in seeds]
    table[policy]["normalised"] = bounds.normalised(rewards, earned, user)
  return table


def save(
  path: pathlib.Path, policies: dict[str, list[Sessions]], user: np.ndarray
) -> None:
  """Writes each session's measures; session e is the same user everywhere.

  Args:
    path: of an .npz with `user`, int32 [E], and `<policy>/<measure>`, float32
      [S, E], of all MEASURES that are saved.
    policies: name to the sessions of each seed.
    user: int32 [E], the user of each session.
  """
  buffer = io.BytesIO()
  np.savez_compressed(
    buffer,
    format=SESSIONS_FORMAT,
    user=user,
    **{
      f"{policy}/{name}": np.stack([measure.of(x) for x in seeds])
      for policy, seeds in policies.items()
      for name, measure in MEASURES.items()
      if measure.saved
    },
  )
  files.write_atomic(path, buffer.getvalue())


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays that `save` wrote."""
  return files.read_npz(path, SESSIONS_FORMAT)


def read_results(path: pathlib.Path) -> dict:
  """A run's results.json."""
  return files.read_json(path, RESULTS_FORMAT)


def code_usage(index: SidIndex, slates: list[np.ndarray]) -> np.ndarray:
  """How often each token was shown, int64 [L, V].

  Args:
    index: the items' SIDs.
    slates: ids of any shape; 0, for padding, does not count.
  """
  shown = np.concatenate([np.ravel(x) for x in slates])
  tokens = np.asarray(index.tokens)[shown[shown > 0]]
  return np.stack(
    [np.bincount(x, minlength=index.vocab_size) for x in tokens.T]
  )
