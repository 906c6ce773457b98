"""A planner: it learns what is liked, what bores and drives away, and plans.

It is what model-free RL is measured against. Supervised by what it showed, it
learns the probability of a like, the probability that the user leaves, and how
both depend on what was shown and liked lately (outlook.py); and,
by temporal differences, what a step earns from a state on. A slate is filled
place by place, each with the item that adds most (`gains`). Nothing of the
world's rules is known to it, and nothing that other agents do not see.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import outlook
from hsrl_jax.agents.baselines.outlook import Added, Effects, Outlook
from hsrl_jax.checked import setting
from hsrl_jax.networks import leaving
from hsrl_jax.ops import masking, plackett_luce, returns, sampling
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import observed
from hsrl_jax.types import Array, Observation, Params

_LONGEST = 100.0  # Steps that a value looks ahead.
_LEAST = 1e-6
SCALE = "scale"  # Of the parameters: the largest size of each kind.


@dataclasses.dataclass(frozen=True)
class Settings(base.DiscountSettings):
  """Of the planner.

  Attributes:
    critic_weight: of the value's loss.
    behaviour_weight: of the losses of likes and leaves.
  """

  critic_weight: float = setting(1.0, least=0)
  behaviour_weight: float = setting(1.0, least=0)


class Forecast(NamedTuple):
  """Forecasts before a slate, of N items and padding."""

  kinds: Array  # float32 [N + 1, M], memberships.
  lately: outlook.Lately  # What was shown and liked.
  logits: Array  # float32 [N + 1], of a like of what was looked at.
  places: Array  # float32 [K], the probability of a look at each place.
  # float32 [N + 1], the probability by which each makes the user leave.
  leaves: Array
  stays: Array  # float32 [], the probability that the state does not.
  tastes: Array  # float32 [d], the value's view of the user.


class Planned(NamedTuple):
  """A slate that is being filled."""

  added: Added  # Its items so far.
  # float32 [], the probability that the user does not leave by now.
  stays: Array


class Planner(NamedTuple):
  """The agent's functions (base.Agent), and what they are made of."""

  outlook: Outlook
  settings: Settings
  spec: base.Spec

  @property
  def horizon(self) -> float:
    """Steps that a value stands for."""
    return 1.0 / max(1.0 - self.settings.discount, 1.0 / _LONGEST)

  def init(self, key, catalogue, observation):
    features = catalogue.features
    learned = self.outlook.init(key, features, observed.seen(observation))
    return {"outlook": learned, SCALE: leaving.largest(features)}

  def forecast(
    self, params: Params, catalogue: Catalogue, observation: Observation
  ) -> Forecast:
    """Forecasts of the learned parts for all items."""
    learned, features = self.outlook.bind(params["outlook"]), catalogue.features
    observation = observed.seen(observation)
    kinds = memberships(params, features)
    lately = outlook.lately(observation, kinds)
    effects = learned.effects(outlook.counts(lately))
    user = learned.user(features, observation)
    hazards, anyway = _hazards(effects, kinds)
    return Forecast(
      kinds,
      lately,
      _like_logits(learned, user, effects, features, kinds),
      jax.nn.sigmoid(learned.places(self.spec.slate_size)),
      jax.nn.sigmoid(hazards),
      jax.nn.sigmoid(-anyway),
      learned.tastes(features, observation),
    )

  def gains(
    self, params: Params, known: Forecast, place: Array, so_far: Planned
  ) -> tuple[Array, Array]:
    """Gain of each item in a slate, and its chance of a like, [N + 1].

    With the items chosen so far, which change what is counted after the slate,
    and the probability `stays` that the user is still there then, an item of
    reward r that makes the user leave by probability l adds

      r + K gamma stays ((1 - l) (V + D) - V),

    in units of an item's reward: of a slate that earns the sum of its items,
    without the factor K. V is the value after the slate so far, and D what the
    item changes of it: for each of its kinds the difference that one more of
    that kind makes, liked or not, in proportion to its membership.
    """
    count, reward = self.spec.slate_size, self.spec.reward
    chance = jax.nn.sigmoid(known.logits) * known.places[place]
    earned = reward.expected_items(chance)
    changes = jnp.stack([outlook.one_more(False), outlook.one_more(True)])
    now, changed = self.outlook.apply(
      params["outlook"],
      known.tastes,
      outlook.counts(known.lately, so_far.added),
      changes,
      method="values",
    )
    differences = self.horizon * known.kinds @ (changed - now).T
    later = (1.0 - chance) * differences[:, 0] + chance * differences[:, 1]
    value = self.horizon * now
    future = (1.0 - known.leaves) * (value + later) - value
    weight = self.settings.discount * (1 if reward.sums else count)
    return earned + weight * so_far.stays * future, chance

  def act(self, params, catalogue, observation, excluded, key, temperature):
    """Each place has Gumbel noise of its own."""
    known = self.forecast(params, catalogue, observation)

    def place(so_far, number):
      worth, chance = self.gains(params, known, number, so_far)

      def after(item, allowed):
        del allowed
        kind, like = known.kinds[item], chance[item]
        added = jax.tree.map(
          jnp.add, so_far.added, Added(kind, like * kind, like)
        )
        stays = so_far.stays * (1.0 - known.leaves[item])
        return Planned(added, stays), worth[item]

      return worth, after

    slate, propensity, value = plackett_luce.in_turn(
      place,
      nothing_planned(known),
      base.permitted(catalogue.index.active, excluded),
      self.spec.slate_size,
      key,
      temperature,
    )
    return base.Action(slate, value, jnp.zeros(0), propensity=propensity)

  def scores(self, params, catalogue, observation):
    """Gain of each item in the first place."""
    known = self.forecast(params, catalogue, observation)
    return self.gains(params, known, jnp.int32(0), nothing_planned(known))[0]

  def loss(self, params, target_params, catalogue, transition, key, progress):
    del progress
    keys = sampling.split(key, 2)
    learned, features = self.outlook.bind(params["outlook"]), catalogue.features
    target, slate = (
      self.outlook.bind(target_params["outlook"]),
      transition.slate,
    )
    kinds = memberships(params, features)
    now = observed.seen(transition.observation)
    lately = outlook.lately(now, kinds)
    counts = outlook.counts(lately)
    effects = learned.effects(counts)
    user = learned.user(features, now, keys[0])
    logits = _like_logits(learned, user, effects, features[slate], kinds[slate])
    there = slate > 0
    likes = _like_loss(logits, learned.places(len(slate)), transition.response)
    likes = jnp.where(there, likes, 0.0).mean()
    hazards, anyway = _hazards(effects, kinds[slate])
    leaves = leaving.loss(
      jnp.where(there, hazards, masking.NEGATIVE), anyway, transition.terminated
    )
    horizon = self.horizon
    after = observed.seen(transition.next_observation)
    future = target.value(
      target.tastes(features, after),
      outlook.counts(outlook.lately(after, kinds)),
    )
    y = returns.td_target(
      transition.reward,
      transition.terminated,
      horizon * future,
      self.settings.discount,
    )
    value = learned.value(learned.tastes(features, now, keys[1]), counts)
    critic = (value - y / horizon) ** 2
    settings = self.settings
    loss = (
      settings.behaviour_weight * (likes + leaves)
      + settings.critic_weight * critic
    )
    return loss, {
      "loss": loss,
      "behaviour_loss": likes,
      "leave_loss": leaves,
      "critic_loss": critic,
      "value": horizon * value,
      "target": y,
    }


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  sizes = spec.network
  planner = Planner(Outlook(sizes.encoder, sizes.critic_hidden), settings, spec)
  return base.Agent(
    planner.init,
    planner.act,
    planner.loss,
    scores=planner.scores,
    frozen=(SCALE,),
    place_by_place=True,
  )


