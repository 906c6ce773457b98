"""A click model's logit blended with statistics of the training logs.

The logit z of a network that knows items by their features is one of five
terms, each with a weight of its own (docs/simulator.md, "The click model"):

  w_1 z + w_2 b[item] + w_3 b[user] + w_4 similarity(history, item) + w_5

The weights are fitted to the VALIDATION split, whose responses neither network
nor biases `b` have seen: on the training split both would look better than they
are (stacking, Wolpert 1992). The position of an item and the drawing of
negatives are accounted for in the fit and left out after it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from hsrl_jax.types import Array, Sessions

TERMS = ("network", "item", "user", "similarity", "constant")
_ALONE = (1.0, 0.0, 0.0, 0.0, 0.0)  # The network's logit as it is.
_SMOOTHING = 10.0  # Showings that the mean of all counts for in a bias.
_RIDGE = 1.0  # Half of it times the squared distance of weights from _ALONE.
_PAST = 3.0  # Items of history at which a similarity has half its variance.
_LEAST = 1e-6  # Of a probability, so that its logit is finite.


class Biases(NamedTuple):
  """Biases by key; that of any other key is 0."""

  keys: np.ndarray  # int [G], ascending.
  biases: np.ndarray  # float [G].

  def __call__(self, keys: np.ndarray) -> np.ndarray:
    """The biases of `keys`, of any shape."""
    place = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
    return np.where(self.keys[place] == keys, self.biases[place], 0.0)


class Blend(NamedTuple):
  """Statistics of the logs and their weights, a pytree of arrays."""

  weights: Array  # float32 [5], in the order of TERMS.
  items: Array  # float32 [N + 1], b of each item; 0 for padding.
  user_ids: Array  # int32 [U], the users of the training logs, ascending.
  users: Array  # float32 [U], b of each of them.
  centre: Array  # float32 [D], the mean features of the catalogue.

  def of_users(self, user_id: np.ndarray) -> np.ndarray:
    """b of users, float32 [S]; 0 for whom the training logs do not have."""
    return Biases(np.asarray(self.user_ids), np.asarray(self.users))(user_id)


def unfitted(features: Array | np.ndarray) -> Blend:
  """The network alone, of items [N + 1, D] and no users."""
  return Blend(
    jnp.array(_ALONE),
    jnp.zeros(len(features)),
    jnp.zeros(0, jnp.int32),
    jnp.zeros(0),
    jnp.asarray(features[1:].mean(0), jnp.float32),
  )


def of_logs(
  train: Sessions, features: np.ndarray, drawn: np.ndarray | None = None
) -> tuple[Blend, Biases | None]:
  """Biases of the training logs, with the weights of the network alone.

  Args:
    train: the training logs, S slates.
    features: float32 [N + 1, D], row 0 for padding.
    drawn: float [N + 1], what the logit of an item owes to the drawing of
      negatives (`feedback.log_q_offset`); None where none was drawn.

  Returns:
    The Blend; and the biases of positions, None where they are not logged.
  """
  exposed, liked = np.asarray(train.exposed), np.asarray(train.response)
  offset = np.zeros(exposed.shape) if drawn is None else drawn[exposed]
  positions = None
  if train.position is not None:
    positions = _biases(np.asarray(train.position), liked, offset)
    offset = offset + positions(train.position)
  of_users = np.broadcast_to(np.asarray(train.user_id)[:, None], exposed.shape)
  users = _biases(of_users, liked, offset)
  items = _biases(exposed, liked, offset)(np.arange(len(features)))
  blend = unfitted(features)._replace(
    items=jnp.asarray(items, jnp.float32).at[0].set(0.0),
    user_ids=jnp.asarray(users.keys, jnp.int32),
    users=jnp.asarray(users.biases, jnp.float32),
  )
  return blend, positions


def _biases(key: np.ndarray, liked: np.ndarray, offset: np.ndarray) -> Biases:
  """Smoothed logit of likes less that of expected likes, by key.

  Without offsets it is the logit of (likes + m r) / (showings + m) less that of
  r, the mean of all responses, with m = 10.

  Args:
    key: int [S, K], of what is shown: its item, user or position.
    liked: [S, K], 0 or 1.
    offset: float [S, K], what else is known of the showing's logit.
  """
  rate = float(np.clip(liked.mean(), _LEAST, 1 - _LEAST))
  level = scipy.special.logit(rate)
  if offset.any():  # So that as much is expected as was liked.
    wide = 1.0 + np.abs(offset).max()
    level = scipy.optimize.brentq(
      lambda x: scipy.special.expit(x + offset).mean() - rate,
      level - wide,
      level + wide,
    )
  expected = scipy.special.expit(level + offset)
  keys, group, shown = np.unique(
    key.ravel(), return_inverse=True, return_counts=True
  )

  def smoothed(likes):
    total = np.bincount(group, likes.ravel())
    share = (total + _SMOOTHING * rate) / (shown + _SMOOTHING)
    return scipy.special.logit(share.clip(_LEAST, 1 - _LEAST))

  return Biases(keys, smoothed(liked) - smoothed(expected))


def logits(
  blend: Blend,
  network: Array,
  item_features: Array,
  history: Array,
  slate: Array,
  user: Array | float = 0.0,
) -> Array:
  """The blended logits of ONE user, float32 [K].

  Args:
    blend: weights and biases.
    network: float32 [K], the network's logits.
    item_features: float32 [N + 1, D].
    history: int32 [H], left-padded with 0.
    slate: int32 [K].
    user: float32 [], b of the user.
  """
  rest = _terms(blend, item_features, history, slate, user)
  return network * blend.weights[0] + rest @ blend.weights[1:]


def _terms(blend, item_features, history, slate, user) -> Array:
  """All terms but the network's, float32 [K, 4]."""
  # An item that came after the fit has no entry: its bias is 0.
  biases = jnp.asarray(blend.items)
  item = biases.at[slate].get(mode="fill", fill_value=0.0)
  past = _directions(blend, item_features, history)
  mask = (history > 0)[:, None]
  interest = jnp.where(mask, past, 0.0).sum(0) / jnp.sqrt(mask.sum() + _PAST)
  similarity = _directions(blend, item_features, slate) @ interest
  ones = jnp.ones_like(item)
  return jnp.stack([item, user * ones, similarity, ones], -1)


