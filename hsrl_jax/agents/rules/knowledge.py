"""Facts of items that rules know, and how they fill a slate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.checked import setting
from hsrl_jax.ops import plackett_luce
from hsrl_jax.sid.categories import categories, rarest
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import observed
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.types import Array, Observation, PRNGKey

# Items that a rule avoids come after all others.
AVOIDED = 1e4
_SMOOTHING = 5.0  # Exposures that a mean of the logs begins with.
_USERS = 256  # Training users over which a mean of the simulator is taken.


@dataclasses.dataclass(frozen=True)
class CapSettings(base.Settings):
  """Of rules that show few items of a kind.

  Attributes:
    rule_cap: items of one kind in a slate, or among the last ones.
  """

  rule_cap: int = setting(3, least=1)


@dataclasses.dataclass(frozen=True)
class MemorySettings(CapSettings):
  """Of rules that look back.

  Attributes:
    rule_memory: items or likes that count, the last ones.
  """

  rule_memory: int = setting(5, least=1)


def logged_mean(catalogue: Catalogue) -> Array:
  """The smoothed mean response to each item in the logs, float32 [N + 1].

  Where nobody counted exposures, items come in the order of their popularity.
  """
  likes = catalogue.popularity
  if likes is None:
    return jnp.zeros(len(catalogue.features))
  shown = catalogue.exposures
  if shown is None:
    return likes / jnp.maximum(likes.max(), 1.0)
  mean = likes.sum() / jnp.maximum(shown.sum(), 1.0)
  return (likes + _SMOOTHING * mean) / (shown + _SMOOTHING)


def simulated_mean(
  env: UserSimulator, users: EnvParams, items: int, key: PRNGKey
) -> Array:
  """The mean chance of a first like over some of the users, [items + 1]."""
  pool = len(users.profiles)
  rows = jax.random.choice(key, pool, (min(_USERS, pool),), replace=False)
  every = jnp.arange(1, items + 1)

  def of_user(row):
    return env.chances(env.start(row, users), every, users)

  total = jax.lax.map(of_user, rows, batch_size=8).mean(0)
  return jnp.concatenate([jnp.zeros(1), total])


def agent(
  act: Callable[..., base.Action],
  scores: Callable[..., Array] = lambda params, *_: params["worth"],
  draws: bool = False,
) -> base.Agent:
  """A rule that fills slates by what it knows of the items.

  Its parameters are `categories` and `kinds`, [N + 1, C], and `worth`, [N + 1],
  each item's mean.

  Args:
    act: see base.Agent.act.
    scores: see base.Agent.scores.
    draws: whether it draws slates in evaluation too.
  """

  def init(key, catalogue, observation):
    del key, observation
    own = categories(catalogue)
    worth = logged_mean(catalogue)
    return {"categories": own, "kinds": rarest(own), "worth": worth}

  def fit(params, env, users, catalogue, key):
    items = len(catalogue.features) - 1
    return params | {"worth": simulated_mean(env, users, items, key)}

  return base.Agent(
    init,
    act,
    loss=None,
    draws=draws,
    fixed_items=True,
    scores=scores,
    place_by_place=True,
    fit=fit,
  )


def lately(observation: Observation, count: int) -> Array:
  """The last `count` items that were shown, int32 [count], newest last.

  0 where there were fewer, or where what was shown is not seen.
  """
  items = observed.seen(observation).shown.items
  return jnp.concatenate([jnp.zeros(count, jnp.int32), items])[-count:]


def fill(
  scores: Callable[[Any], Array],
  after: Callable[[Any, Array], Any],
  state: Any,
  allowed: Array,
  count: int,
  key: PRNGKey | None,
  temperature: Array | float,
) -> base.Action:
  """A slate, place by place, each by scores that know the places before it.

  Args:
    scores: of the state, [N + 1].
    after: (state, item) -> the state with the item in the slate.
    state: before the first place, a pytree.
    allowed: bool [N + 1].
    count: K.
    key: of the draws; None: the best item each time.
    temperature: of the draws, in units of the scores.
  """

  def place(state, number):
    del number
    own = scores(state)
    return own, lambda item, _: (after(state, item), own[item])

  slate, propensity, value = plackett_luce.in_turn(
    place, state, allowed, count, key, temperature
  )
  return base.Action(slate, value, jnp.zeros(0), propensity=propensity)