def memberships(params: Params, features: Array) -> Array:
  """Of all items in kinds, float32 [N + 1, M]: at most 1 in size.

  Columns of features are divided by their largest size in training, which is
  kept, so that items that arrive later change nothing for the others.
  """
  return features / jax.lax.stop_gradient(params[SCALE])[None]


def _like_logits(
  learned: Outlook, user: Array, effects: Effects, features: Array, kinds: Array
) -> Array:
  """Of a like of I items that were looked at, [I]; kinds [I, M]."""
  logits = learned.logits(user, features)
  return logits + (kinds @ effects.liking + effects.all_liking)


def _hazards(effects: Effects, kinds: Array) -> tuple[Array, Array]:
  """The logits by which each of I items, [I], and all else, [], drive away."""
  known = leaving.Leaving(
    effects.leaving, *(effects.all_leaving + leaving.START)
  )
  return leaving.hazards(known, kinds), known.anyway


def nothing_planned(known: Forecast) -> Planned:
  """A slate before its first place."""
  return Planned(outlook.nothing(known.kinds.shape[1]), known.stays)


def _like_loss(logits: Array, places: Array, response: Array) -> Array:
  """Cross-entropy of likes, which take a look at the place, [K].

  Args:
    logits: float32 [K], of a like of what was looked at.
    places: float32 [K], of a look.
    response: float32 [K].
  """
  chance = jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(places)
  chance = jnp.minimum(chance, -_LEAST)
  return -jnp.where(response > 0, chance, jnp.log(-jnp.expm1(chance)))
