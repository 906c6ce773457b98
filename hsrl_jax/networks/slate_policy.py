"""A policy that chooses slot after slot, token by token.

A slot's item is chosen token by token (docs/policy.md, Sequential slates). What
was chosen in earlier slots is part of the state of the next one, so that the
residual state goes on from token to token and from slot to slot. Everything is
of ONE user; callers vmap.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.networks.leaving import LeaveHead, Leaving, hazards
from hsrl_jax.ops import masking
from hsrl_jax.types import Array, Observation, PRNGKey, Shown

AGES = 6  # Of counts by token; the last one stands for all older ones too.
_NEWEST = 10  # Likes that are counted apart, whatever their age.
WIDTH = 32  # Of the vectors of tokens and items.
STATE = 64
SLOTS = 10  # That are told apart; the last one stands for all later ones too.


class Tokens(NamedTuple):
  """Tokens and items, which a policy knows beside its parameters."""

  codebooks: Array  # float32 [L, V, D], what the tokens mean.
  features: Array  # float32 [N + 1, D], of the items.
  first: Array  # int32 [N + 1], the first token of each item; -1 for padding.


class Chosen(NamedTuple):
  """Choices in the earlier slots of a slate, as two sums each.

  One is of the items, one of the items times the likes to expect of them.
  """

  counts: Array  # float32 [2, V], by first token.
  vectors: Array  # float32 [2, W], of the items' vectors.


class Estimate(NamedTuple):
  """The response head as the policy knows it; no gradient flows into it.

  It is kept with what was shown: the response head learns from it too, and the
  policy must not move with it while its own steps are measured.
  """

  user: Array  # float32 [W + 1], the head: a vector and a bias.
  # float32 [L, V], logits of tokens by it; 0 with `item_prior`, and of tokens
  # that mean nothing.
  likes: Array


class Start(NamedTuple):
  """The policy's view of a state, before any slot."""

  vectors: Array  # float32 [L, V, W], of the tokens.
  # float32 [V, V], how like each other tokens of the first level are.
  kernel: Array
  first: Array  # float32 [V, h], of the tokens of the first level.
  lower: Array  # float32 [2 h], of the lower levels.
  # float32 [L, V], logits by the response head and by what was liked.
  prior: Array
  user: Array  # float32 [W + 1], the response head: a vector and a bias.
  # What makes the user leave; None without `leave_penalty`.
  leaving: Leaving | None
  estimate: Estimate  # What the policy knows of the response head.


