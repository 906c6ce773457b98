"""Slates that know themselves, by one logit for each item.

What `policy.SlatePolicy` would be with a single level whose tokens are the
items: the same encoders, response head, prior and penalties, and the network of
the first level, which all items share. An inner product with the items' vectors
stands for the lower levels. Everything is of ONE user; callers vmap.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks.slate_policy import (
  AGES,
  SLOTS,
  WIDTH,
  Estimate,
  StatePolicy,
  Tokens,
  rows_lately,
  slot_of,
  unit_rows,
)
from hsrl_jax.types import Array, Observation, PRNGKey


class Likeness(NamedTuple):
  """Likeness of items to others, on which penalties fall.

  Attributes:
    chosen: float32 [2, N + 1], how like what is in the slate: sums over its
      items, and over its items times the likes to expect of them.
    vectors: float32 [2, W], the same sums of their vectors.
  """

  chosen: Array
  vectors: Array


class Start(NamedTuple):
  """The policy's view of a state, before any slot.

  Attributes:
    vectors: float32 [N + 1, W], of the items.
    unit: float32 [N + 1, D], centred features of length 1; 0 of padding.
    first: float32 [h, N + 1], of the network that all items share.
    lower: float32 [4 h], of the inner product.
    prior: float32 [N + 1], logits by the response head and by what was liked.
    user: float32 [W + 1], the response head: a vector and a bias.
    estimate: what the policy knows of the response head; `likes` are [N + 1].
  """

  vectors: Array
  unit: Array
  first: Array
  lower: Array
  prior: Array
  user: Array
  estimate: Estimate


class FlatPolicy(StatePolicy):
  """Actor and response head, one logit for each item; as SlatePolicy.

  What the penalties fall on is how like an item is to what was chosen.
  """

  def setup(self):
    normal, wide = nn.initializers.normal, 4 * self.hidden
    self.of_user()
    self.vector_map = nn.Dense(WIDTH, use_bias=False)
    self.slate_map = self.param("slate_map", normal(0.5), (2, self.hidden))
    # Of the inner product.
    self.lower_map = nn.Dense(wide)
    self.chosen_map = nn.Dense(wide, use_bias=False)
    self.lower_slot = self.param(
      "lower_slot", nn.initializers.zeros, (SLOTS, wide)
    )
    self.norm = nn.LayerNorm()
    self.lower_out = self.param("lower_out", normal(0.02), (wide, WIDTH))

  def start(
    self,
    tokens: Tokens,
    observation: Observation,
    key: PRNGKey | None = None,
    estimate: Estimate | None = None,
  ) -> Start:
    """As SlatePolicy.start; of the tokens the items' features count alone."""
    features = tokens.features
    vectors = self.vector_map(features)
    unit = jnp.pad(unit_rows(features[1:]), ((1, 0), (0, 0)))
    seen = (features, *observation, key)
    user = self.head(seen)
    if estimate is None:
      likes = vectors @ user[:-1] / self.prior_temperature
      estimate = jax.lax.stop_gradient(Estimate(user, likes))
    state = self.state(seen, estimate.user)
    shown = observation.shown
    # By age, of items like each.
    counts = rows_lately(shown) @ _likeness(unit, shown.items)
    liked = counts[:AGES].sum(0) + counts[-1]
    first = self.count_map(counts.T) + self.first_map(state)[None]
    first += self.meaning_map(jax.lax.stop_gradient(vectors))
    return Start(
      vectors,
      unit,
      first.T,
      self.lower_map(state),
      estimate.likes - self.repeat[2] * liked,
      user,
      estimate,
    )

  def one_chosen(self, start: Start, item: Array, slot: Array) -> Likeness:
    """A single item, in a slot; nothing where slots do not see one another."""
    if not self.sequential:
      item = jnp.zeros_like(item)
    vector = start.vectors[item]
    likes = self.likes(start, vector, slot)
    both = jnp.stack([jnp.ones_like(likes), likes])[:, None] * (item > 0)
    like = _likeness(start.unit, item[None])
    one = Likeness(both * like, both * vector[None])
    return jax.lax.stop_gradient(one)

  def logits(self, start: Start, chosen: Likeness, slot: Array) -> Array:
    """Of all items in a slot, float32 [N + 1]."""
    slot = slot_of(slot)
    # Products of matrices: XLA's fused sums of products may be wrong on a CPU.
    seen = self.slate_map.T @ chosen.chosen
    x = nn.relu(start.first + seen + self.first_slot[slot][:, None])
    shared = 3.0 * self.first_out @ x
    x = start.lower + self.chosen_map(chosen.vectors.reshape(-1))
    x = nn.relu(self.norm(x + self.lower_slot[slot]))
    vectors = jax.lax.stop_gradient(start.vectors)
    own = 3.0 * vectors @ (x @ self.lower_out)
    return start.prior + shared + own - self.repeat[:2] @ chosen.chosen

  def __call__(self, tokens: Tokens, observation: Observation) -> Array:
    """For initialisation: touches every parameter."""
    start = self.start(tokens, observation)
    nothing = none_chosen(len(tokens.features))
    chance = self.chances(start, start.vectors[:1]).sum()
    return self.logits(start, nothing, 0).sum() + chance


def none_chosen(rows: int) -> Likeness:
  """Nothing, of N + 1 items."""
  return Likeness(jnp.zeros((2, rows)), jnp.zeros((2, WIDTH)))


def _likeness(unit: Array, items: Array) -> Array:
  """How like items are to all, int32 [T] -> [T, N + 1]: no cosine below 0."""
  return jnp.maximum(unit[items] @ unit.T, 0.0)
