"""Dynamics that are fitted to logged sessions, in place of a rule."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.networks.boredom import BoredomModel
from hsrl_jax.ops import masking
from hsrl_jax.types import Array, Params, PRNGKey

STEPS = 10  # That are told apart; what is older does not count.
LIKES = 10  # The newest likes are counted apart.
_SCALE = 4.0  # Of counts.


class LatelyState(NamedTuple):
  """Items that a user was shown and liked lately."""

  # float32 [STEPS, T + 1], items by step, the newest first, and topic.
  shown: Array
  liked: Array  # float32 [STEPS, T + 1], those that were liked.
  newest: Array  # int32 [LIKES], topics of the last liked items, newest last.
  ago: Array  # int32 [LIKES], steps since each was liked, from 1; 0: no item.


@dataclasses.dataclass(frozen=True)
class FittedBoredom:
  """Logits change with what was shown and liked lately, by a fitted model.

  See dynamics.Dynamics. Has no `room`; only rules have.
  """

  topics: int  # T.

  def init(self, key: PRNGKey) -> Params:
    """Parameters before any fit: of no boredom."""
    counts = jnp.zeros((self.topics + 1, 3 * STEPS))
    one = jnp.zeros(1)
    return BoredomModel().init(key, counts, one.astype(jnp.int32), one)

  def known(self, params: Any, items: Array) -> Array:
    """See Dynamics: the topics."""
    return params.topics[items]

  def start(self, params: Any = None, row: Array | None = None) -> LatelyState:
    """See Dynamics."""
    del params, row
    nothing = jnp.zeros((STEPS, self.topics + 1))
    none = jnp.zeros(LIKES, jnp.int32)
    return LatelyState(nothing, nothing, none, none)

  def probabilities(self, state, topics, probability, step, fitted):
    """See Dynamics."""
    del step
    logits = masking.finite_logit(probability)
    return jax.nn.sigmoid(self.logits(fitted, state, topics, logits))

  def logits(
    self, fitted: Params, state: LatelyState, topics: Array, logits: Array
  ) -> Array:
    """Logits of a user in a state, of the click model's, [M] -> [M]."""
    return self._by_counts(
      fitted, (state.shown, state.liked, self._newest(state)), topics, logits
    )

  def logits_after(
    self,
    fitted: Params,
    before: tuple[Array, Array, Array],
    topics: Array,
    logits: Array,
  ) -> Array:
    """`logits` in the state after some slates, without the steps between.

    Args:
      fitted: see `init`.
      before: the last STEPS slates, the newest first: topics int32 [STEPS, K],
        responses float32 [STEPS, K], and whether there was one, bool [STEPS].
      topics: int32 [M].
      logits: float32 [M].
    """
    shown_topics, response, there = before
    of_topics = jax.nn.one_hot(shown_topics, self.topics + 1)
    likes = (response > 0) * there[:, None]
    # From the newest like back; in a slate the last place is the newest.
    number = jnp.cumsum(likes[:, ::-1].reshape(-1)).reshape(likes.shape)
    newest = likes * (number[:, ::-1] <= LIKES)
    counts = (
      jnp.einsum("sk,skt->st", x.astype(jnp.float32), of_topics)
      for x in (jnp.broadcast_to(there[:, None], likes.shape), likes, newest)
    )
    return self._by_counts(fitted, tuple(counts), topics, logits)

  def _by_counts(
    self,
    fitted: Params,
    counts: tuple[Array, Array, Array],
    topics: Array,
    logits: Array,
  ) -> Array:
    counts = jnp.concatenate(counts).T / _SCALE
    return BoredomModel().apply(fitted, counts, topics, logits)

  def _newest(self, state: LatelyState) -> Array:
    """The last likes by step, the newest first, and topic, [STEPS, T + 1]."""
    by_step = jax.nn.one_hot(state.ago - 1, STEPS, axis=0)
    return by_step @ jax.nn.one_hot(state.newest, self.topics + 1)

  def after(self, state, topics, response, step):
    """See Dynamics. A place that shows nothing counts as one without topic."""
    del step
    of_topics = jax.nn.one_hot(topics, self.topics + 1)

    def joined(rows: Array, new: Array) -> Array:
      return jnp.concatenate([new[None], rows[:-1]])

    ago = jnp.where(state.ago > 0, state.ago + 1, 0)
    ago = jnp.concatenate([ago, (response > 0).astype(jnp.int32)])
    newest = jnp.concatenate([state.newest, topics])
    # A stable sort moves what was not liked to the front.
    kept = jnp.argsort(ago > 0, stable=True)[-LIKES:]
    return LatelyState(
      joined(state.shown, of_topics.sum(0)),
      joined(state.liked, response @ of_topics),
      newest[kept],
      ago[kept],
    )

  def hidden(self, state: LatelyState, step: Array) -> Array:
    """See Dynamics: the newest likes by topic, and likes by step."""
    del step
    newest = self._newest(state).sum(0)
    return jnp.concatenate([newest, state.liked.sum(1)]) / _SCALE
