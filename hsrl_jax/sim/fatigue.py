"""Users who tire of what is like what they were shown (docs/simulator.md).

What is alike, say users whom no agent meets: the likes of one half of the
training users. Vectors of the other half's likes may be joined to the features
that agents see. Who tires how much, and for how long, is drawn.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.data import item_vectors
from hsrl_jax.ops import masking
from hsrl_jax.types import Array, Sessions

WIDTH = 32  # The most numbers of a vector.
PACES = (0.7, 0.9, 0.97)  # What is left of fatigue after a step.
_BINGE, _BINGERS = -0.5, 0.2  # What repetition costs them, and their share.
_SEED = 0  # Of the halves, and of who the users are.
_SCALE = 5.0  # Of the sum of vectors that a critic sees.


class FatigueState(NamedTuple):
  """A user's load by what was shown."""

  person: Array  # float32 [2], see `people`.
  # float32 [N + 1], for each item the sum over what was shown of the kernel,
  # each less by the user's pace with each step.
  load: Array
  recent: Array  # float32 [D], the same sum of the vectors.


@dataclasses.dataclass(frozen=True)
class Fatigue:
  """The logit of a like of item i falls by what was shown that is like it.

  It falls by a sum_j k(i, j) rho^(age of j) over all items j of the session, of
  which those of the last step have age 1, and k(i, j) is max(cosine, 0)^power.
  The user's a is `scale` times what `people` draws. See dynamics.Dynamics.
  """

  power: float  # Of the cosine.
  # Mean a of users who tire; of the others a is half as much, below 0.
  scale: float

  def known(self, params: Any, items: Array) -> tuple[Array, Array]:
    """See Dynamics: the items, and the vectors of all, [N + 1, D]."""
    return items, params.kernel

  def start(self, params: Any, row: Array) -> FatigueState:
    """See Dynamics."""
    items, width = params.kernel.shape
    return FatigueState(params.people[row], jnp.zeros(items), jnp.zeros(width))

  def probabilities(self, state, known, probability, step, fitted=None):
    """See Dynamics."""
    del step, fitted
    items, _ = known
    logits = masking.finite_logit(probability)
    a = self.scale * state.person[0]
    return jax.nn.sigmoid(logits - a * state.load[items])

  def after(self, state, known, response, step):
    """See Dynamics. Padding is like nothing: its vector is 0."""
    del response, step
    slate, vectors = known
    shown, pace = vectors[slate], state.person[1]
    cosine = jnp.dot(vectors, shown.T, precision=jax.lax.Precision.HIGHEST)
    alike = (jnp.maximum(cosine, 0.0) ** self.power).sum(1)
    return state._replace(
      load=pace * (state.load + alike),
      recent=pace * (state.recent + shown.sum(0)),
    )

  def hidden(self, state: FatigueState, step: Array) -> Array:
    """See Dynamics: who the user is, and the vectors of what was shown."""
    del step
    return jnp.concatenate([state.person, state.recent / _SCALE])


def people(user_id: Array) -> Array:
  """Cost of repetition for each user of a pool, and the share that stays.

  The first is drawn by the exponential law of mean 1, but is -0.5 for a fifth;
  the second is one of PACES. The draws of a row are those of its user and its
  number in the pool: who comes again may be in another mood.

  Args:
    user_id: int [S].

  Returns:
    float32 [S, 2].
  """

  def of(user, row):
    key = jax.random.fold_in(jax.random.key(_SEED), user)
    draws = jax.random.uniform(jax.random.fold_in(key, row), (3,))
    cost = jnp.where(draws[0] < _BINGERS, _BINGE, -jnp.log1p(-draws[1]))
    pace = jnp.array(PACES)[(draws[2] * len(PACES)).astype(jnp.int32)]
    return jnp.stack([cost, pace])

  return jax.vmap(of)(jnp.asarray(user_id), jnp.arange(len(user_id)))


def kernel(
  train: Sessions, features: np.ndarray, categories: np.ndarray | None = None
) -> np.ndarray:
  """The vectors by which items are alike to users, of length 1 or 0.

  A truncated SVD of the likes of the half of the training users that no agent
  sees. Where none of them liked an item, its vector is what a linear map of the
  features says.

  Args:
    train: the training logs.
    features: float32 [N + 1, D], row 0 for padding.
    categories: bool [N + 1, C]; with them what a linear map of an item's
      categories says is taken out of its vector, so that alike are items of
      one cluster, and a category says nothing; None: nothing is.

  Returns:
    float32 [N + 1, D], zeros for padding; D is WIDTH where users suffice.
  """
  count = len(features) - 1
  vectors = _of_half(train, count, hidden=True)
  liked = vectors.any(1)
  columns = np.pad(features[1:], ((0, 0), (0, 1)), constant_values=1.0)
  found = np.linalg.lstsq(columns[liked], vectors[liked], rcond=None)[0]
  vectors = np.where(liked[:, None], vectors, columns @ found)
  vectors = item_vectors.unit_rows(vectors)
  if categories is not None:
    own = categories[1:].astype(np.float64)
    vectors = vectors - own @ np.linalg.lstsq(own, vectors, rcond=None)[0]
  return np.pad(item_vectors.unit_rows(vectors), ((1, 0), (0, 0)))


def seen(train: Sessions, items: int) -> np.ndarray:
  """Vectors of the likes of the other half, which agents may see.

  Args:
    train: the training logs.
    items: N.

  Returns:
    float32 [N + 1, D], of length 1; zeros for padding, and where nobody of
    that half liked an item.
  """
  return np.pad(_of_half(train, items, hidden=False), ((1, 0), (0, 0)))


def _of_half(train: Sessions, items: int, *, hidden: bool) -> np.ndarray:
  """Vectors of the likes of half of the training users, [items, D]."""
  user, item = item_vectors.positives(train)
  users = np.unique(np.asarray(train.user_id))
  shuffled = np.random.default_rng(_SEED).permutation(users)
  own = np.isin(user, shuffled[: len(users) // 2]) == hidden
  return item_vectors.of_interactions(user[own], item[own], items, WIDTH)
