"""`best_playlist`: the same slates for everybody, found on training users.

Step by step, training users of the simulator see the slate that earns most of
them on average, with a weight on staying; each item is tried on some of them.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.rules import knowledge
from hsrl_jax.checked import setting
from hsrl_jax.ops import sampling
from hsrl_jax.sid.categories import categories, rarest
from hsrl_jax.sim import observed
from hsrl_jax.types import Array

_USERS = 64  # Training users for whom it is best.
_TRIED = 8  # Users whom each item is shown, to see whether they leave.


@dataclasses.dataclass(frozen=True)
class Settings(knowledge.CapSettings):
  """Of `best_playlist`.

  Attributes:
    stay_weight: what it is worth, in rewards of an item, that a user stays.
  """

  stay_weight: float = setting(10.0, least=0)


class _Audience(NamedTuple):
  """Training users in the course of the playlist."""

  states: object  # Of the simulator, leaves [M, ...].
  there: Array  # float32 [M], 1 for who has not left.
  allowed: Array  # bool [N + 1], items that may come.


class _Playlist(NamedTuple):
  """The agent's functions (base.Agent), and what they are made of."""

  settings: Settings
  spec: base.Spec

  def init(self, key, catalogue, observation):
    """One slate, of nothing, and the logs' means."""
    del key, observation
    return {
      "slates": jnp.zeros((1, self.spec.slate_size), jnp.int32),
      "start": jnp.int32(0),
      "worth": knowledge.logged_mean(catalogue),
    }

  def scores(self, params, catalogue, observation):
    """The slate of the step first, then items by their mean."""
    step = observed.seen(observation).shown.step - params["start"]
    slates = params["slates"]
    slate = slates[jnp.clip(step, 0, len(slates) - 1)]
    places = 1.0 + jnp.arange(len(slate), 0, -1)
    # Padding stays last, whatever place it has.
    own = jnp.zeros(len(catalogue.features)).at[slate].set(places)
    return (own + params["worth"]).at[0].set(0.0)

  def act(self, params, catalogue, observation, excluded, key, temperature):
    return base.choose(
      self.scores(params, catalogue, observation),
      catalogue.index,
      excluded,
      key,
      temperature,
      self.spec.slate_size,
    )

  def fit(self, params, env, users, catalogue, key):
    """Greedy from the first step to the last."""
    del params
    kinds = rarest(categories(catalogue))
    active = catalogue.index.active
    pool, items = len(users.profiles), jnp.arange(len(active))
    count = min(_USERS, pool)
    row_key, start_key, key = sampling.split(key, 3)
    rows = jax.random.choice(row_key, pool, (count,), replace=False)
    starts = jax.random.split(start_key, count)
    states = jax.vmap(env.start, (0, None, 0))(rows, users, starts)
    first = jax.vmap(observed.seen)(states.observation).shown

    def tried(state, key):
      """Whether a user stays after each item alone, float32 [N + 1]."""
      rest = jnp.zeros(self.spec.slate_size - 1, jnp.int32)

      def alone(item):
        slate = jnp.append(item, rest)
        return 1.0 - env.step(key, state, slate, users)[1].terminated

      return jax.lax.map(alone, items, batch_size=256)

    def step(audience, key):
      states, there, allowed = audience
      chances = jax.lax.map(
        lambda state: env.chances(state, items, users), states, batch_size=4
      )
      earned = self.spec.reward.expected_items(chances)
      some = jnp.argsort(-there)[:_TRIED]
      keys = jax.random.split(key, count)
      few = jax.tree.map(lambda x: x[some], (states, keys))
      stays = jax.lax.map(lambda x: tried(*x), few)
      worth = there @ earned + self.settings.stay_weight * (there[some] @ stays)
      slate = knowledge.fill(
        lambda room: worth - knowledge.AVOIDED * count * (kinds @ (room <= 0)),
        lambda room, item: room - kinds[item],
        jnp.full(kinds.shape[1], float(self.settings.rule_cap)),
        allowed,
        self.spec.slate_size,
        None,
        0.0,
      ).slate
      states, result = jax.vmap(env.step, (0, 0, None, None))(
        keys, states, slate, users
      )
      if env.no_repeat:
        allowed = allowed.at[slate].set(False)
      there = there * ~(result.terminated | result.truncated)
      return _Audience(states, there, allowed), slate

    start = _Audience(states, jnp.ones(count), active)
    keys = jax.random.split(key, env.max_steps)
    worth = knowledge.simulated_mean(env, users, len(active) - 1, row_key)
    slates = jax.lax.scan(step, start, keys)[1]
    return {"slates": slates, "start": first.step[0], "worth": worth}


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; it trains nothing."""
  own = _Playlist(settings, spec)
  return base.Agent(
    own.init,
    own.act,
    loss=None,
    fixed_items=True,
    scores=own.scores,
    fit=own.fit,
  )