class StatePolicy(nn.Module):
  """Shared parts of policies of slates: user's state and response head.

  The response head estimates the logit of a like as <u(s), x_i> + b(s), plus a
  bias of the slot. What is chosen begins with that estimate, without gradient
  and divided by `prior_temperature`, less the penalties.
  """

  # Sizes of Encoder: width, layers, heads, dropout.
  encoder: tuple[int, int, int, float]
  hidden: int = 16  # h, by which RL's networks are wide.
  sequential: bool = True  # Whether a slot sees the earlier ones.
  prior_temperature: float = 0.5  # Of the response head's logits.
  # Logits that an item of the same kind in the slate costs at the start of
  # training, and half of that a like to expect of it.
  repeat_penalty: float = 3.0
  lately_penalty: float = 0.3  # The same of a like lately.
  # Logits of a like that an item begins to lose for each nat of -log P(the user
  # stays); 0: nothing is learned of leaving.
  leave_penalty: float = 0.0

  def of_user(self) -> None:
    """Defines the parameters that they share; called within `setup`."""
    zeros, normal = nn.initializers.zeros, nn.initializers.normal
    self.actor = Encoder(*self.encoder)
    self.response = Encoder(*self.encoder)
    self.user_hidden = nn.Dense(2 * self.encoder[0])
    self.user = nn.Dense(WIDTH + 1, kernel_init=normal(0.05))
    self.position = self.param("position", zeros, (SLOTS,))
    self.state_map = nn.Dense(STATE)
    if self.leave_penalty:
      self.leave = LeaveHead()

  def penalties(self, key: PRNGKey) -> Array:
    """Penalties that training begins with, float32 [3], in logits.

    Of an item of the same kind in the slate, of a like to expect of it, and of
    a like lately.
    """
    del key
    repeat = self.repeat_penalty
    return jnp.array([repeat, repeat / 2.0, self.lately_penalty])

  def leaving(self, tokens: Tokens, shown: Shown) -> Leaving | None:
    """By which items the user leaves now; None without `leave_penalty`."""
    if not self.leave_penalty:
      return None
    return self.leave(tokens.features, shown.items, rows_lately(shown))

  def penalised(
    self, leaving: Leaving | None, features: Array, likes: Array
  ) -> Array:
    """Logits that items begin with, less the leave penalty, [...].

    No gradient flows into them.

    Args:
      leaving: of the state.
      features: float32 [..., D], of the items.
      likes: float32 [...], logits of a like.
    """
    if leaving is not None:
      stays = jax.nn.log_sigmoid(-hazards(leaving, features))
      likes = likes + self.leave_penalty * stays
    return jax.lax.stop_gradient(likes / self.prior_temperature)

  def head(self, seen: tuple[Any, ...]) -> Array:
    """The response head's vector and bias, [W + 1], of an encoder's inputs."""
    return self.user(nn.relu(self.user_hidden(self.response(*seen))))

  def state(self, seen: tuple[Any, ...], user: Array) -> Array:
    """The user's state for RL's part, [S]; `user` as of Estimate."""
    state = jnp.concatenate([self.actor(*seen), jnp.tanh(user / 4.0)])
    return nn.relu(self.state_map(state))

  def chances(self, start: Any, vectors: Array) -> Array:
    """Logits of a like of what each slot shows, [K, W] -> [K]."""
    slots = jnp.arange(len(vectors))
    return self._chance(start.user, vectors, slots)

  def likes(self, start: Any, vector: Array, slot: Array) -> Array:
    """P(like) of an item in a slot, [W], [] -> [], without gradient."""
    logit = self._chance(start.estimate.user, vector, slot)
    return jax.lax.stop_gradient(jax.nn.sigmoid(logit))

  def _chance(self, user: Array, vectors: Array, slots: Array) -> Array:
    position = masking.pick(self.position, slot_of(slots))
    return vectors @ user[:-1] + user[-1] + position


