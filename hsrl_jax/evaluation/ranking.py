"""How policies and simple lists rank items for the users of logged rows.

A ranking is of the items of each logged slate, and of all items.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents import base
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array, Observation, Params, Sessions

# (params, observation of one user) -> score of each item, [N + 1].
ScoreFn = Callable[[Params, Observation], Array]

LISTED = 20  # Items of a ranking of all that are looked at.
_CELLS = 2e7  # Scores held at once.
_SMOOTHING = 10.0  # Showings that the mean of all items counts for.
# Below this share of likes that repeat an item of the history, the items of
# the history are left out of the ranking of all items.
_REPEATS = 0.01


class Ranker(NamedTuple):
  """How a policy ranks the items for ONE user; see `of_scores`."""

  # (params, observation, items int32 [K]) -> scores, [K].
  shown: Callable[[Params, Observation, Array], Array]
  # (params, observation, excluded int32 [T]) -> int32 [M], the best items of
  # the catalogue without the excluded ones, the best first; 0 where there are
  # no more.
  best: Callable[[Params, Observation, Array], Array]


class Rankings(NamedTuple):
  """A policy's rankings of S logged rows."""

  shown: np.ndarray  # float32 [S, K], scores of the items of the logged slate.
  # int32 [S, M], the best items of the catalogue, the best first; 0 where fewer
  # may be shown. None: not all items are ranked.
  top: np.ndarray | None
  # The same with the items of the row's history; None where `top` has them.
  top_of_all: np.ndarray | None = None


def of_scores(score_fn: ScoreFn, active: Array) -> Ranker:
  """Ranks by scores of all items.

  Args:
    score_fn: of one user.
    active: bool [N + 1], the items that may be shown; False for padding.
  """
  count = min(LISTED, len(active) - 1)

  def shown(params, observation, items):
    return score_fn(params, observation)[items]

  def best(params, observation, excluded):
    scores = score_fn(params, observation)
    candidates = jnp.where(active, scores, -jnp.inf).at[excluded].set(-jnp.inf)
    values, items = jax.lax.top_k(candidates, count)
    return jnp.where(values > -jnp.inf, items, 0)

  return Ranker(shown, best)


def of_agent(
  agent: base.Agent,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
) -> tuple[Array, bool]:
  """An agent's scores, [N + 1], and whether their softmax is its policy.

  What is not among its candidates has -inf. A latent action has no softmax.
  """
  if agent.scores is not None:
    return agent.scores(params, catalogue, observation), True
  nothing = jnp.zeros(0, jnp.int32)
  action = agent.act(params, catalogue, observation, nothing, None, 1.0)
  ranked = action.ranked
  scores = jnp.where(ranked.allowed, ranked.scores, -jnp.inf)
  none = jnp.full(len(catalogue.features), -jnp.inf)
  return none.at[ranked.items].set(scores), not action.latent.size


def by_slates(act: Callable[..., base.Action]) -> Callable[..., Array]:
  """Ranker.best by greedy slates; parameters come with their Catalogue."""

  def best(params, observation, excluded):
    slate = act(*params, observation, excluded, None, 1.0).slate
    # A slate that is not full ends in items that may not be shown.
    allowed = base.permitted(params[1].index.active, excluded)
    return jnp.where(allowed[slate], slate, 0)

  return best


def rank(
  ranker: Ranker,
  params: Params,
  sessions: Sessions,
  items: int,
  left_out: Array | None,
) -> Rankings:
  """Ranks the items of each logged slate, and all items.

  Args:
    ranker: of one user; vmapped here.
    params: of the ranker.
    sessions: S logged rows.
    items: N.
    left_out: int [S, T], items that the ranking of all items leaves out by row,
      such as the history; then `top_of_all` has them. None: nothing.
  """
  return by_rows(_ranked, ranker, params, sessions, items, left_out)


def best(
  ranker: Ranker,
  params: Params,
  sessions: Sessions,
  items: int,
  left_out: Array | None,
) -> np.ndarray:
  """The best items for each row, int32 [S, M]; see `rank`."""
  return by_rows(_best, ranker, params, sessions, items, left_out)


