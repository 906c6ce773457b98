"""Models of likes, of leaving, and of the reward that is left to earn.

Three learned parts that a planner asks (docs/planner.md, Planning). All of them
see what was shown and liked lately as counts by kind of item. An item belongs
to each kind by a weight, its membership: the kinds are the columns of the
item's features. Everything is of ONE user; callers vmap.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.networks.slate_policy import SLOTS, slot_of
from hsrl_jax.types import Array, Observation, PRNGKey

STEPS = 10  # That are told apart; what is older does not count.
NEWEST = 10  # Likes that are counted apart.
# Of a kind: shown, liked, and the newest likes, by step; and likes of the
# history, by falling weights and all alike.
COUNTS = 3 * STEPS + 2
_SCALE = 4.0  # Of counts.
_KEPT = 0.9  # Weight of a like of the history, of that of the next one.
_VECTOR = 32  # Width of the response head's vectors.


class Lately(NamedTuple):
  """The items of a user that count, and those that a slate will add."""

  # float32 [R, M], memberships of the last items shown; 0 for padding.
  kinds: Array
  ago: Array  # int32 [R], steps since each was shown.
  liked: Array  # float32 [R], 1 where the user liked it.
  newer: Array  # float32 [R], likes after it.
  # float32 [M, 2], of the last likes, which a plan does not change.
  history: Array


class Added(NamedTuple):
  """A slate, or the first items of one, that was not shown yet."""

  shown: Array  # float32 [M], sum of its items' memberships.
  liked: Array  # float32 [M], the same times the likes to expect.
  likes: Array  # float32 [], to expect.


class Effects(NamedTuple):
  """How what was shown and liked lately changes what follows."""

  liking: Array  # float32 [M], what each kind adds to the logit of a like.
  all_liking: Array  # float32 [], what is added to all of them.
  # float32 [M], what each kind adds to the logit by which an item makes the
  # user leave.
  leaving: Array
  # float32 [2], the same of all items, and the logit by which the user leaves
  # whatever is shown.
  all_leaving: Array


def lately(observation: Observation, kinds: Array) -> Lately:
  """Counts of a user by kind; `kinds` are the memberships, [N + 1, M]."""
  shown, history = observation.shown, observation.history
  after = jnp.cumsum(shown.response[::-1])[::-1] - shown.response
  there = (shown.items > 0).astype(jnp.float32)
  age = jnp.arange(len(history))[::-1]
  weights = jnp.stack([_KEPT**age, jnp.ones(len(age)) * 10.0 / len(age)], 1)
  liked = kinds[history] * (history > 0)[:, None]
  return Lately(
    kinds[shown.items] * there[:, None],
    shown.ago,
    shown.response,
    after,
    liked.T @ weights,
  )


def nothing(kinds: int) -> Added:
  """A slate without items."""
  none = jnp.zeros(kinds)
  return Added(none, none, jnp.float32(0))


def counts(items: Lately, added: Added | None = None) -> Array:
  """Counts by kind and step, the newest first, float32 [M, COUNTS].

  Args:
    items: shown so far.
    added: the slate that comes next: the counts are those after it, to expect;
      None: those of now.
  """
  ago, before = items.ago, 0.0
  if added is not None:
    ago, before = ago + 1, added.likes
  newest = jnp.clip(NEWEST - before - items.newer, 0.0, 1.0)
  weights = jnp.stack(
    [jnp.ones_like(newest), items.liked, items.liked * newest]
  )
  by_step = jax.nn.one_hot(ago - 1, STEPS)
  rows = jnp.einsum("wr,rs,rm->mws", weights, by_step, items.kinds)
  if added is not None:
    new = jnp.minimum(NEWEST / jnp.maximum(added.likes, 1e-6), 1.0)
    first = jnp.stack([added.shown, added.liked, added.liked * new], 1)
    rows = rows.at[:, :, 0].add(first)
  rows = rows.reshape(len(rows), 3 * STEPS)
  return jnp.concatenate([rows, items.history], 1) / _SCALE


def one_more(liked: bool) -> Array:
  """Counts that one more item of the next slate adds to a kind, [COUNTS]."""
  weights = jnp.array([1.0, liked, liked])
  rows = weights[:, None] * jax.nn.one_hot(0, STEPS)[None]
  return jnp.pad(rows.ravel(), (0, COUNTS - 3 * STEPS)) / _SCALE


class _Kinds(nn.Module):
  """Looks at the counts of each kind; all kinds share all but a vector."""

  hidden: tuple[int, int] = (32, 16)

  @nn.compact
  def __call__(self, counts: Array) -> Array:
    """[..., M, COUNTS] -> [..., M, hidden[-1]]."""
    shape = (counts.shape[-2], self.hidden[0])
    own = self.param("own", nn.initializers.normal(0.1), shape)
    x = nn.Dense(self.hidden[0], name="counts")(counts)
    x = nn.relu(x + jnp.broadcast_to(own, x.shape))
    return nn.relu(nn.Dense(self.hidden[1], name="out")(x))


class Outlook(nn.Module):
  """The learned parts: response head, effects, and value.

  A like takes a look at the place, and its logit is <u(s), W x_i> + b(s) and
  what the effects add. An item makes the user leave by a probability of its
  own, and so does the state; the user stays if nothing does. The value is that
  of the counts and of a user who is known by profile and likes.
  """

  # Sizes of the Encoders: width, layers, heads, dropout.
  encoder: tuple[int, int, int, float]
  hidden: Sequence[int] = (64, 64)  # Widths of the value's hidden layers.

  def setup(self):
    zeros, normal = nn.initializers.zeros, nn.initializers.normal
    width = self.encoder[0]
    self.response = Encoder(*self.encoder)
    self.response_hidden = nn.Dense(2 * width)
    self.response_out = nn.Dense(_VECTOR + 1, kernel_init=normal(0.05))
    self.item = nn.Dense(_VECTOR, use_bias=False)
    self.position = self.param(
      "position", nn.initializers.constant(4.0), (SLOTS,)
    )
    self.kinds = _Kinds()
    self.effect_own = nn.Dense(2, kernel_init=zeros)
    self.effect_hidden = nn.Dense(32)
    self.effect_all = nn.Dense(3, kernel_init=zeros)
    self.taste = Encoder(*self.encoder)
    self.value_layers = [nn.Dense(x) for x in self.hidden]
    self.value_out = nn.Dense(1, kernel_init=zeros)

  def user(
    self, features: Array, observation: Observation, key: PRNGKey | None = None
  ) -> Array:
    """The response head's view of a user: a vector and a bias, [V + 1]."""
    state = self.response(features, *observation, key)
    return self.response_out(nn.relu(self.response_hidden(state)))

  def logits(self, user: Array, features: Array) -> Array:
    """Of likes, before any effect, of items, [I, D] -> [I]."""
    return self.item(features) @ user[:-1] + user[-1]

  def places(self, count: int) -> Array:
    """The logit by which the user looks at each place, [K]."""
    return self.position[slot_of(jnp.arange(count))]

  def effects(self, counts: Array) -> Effects:
    """Of counts, [M, COUNTS]."""
    x = self.kinds(counts)
    own = self.effect_own(x)
    _, all_ = self._of_all(x.sum(0), x.max(0), counts.sum(0))
    return Effects(own[:, 0], all_[0], own[:, 1], all_[1:])

  def _of_all(
    self, sums: Array, largest: Array, total: Array
  ) -> tuple[Array, Array]:
    """Features of all kinds together, and effects on all items, [..., 3]."""
    x = nn.relu(self.effect_hidden(jnp.concatenate([sums, largest, total], -1)))
    return x, self.effect_all(x)

  def tastes(
    self, features: Array, observation: Observation, key: PRNGKey | None = None
  ) -> Array:
    """The value's view of a user, of profile and likes alone, [d]."""
    profile, history, _ = observation
    return self.taste(features, profile, history, None, key)

  def value(self, tastes: Array, counts: Array) -> Array:
    """Mean reward of a step from now on; [M, COUNTS] -> []."""
    x = self.kinds(counts)
    return self._value(tastes, x.sum(0), x.max(0), counts.sum(0))

  def values(
    self, tastes: Array, counts: Array, changes: Array
  ) -> tuple[Array, Array]:
    """The value, [], and those where one kind's counts change, [C, M].

    Args:
      tastes: see `tastes`.
      counts: [M, COUNTS].
      changes: [C, COUNTS], each added to the counts of one kind alone.
    """
    x = self.kinds(counts)
    changed = self.kinds(counts[None] + changes[:, None])
    # Nothing is below 0, so that a row of zeros may stand beside a single kind.
    first, second = jax.lax.top_k(jnp.pad(x, ((0, 1), (0, 0))).T, 2)[0].T
    others = jnp.where(x >= first[None], second[None], first[None])
    total = counts.sum(0)[None, None] + changes[:, None]
    value = self._value(tastes, x.sum(0), first, counts.sum(0))
    return value, self._value(
      tastes,
      x.sum(0)[None, None] + changed - x[None],
      jnp.maximum(changed, others[None]),
      jnp.broadcast_to(total, (*changed.shape[:2], COUNTS)),
    )

  def _value(
    self, tastes: Array, sums: Array, largest: Array, total: Array
  ) -> Array:
    x = jnp.concatenate(self._of_all(sums, largest, total), -1)
    own = jnp.broadcast_to(tastes, (*x.shape[:-1], len(tastes)))
    x = jnp.concatenate([x, own], -1)
    for layer in self.value_layers:
      x = nn.relu(layer(x))
    return self.value_out(x)[..., 0]

  def __call__(self, features: Array, observation: Observation) -> Array:
    """For initialisation: touches every parameter."""
    user = self.user(features, observation)
    now = jnp.zeros((features.shape[1], COUNTS))
    value = self.value(self.tastes(features, observation), now)
    logits = self.logits(user, features).sum() + self.places(1).sum()
    return logits + value + self.effects(now).liking.sum()
