"""Held-out next items: ranks under a model, with and without those seen."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from hsrl_jax.evaluation import ranking
from hsrl_jax.networks.next_item import Catalogue, Model
from hsrl_jax.types import Params

_CHUNK = 256  # Users at once.

# (parameters, histories [E, T], targets [E]) -> ranks [E] among all items, and
# among those not seen; 0 for beyond what was searched.
Ranker = Callable[
  [Params, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]
]


def exact_ranker(model: Model, catalogue: Catalogue) -> Ranker:
  """Ranks by the exact scores of all items."""
  scores = jax.jit(model.scores)
  return functools.partial(_ranked, scores, ranking.ranks, catalogue)


def search_ranker(model: Model, catalogue: Catalogue) -> Ranker:
  """Ranks in the lists of the constrained beam search."""
  search = jax.jit(lambda *args: model.search(*args).items)
  return functools.partial(_ranked, search, ranking.list_ranks, catalogue)


def same_ranker(scores: np.ndarray) -> Ranker:
  """Ranks by scores [N + 1] that are the same for all, such as popularity."""

  def compute(params, catalogue, history):
    del params, catalogue
    return np.broadcast_to(scores, (len(history), len(scores)))

  return functools.partial(_ranked, compute, ranking.ranks, None)


def _ranked(compute, rank, catalogue, params, history, target):
  ranks, unseen = [], []
  for start in range(0, len(target), _CHUNK):
    rows = slice(start, start + _CHUNK)
    past, wanted = history[rows], target[rows]
    missing = _CHUNK - len(past)
    padded = np.pad(past, ((0, missing), (0, 0)))
    result = np.asarray(compute(params, catalogue, padded))[: len(past)]
    ranks.append(rank(result, wanted))
    unseen.append(rank(result, wanted, past))
  return np.concatenate(ranks), np.concatenate(unseen)