def by_rows(compute, ranker, params, sessions, items, *more):
  """Applies `compute` to all logged rows, some at a time.

  Returns:
    The arrays that `compute` returns, leaves [S, ...], of NumPy.
  """
  rows = len(sessions.user_id)
  size = int(max(1, min(256, rows, _CELLS // (items + 1))))
  parts = []
  for first in range(0, rows, size):
    # The last chunk is filled up with its last row: one shape, one compilation.
    place = np.minimum(np.arange(first, first + size), rows - 1)
    columns = (sessions.profile, sessions.history, sessions.exposed, *more)
    row = [None if x is None else jnp.asarray(x[place]) for x in columns]
    parts.append(jax.device_get(compute(ranker, params, *row)))
  return jax.tree.map(lambda *x: np.concatenate(x)[:rows], *parts)


@functools.partial(jax.jit, static_argnames="ranker")
def _ranked(ranker, params, profile, history, exposed, left_out):
  """Rankings, in one program: scores that they share are computed once."""
  given = (ranker, params, profile, history, exposed)
  shown = jax.vmap(lambda p, h, e: ranker.shown(params, Observation(p, h), e))(
    profile, history, exposed
  )
  top_of_all = _best(*given, None)
  if left_out is None:
    return Rankings(shown, top_of_all)
  return Rankings(shown, _best(*given, left_out), top_of_all)


@functools.partial(jax.jit, static_argnames="ranker")
def _best(ranker, params, profile, history, exposed, left_out):
  if left_out is None:
    left_out = jnp.zeros((len(exposed), 0), jnp.int32)

  def of_row(profile, history, excluded):
    return ranker.best(params, Observation(profile, history), excluded)

  return jax.vmap(of_row)(profile, history, left_out)


def repeats(train: Sessions) -> bool:
  """Whether users like again what they liked before, in the training logs."""
  liked = np.asarray(train.response) > 0
  history = np.asarray(train.history)
  again = (np.asarray(train.exposed)[:, :, None] == history[:, None, :]).any(
    -1
  ) & liked
  return bool(again.sum() >= _REPEATS * max(liked.sum(), 1))


def popularity(train: Sessions, items: int) -> tuple[ScoreFn, Array]:
  """Positive responses in the training logs, of N items: [N + 1]."""
  return _constant, jnp.asarray(counts(train, items)[1], jnp.float32)


def item_mean(train: Sessions, items: int) -> tuple[ScoreFn, Array]:
  """Share of showings that were liked, smoothed, of N items: [N + 1].

  (likes + m g) / (showings + m), with the mean g of all showings and m = 10.
  """
  return _constant, jnp.asarray(smoothed(*counts(train, items)), jnp.float32)


def item_to_item(features: np.ndarray) -> tuple[ScoreFn, Array]:
  """Mean cosine of an item's features, [N + 1, D], with the history's items."""
  norm = np.linalg.norm(features, axis=1, keepdims=True)
  return _cosine, jnp.asarray(features / np.maximum(norm, 1e-12), jnp.float32)


def logging_policy(logs: Sessions) -> Rankings | None:
  """How the policy that logged ranks what it showed; None where nothing tells.

  By the propensities of the items, if all have some, or by their positions.
  """
  if logs.propensity is not None and np.isfinite(logs.propensity).all():
    return Rankings(np.asarray(logs.propensity, np.float64), None)
  if logs.position is not None:
    return Rankings(-np.asarray(logs.position, np.float64), None)
  return None


def _constant(scores: Array, observation: Observation) -> Array:
  del observation
  return scores


def _cosine(directions: Array, observation: Observation) -> Array:
  past = observation.history > 0
  mean = jnp.where(past[:, None], directions[observation.history], 0.0).sum(0)
  return directions @ mean


def counts(train: Sessions, items: int) -> tuple[np.ndarray, np.ndarray]:
  """Showings and positive responses of each item, [N + 1] each."""
  exposed = np.asarray(train.exposed).ravel()
  response = np.asarray(train.response, np.float64).ravel()
  shown = np.bincount(exposed, minlength=items + 1).astype(np.float64)
  liked = np.bincount(exposed, weights=response, minlength=items + 1)
  return shown, liked


def smoothed(shown: np.ndarray, liked: np.ndarray) -> np.ndarray:
  """Shares of showings that were liked, drawn to the mean of all, [G]."""
  mean = liked.sum() / max(shown.sum(), 1)
  return (liked + _SMOOTHING * mean) / (shown + _SMOOTHING)
