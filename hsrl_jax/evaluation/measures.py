"""Measures of simulated sessions, in results.json and sessions.npz.

A new measure is an entry of MEASURES, and nothing else.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hsrl_jax import files
from hsrl_jax.evaluation import bounds, statistics
from hsrl_jax.evaluation.simulate import Simulated
from hsrl_jax.sid import SidIndex

RESULTS_FORMAT = 3  # Of a run's results.json.
SESSIONS_FORMAT = 1  # Of sessions.npz.
ABOVE_GREEDY = "above_greedy"


class Measure(NamedTuple):
  """A number for each session."""

  of: Callable[[Simulated], np.ndarray]  # Sessions -> [E].
  # In tables for people; None: it is not summarised in results.json.
  label: str | None = None
  form: str = "{:.2f}"  # How tables show its mean.
  saved: bool = True  # Whether sessions.npz has it.


def _liked_slates(sessions: Simulated) -> np.ndarray:
  liked = (np.asarray(sessions.responses) > 0).any(-1)
  return liked.sum(-1, dtype=np.float32)


def _positive_share(sessions: Simulated) -> np.ndarray:
  shown = sessions.depth * sessions.slates.shape[-1]
  return np.asarray(sessions.positives / shown)


def _reward_per_step(sessions: Simulated) -> np.ndarray:
  """The ratio of the means, plus each session's influence on it."""
  value, influence = statistics.ratio(sessions.total_reward, sessions.depth)
  return value + influence


MEASURES = {
  "total_reward": Measure(lambda x: np.asarray(x.total_reward), "Total reward"),
  "depth": Measure(lambda x: np.asarray(x.depth), "Depth"),
  "positives": Measure(lambda x: np.asarray(x.positives)),
  "liked_slates": Measure(_liked_slates),  # With a positive response.
  "positive_share": Measure(
    _positive_share, "Positive responses", "{:.1%}", saved=False
  ),
  "reward_per_step": Measure(_reward_per_step, "Reward a step", saved=False),
}


def _coverage(sessions: Simulated, items: int) -> float:
  """Share of the catalogue that all sessions together show."""
  shown = np.unique(np.asarray(sessions.slates))
  return np.count_nonzero(shown) / items


def columns() -> list[tuple[str, str, str]]:
  """Label, name in results.json and form of all that tables may show."""
  own = [x for x in MEASURES.items() if x[1].label is not None]
  return [
    *((x.label, name, x.form) for name, x in own),
    ("Coverage", "coverage", "{:.1%}"),
    ("Above greedy", ABOVE_GREEDY, "{:+z.2f}"),
    ("Normalised", "normalised", "{:z.2f}"),
  ]


def report(
  policies: dict[str, list[Simulated]],
  user: np.ndarray | None = None,
  *,
  items: int | None = None,
) -> dict:
  """The `policies` of results.json.

  Beside all measures each policy has `coverage`, `normalised`, and
  `above_greedy`: its total reward less that of `greedy_oracle`, session by
  session, whose users and luck are the same.

  Args:
    policies: name to the sessions of each seed; with `random` and
      `greedy_oracle`, the 0 and, unless one of `bounds.KNOWING` earns more,
      the 1 of `normalised`.
    user: int [E], the user of each session; None: each is of its own.
    items: in the catalogue; None: no `coverage`.

  Returns:
    Policy to measure to what `statistics.summarise` says; the coverage of a
    single seed has no interval.
  """
  earned = {
    name: np.mean(first.total_reward, dtype=np.float64)
    for name, (first, *_) in policies.items()
  }
  greedy = np.asarray(policies["greedy_oracle"][0].total_reward, np.float64)
  table = {}
  for policy, seeds in policies.items():
    table[policy] = {
      name: statistics.summarise([measure.of(x) for x in seeds], user)
      for name, measure in MEASURES.items()
      if measure.label is not None
    }
    if items:
      covered = statistics.summarise([[_coverage(x, items)] for x in seeds])
      if len(seeds) == 1:
        covered["ci95"] = [None, None]
      table[policy]["coverage"] = covered
    rewards = [x.total_reward for x in seeds]
    table[policy][ABOVE_GREEDY] = statistics.summarise(
      [x - greedy for x in rewards], user
    )
    table[policy]["normalised"] = bounds.normalised(rewards, earned, user)
  return table


def save(
  path: pathlib.Path, policies: dict[str, list[Simulated]], user: np.ndarray
) -> None:
  """Writes each session's measures; session e is the same user everywhere.

  Args:
    path: of an .npz with `user`, int32 [E], and `<policy>/<measure>`, float32
      [S, E], of all MEASURES that are saved.
    policies: name to the sessions of each seed.
    user: int32 [E], the user of each session.
  """
  files.write_npz(
    path,
    SESSIONS_FORMAT,
    user=user,
    **{
      f"{policy}/{name}": np.stack([measure.of(x) for x in seeds])
      for policy, seeds in policies.items()
      for name, measure in MEASURES.items()
      if measure.saved
    },
  )


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
  tokens = index.sids[shown[shown > 0]]
  return np.stack(
    [np.bincount(x, minlength=index.vocab_size) for x in tokens.T]
  )