def _directions(blend, item_features, items) -> Array:
  """Features of items less their mean, at length one, [M, D]."""
  x = jnp.asarray(item_features)[items] - blend.centre[None]
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def fit(
  blend: Blend,
  network: np.ndarray,
  item_features: np.ndarray,
  sessions: Sessions,
  offset: np.ndarray,
) -> Blend:
  """`blend` with the weights of least penalised log loss.

  Args:
    blend: with the biases.
    network: float [S, K], the network's logits.
    item_features: float32 [N + 1, D].
    sessions: S slates that neither the network nor the biases have seen.
    offset: float [S, K], what else is known of the logits, such as what the
      position adds.
  """
  rest = jax.jit(jax.vmap(_terms, in_axes=(None, None, 0, 0, 0)))(
    blend,
    jnp.asarray(item_features),
    sessions.history,
    sessions.exposed,
    blend.of_users(sessions.user_id),
  )
  x = np.concatenate([network[..., None], rest], -1).reshape(-1, len(TERMS))
  x = x.astype(np.float64)
  liked = np.asarray(sessions.response, np.float64).ravel()
  start = np.array(_ALONE)

  def loss(weights):
    z = x @ weights + offset.ravel()
    away = weights - start
    value = (np.logaddexp(0, z) - liked * z).sum() + _RIDGE * away @ away / 2
    return value, x.T @ (scipy.special.expit(z) - liked) + _RIDGE * away

  bounds = [(0, None)] * (len(TERMS) - 1) + [(None, None)]
  found = scipy.optimize.minimize(loss, start, jac=True, bounds=bounds)
  return blend._replace(weights=jnp.asarray(found.x, jnp.float32))
