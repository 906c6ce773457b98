"""Slates that know themselves, by one logit for each item.

What `policy.SlatePolicy` is without tokens: the same encoders, response head,
prior and penalties, and an inner product with the items' vectors in place of
what is added token by token. Everything is of ONE user; callers vmap.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks.encoder import Encoder, LayerNorm
from hsrl_jax.networks.slates.policy import (
  SLOTS,
  STATE,
  WIDTH,
  Estimate,
  penalties,
  slot_of,
)
from hsrl_jax.types import Array, Observation, PRNGKey


class Likeness(NamedTuple):
  """What a penalty falls on, by item.

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
    unit: float32 [N + 1, D], centred features of length 1.
    state: float32 [h].
    prior: float32 [N + 1], logits by the response head and by what was liked.
    user: float32 [W + 1], the response head: a vector and a bias.
    estimate: what the policy knows of the response head; `likes` are [N + 1].
  """

  vectors: Array
  unit: Array
  state: Array
  prior: Array
  user: Array
  estimate: Estimate


class FlatPolicy(nn.Module):
  """Actor and response head; as SlatePolicy.

  Attributes:
    encoder: sizes of Encoder: width, layers, heads, dropout.
    hidden: h.
    sequential: whether a slot sees the earlier ones.
    prior_temperature: of the response head's logits.
    repeat_penalty: logits that an item like it in the slate costs at the start
      of training, and half of that a like to expect of it.
    lately_penalty: the same of a like lately.
  """

  encoder: tuple[int, int, int, float]
  hidden: int = 64
  sequential: bool = True
  prior_temperature: float = 0.5
  repeat_penalty: float = 3.0
  lately_penalty: float = 0.3

  def setup(self):
    zeros, normal = nn.initializers.zeros, nn.initializers.normal
    self.actor = Encoder(*self.encoder)
    self.response = Encoder(*self.encoder)
    self.user_hidden = nn.Dense(2 * self.encoder[0])
    self.user = nn.Dense(WIDTH + 1, kernel_init=normal(0.05))
    self.vector_map = nn.Dense(WIDTH, use_bias=False)
    self.position = self.param("position", zeros, (SLOTS,))
    self.state_map = nn.Dense(STATE)
    self.lower_map = nn.Dense(self.hidden)
    self.chosen_map = nn.Dense(self.hidden, use_bias=False)
    self.slot = self.param("slot", zeros, (SLOTS, self.hidden))
    self.norm = LayerNorm()
    sizes = (self.hidden, WIDTH)
    self.out = self.param("out", normal(0.02), sizes)
    start = penalties(self.repeat_penalty, self.lately_penalty)
    self.repeat = self.param("repeat", lambda key: start)

  def start(
    self,
    features: Array,
    observation: Observation,
    key: PRNGKey | None = None,
    estimate: Estimate | None = None,
  ) -> Start:
    """See Start.

    Args:
      features: float32 [N + 1, D], of the items.
      observation: of the user, with `shown`.
      key: of the dropout.
      estimate: which the policy acted by; None: the one of these parameters.
    """
    vectors, unit = self.vector_map(features), _unit(features)
    seen = (features, *observation, key)
    user = self.user(nn.relu(self.user_hidden(self.response(*seen))))
    if estimate is None:
      likes = vectors @ user[:-1] / self.prior_temperature
      estimate = jax.lax.stop_gradient(Estimate(user, likes))
    state = [self.actor(*seen), jnp.tanh(estimate.user / 4.0)]
    state = nn.relu(self.state_map(jnp.concatenate(state)))
    liked = unit[observation.shown.items] * observation.shown.response[:, None]
    liked = unit @ liked.sum(0)
    return Start(
      vectors,
      unit,
      self.lower_map(state),
      estimate.likes - self.repeat[2] * liked,
      user,
      estimate,
    )

  def chances(self, start: Start, vectors: Array) -> Array:
    """Logits of a like of what each slot shows, [K, W] -> [K]."""
    places = self.position[slot_of(jnp.arange(len(vectors)))]
    return vectors @ start.user[:-1] + start.user[-1] + places

  def one_chosen(self, start: Start, item: Array, slot: Array) -> Likeness:
    """A single item, in a slot; nothing where slots do not see one another."""
    if not self.sequential:
      item = jnp.zeros_like(item)
    user, vector = start.estimate.user, start.vectors[item]
    place = self.position[slot_of(slot)]
    likes = jax.nn.sigmoid(vector @ user[:-1] + user[-1] + place)
    both = jnp.stack([jnp.ones_like(likes), likes])[:, None] * (item > 0)
    like = jnp.maximum(start.unit @ start.unit[item], 0.0)
    one = Likeness(both * like[None], both * vector[None])
    return jax.lax.stop_gradient(one)

  def logits(self, start: Start, chosen: Likeness, slot: Array) -> Array:
    """Of all items in a slot, float32 [N + 1]."""
    x = start.state + self.chosen_map(chosen.vectors.reshape(-1))
    x = nn.relu(self.norm(x + self.slot[slot_of(slot)]))
    vectors = jax.lax.stop_gradient(start.vectors)
    learned = 15.0 * vectors @ (x @ self.out)
    return start.prior + learned - self.repeat[:2] @ chosen.chosen

  def __call__(self, features: Array, observation: Observation) -> Array:
    """For initialisation: touches every parameter."""
    start = self.start(features, observation)
    nothing = none_chosen(len(features))
    chance = self.chances(start, start.vectors[:1]).sum()
    return self.logits(start, nothing, 0).sum() + chance


def none_chosen(rows: int) -> Likeness:
  """Nothing, of N + 1 items."""
  return Likeness(jnp.zeros((2, rows)), jnp.zeros((2, WIDTH)))


def _unit(features: Array) -> Array:
  """Centred rows of length 1; row 0, padding, is 0."""
  there = jnp.arange(len(features))[:, None] > 0
  mean = features.sum(0) / (len(features) - 1)
  centred = jnp.where(there, features - mean[None], 0.0)
  norm = jnp.sqrt((centred**2).sum(-1, keepdims=True))
  return centred / jnp.maximum(norm, 1e-6)