class SlatePolicy(StatePolicy, kw_only=True):
  """Actor and response head, token by token.

  What RL adds to the estimate of a token's vector is on the first level a
  network that all tokens share, of how often a token, and tokens like it, were
  liked and shown lately and are in the slate already; on lower levels an inner
  product with the tokens' vectors.
  """

  levels: int  # L.
  vocab_size: int  # V.
  # Whether a token's vector is a map of its codebook vector, and tokens of like
  # vectors share what was counted; else tokens' vectors are parameters of their
  # own, which RL learns and no estimate is made of.
  semantic: bool = True
  # Whether lower levels see what the levels above have chosen.
  residual: bool = True
  # Whether callers add the estimate of all items below a token, of
  # `item_estimates`, in place of that of the token's vector.
  item_prior: bool = False

  def setup(self):
    zeros, normal = nn.initializers.zeros, nn.initializers.normal
    sizes, h = (self.levels, self.vocab_size), self.hidden
    self.vector_map = nn.Dense(WIDTH, use_bias=False)
    if not self.semantic:
      self.vectors = self.param("vectors", normal(0.3), (*sizes, WIDTH))
    self.bias = self.param("bias", zeros, sizes)
    self.of_user()
    # Of the first level.
    self.count_map = nn.Dense(h, use_bias=False)
    self.meaning_map = nn.Dense(h)
    self.first_map = nn.Dense(h)
    self.first_slot = self.param("first_slot", zeros, (SLOTS, h))
    self.first_out = self.param("first_out", normal(0.03), (h,))
    # The order of parameters decides which random numbers each begins with.
    self.repeat = self.param("repeat", self.penalties)
    self.slate_map = nn.Dense(h, use_bias=False)
    # Of the lower levels.
    lower = max(self.levels - 1, 1)
    self.lower_map = nn.Dense(2 * h)
    self.chosen_map = nn.Dense(2 * h, use_bias=False)
    self.partial_map = nn.Dense(2 * h, use_bias=False)
    self.lower_slot = self.param("lower_slot", zeros, (SLOTS, lower, 2 * h))
    self.norm = nn.LayerNorm()
    self.lower_out = self.param(
      "lower_out", normal(0.02), (lower, 2 * h, WIDTH)
    )

  def start(
    self,
    tokens: Tokens,
    observation: Observation,
    key: PRNGKey | None = None,
    estimate: Estimate | None = None,
  ) -> Start:
    """See Start.

    Args:
      tokens: of the catalogue.
      observation: of the user, with `shown`.
      key: of the dropout.
      estimate: which the policy acted by; None: the one of these parameters.
    """
    vectors = self.token_vectors(tokens)
    kernel = likeness(tokens, self.vocab_size, self.semantic)
    seen = (tokens.features, *observation, key)
    user = self.head(seen)
    if estimate is None:
      likes = vectors @ user[:-1] / self.prior_temperature
      if self.item_prior or not self.semantic:
        likes = jnp.zeros_like(likes)
      estimate = jax.lax.stop_gradient(Estimate(user, likes))
    state = self.state(seen, estimate.user)
    counts = counts_lately(observation.shown, tokens.first, self.vocab_size)
    smooth = counts @ kernel
    each = self.count_map(jnp.concatenate([counts, smooth]).T)
    first = each + self.meaning_map(self._given(vectors[0]))
    liked = smooth[:AGES].sum(0) + smooth[-1]
    prior = estimate.likes + self.bias
    return Start(
      vectors,
      kernel,
      first + self.first_map(state)[None],
      self.lower_map(state),
      prior.at[0].add(-self.repeat[2] * liked),
      user,
      self.leaving(tokens, observation.shown),
      estimate,
    )

  def token_vectors(self, tokens: Tokens) -> Array:
    """Of all tokens, float32 [L, V, W]."""
    return self.vector_map(tokens.codebooks) if self.semantic else self.vectors

  def _given(self, vectors: Array) -> Array:
    """Tokens' vectors, without gradient where the response head learns them."""
    return jax.lax.stop_gradient(vectors) if self.semantic else vectors

  def item_vectors(self, tokens: Tokens, items: Array) -> Array:
    """Of items, int32 [...], a map of their features; float32 [..., W]."""
    return self.vector_map(tokens.features[items])

  def item_estimates(self, start: Start, tokens: Tokens, items: Array) -> Array:
    """Logits of items, int32 [...], that the policy begins with, [...]."""
    likes = self.item_vectors(tokens, items) @ start.estimate.user[:-1]
    return self.penalised(start.leaving, tokens.features[items], likes)

  def logits(
    self, start: Start, chosen: Chosen, partial: Array, slot: Array, level: int
  ) -> Array:
    """Logits of level `level` + 1, [V].

    Args:
      start: of the state.
      chosen: in the slots before.
      partial: float32 [W], the sum of the vectors of the tokens above.
      slot: int32 [].
      level: 0..L-1.
    """
    if not level:
      smooth = chosen.counts @ start.kernel
      seen = self.slate_map(jnp.concatenate([chosen.counts, smooth]).T)
      own = masking.pick(self.first_slot.T, slot_of(slot))
      x = nn.relu(start.first + seen + own[None])
      logits = start.prior[0] + 3.0 * x @ self.first_out
      return logits - self.repeat[:2] @ smooth
    x = start.lower + self.chosen_map(chosen.vectors.reshape(-1))
    if self.residual:
      x = x + self.partial_map(partial)
    own = masking.pick(self.lower_slot[:, level - 1].T, slot_of(slot))
    x = nn.relu(self.norm(x + own))
    vectors = self._given(start.vectors[level])
    return start.prior[level] + 15.0 * vectors @ (x @ self.lower_out[level - 1])

  def anchor(self, start: Start, chosen: Chosen) -> Array:
    """The logits of all levels without what networks add, [L, V]."""
    costs = self.repeat[:2] @ (chosen.counts @ start.kernel)
    return start.prior.at[0].add(-costs)

  def one_chosen(self, first: Array, vector: Array, likes: Array) -> Chosen:
    """A single item: first token, [], vector, [W], and P(like), [].

    It is nothing where slots do not see one another.
    """
    if not self.sequential:
      return jax.tree.map(lambda x: x[0], none_chosen(self.vocab_size, 1))
    both = jnp.stack([jnp.ones_like(likes), likes])[:, None]
    return Chosen(
      both * jax.nn.one_hot(first, self.vocab_size)[None],
      both * jax.lax.stop_gradient(vector)[None],
    )

  def chosen_before(self, first: Array, vectors: Array, likes: Array) -> Chosen:
    """Choices before each of K slots, leaves [K, 2, ...].

    Args:
      first: int32 [K], first tokens.
      vectors: float32 [K, W], of the items.
      likes: float32 [K], P(like) of each.
    """
    each = jax.vmap(self.one_chosen)(first, vectors, likes)
    return before(each)

  def __call__(self, tokens: Tokens, observation: Observation) -> Array:
    """For initialisation: touches every parameter."""
    start = self.start(tokens, observation)
    chosen = jax.tree.map(lambda x: x[0], none_chosen(self.vocab_size, 1))
    vector = self.item_vectors(tokens, jnp.int32(0))
    logits = sum(
      self.logits(start, chosen, vector, 0, level).sum()
      for level in range(self.levels)
    )
    return logits + self.likes(start, vector, 0)


