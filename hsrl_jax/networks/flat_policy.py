"""Slates that know themselves, by one logit for each item.

What `slate_policy.SlatePolicy` would be with a single level whose tokens are
the items: the same encoders, response head, prior and penalties. All that RL
adds is an inner product with the items' vectors, as on the lower levels there.
Everything is of ONE user; callers vmap.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks.leaving import Leaving
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


class Chosen(NamedTuple):
  """Items of the earlier slots of a slate, as two sums each.

  One is of the items, one of the items times the likes to expect of them.
  """

  unit: Array  # float32 [2, D], of centred features of length 1.
  vectors: Array  # float32 [2, W], of the items' vectors.


class Start(NamedTuple):
  """The policy's view of a state, before any slot."""

  vectors: Array  # float32 [N + 1, W], of the items.
  unit: Array  # float32 [N + 1, D], centred features of length 1; 0 of padding.
  hidden: Array  # float32 [4 h], what the state says.
  # float32 [N + 1], logits by the response head and by what was liked.
  prior: Array
  user: Array  # float32 [W + 1], the response head: a vector and a bias.
  # What makes the user leave; None without `leave_penalty`.
  leaving: Leaving | None
  # What the policy knows of the response head; `likes` are [N + 1].
  estimate: Estimate


class FlatPolicy(StatePolicy):
  """Actor and response head, one logit for each item; as SlatePolicy.

  Penalties fall on an item by its cosine with what was chosen.
  """

  def setup(self):
    normal, wide = nn.initializers.normal, 4 * self.hidden
    self.of_user()
    self.repeat = self.param("repeat", self.penalties)
    self.vector_map = nn.Dense(WIDTH, use_bias=False)
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
    features, shown = tokens.features, observation.shown
    vectors = self.vector_map(features)
    unit = jnp.pad(unit_rows(features[1:]), ((1, 0), (0, 0)))
    seen = (features, *observation, key)
    user, leaving = self.head(seen), self.leaving(tokens, shown)
    if estimate is None:
      likes = self.penalised(leaving, features, vectors @ user[:-1])
      estimate = Estimate(jax.lax.stop_gradient(user), likes)
    rows = rows_lately(shown)
    liked = (rows[:AGES].sum(0) + rows[-1]) @ unit[shown.items]
    return Start(
      vectors,
      unit,
      self.lower_map(self.state(seen, estimate.user)),
      estimate.likes - unit @ (self.repeat[2] * liked),
      user,
      leaving,
      estimate,
    )

  def one_chosen(self, start: Start, item: Array, slot: Array) -> Chosen:
    """A single item, in a slot; nothing where slots do not see one another."""
    if not self.sequential:
      item = jnp.zeros_like(item)
    vector = start.vectors[item]
    likes = self.likes(start, vector, slot)
    both = jnp.stack([jnp.ones_like(likes), likes])[:, None] * (item > 0)
    one = Chosen(both * start.unit[item][None], both * vector[None])
    return jax.lax.stop_gradient(one)

  def logits(self, start: Start, chosen: Chosen, slot: Array) -> Array:
    """Of all items in a slot, float32 [N + 1]."""
    x = start.hidden + self.chosen_map(chosen.vectors.reshape(-1))
    x = nn.relu(self.norm(x + self.lower_slot[slot_of(slot)]))
    vectors = jax.lax.stop_gradient(start.vectors)
    own = 3.0 * vectors @ (x @ self.lower_out)
    return start.prior + own - start.unit @ (self.repeat[:2] @ chosen.unit)

  def anchor(self, start: Start, chosen: Chosen) -> Array:
    """The logits without what the network adds, float32 [N + 1]."""
    return start.prior - start.unit @ (self.repeat[:2] @ chosen.unit)

  def __call__(self, tokens: Tokens, observation: Observation) -> Array:
    """For initialisation: touches every parameter."""
    start = self.start(tokens, observation)
    nothing = none_chosen(tokens.features.shape[1])
    chance = self.chances(start, start.vectors[:1]).sum()
    return self.logits(start, nothing, 0).sum() + chance


def none_chosen(size: int) -> Chosen:
  """Nothing, of items with so many features."""
  return Chosen(jnp.zeros((2, size)), jnp.zeros((2, WIDTH)))