def slot_of(slot: Array) -> Array:
  """A slot's number among those that are told apart."""
  return jnp.minimum(slot, SLOTS - 1)


def none_chosen(vocab_size: int, slots: int) -> Chosen:
  """Nothing, before each of so many slots."""
  return Chosen(jnp.zeros((slots, 2, vocab_size)), jnp.zeros((slots, 2, WIDTH)))


def before(each: Any) -> Any:
  """The sums of what is before each slot; leaves [K, ...]."""
  return jax.tree.map(lambda x: jnp.cumsum(x, 0) - x, each)


def likeness(tokens: Tokens, vocab_size: int, semantic: bool) -> Array:
  """How like each other tokens of the first level are, float32 [V, V].

  The cosine of their centred codebook vectors, 0 where it is negative; tokens
  that mean nothing are like themselves alone.
  """
  if not semantic:
    return jnp.eye(vocab_size)
  rows = unit_rows(tokens.codebooks[0])
  return jnp.maximum(rows @ rows.T, 0.0)


def unit_rows(vectors: Array) -> Array:
  """Rows less their mean, each of length 1, float32 [M, D] -> [M, D]."""
  centred = vectors - vectors.mean(0)[None]
  norm = jnp.sqrt((centred**2).sum(-1, keepdims=True))
  return centred / jnp.maximum(norm, 1e-6)


def counts_lately(shown: Shown, first: Array, vocab_size: int) -> Array:
  """The sums of `rows_lately` by first token, float32 [2 A + 1, V]."""
  return rows_lately(shown) @ jax.nn.one_hot(first[shown.items], vocab_size)


def rows_lately(shown: Shown) -> Array:
  """Rows in which each of T items shown counts, float32 [2 A + 1, T].

  Rows are likes of each age, items shown of each age, and the newest likes.
  """
  there = (shown.items > 0).astype(jnp.float32)
  age = jnp.clip(shown.ago, 1, AGES) - 1
  by_age = jax.nn.one_hot(age, AGES, axis=0) * there[None]
  newest = jnp.cumsum(shown.response[::-1])[::-1] <= _NEWEST
  return jnp.concatenate(
    [
      by_age * shown.response[None],
      by_age,
      (shown.response * newest)[None],
    ]
  )
