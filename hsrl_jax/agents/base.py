"""What the training engine asks of an agent, and what agents share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.config import PolicyConfig
from hsrl_jax.ops import masking, sampling
from hsrl_jax.sid.index import SidIndex
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  Params,
  PRNGKey,
  Transition,
)


class Catalogue(NamedTuple):
  """The items that an agent chooses from; an input, so that it may change.

  Attributes:
    features: float32 [N + 1, D], row 0 for padding.
    index: their SIDs.
    codebooks: float32 [L, V, D], what the tokens mean.
    popularity: float32 [N + 1], positive responses in the training logs; None
      where nobody asks.
  """

  features: Array
  index: SidIndex
  codebooks: Array
  popularity: Array | None = None


class Spec(NamedTuple):
  """What an agent is built for.

  Attributes:
    levels: L of the catalogue's SIDs.
    vocab_size: V.
    slate_size: K.
    reward: of slates, and of the items in them.
    iterations: of training, for what happens every few of them.
  """

  levels: int
  vocab_size: int
  slate_size: int
  reward: Reward
  iterations: int


class Action(NamedTuple):
  """What an agent does.

  Attributes:
    slate: int32 [K], distinct items.
    log_prob: float32 [K], log pi of each item, up to a constant of the state;
      0 where there is none.
    latent: float32 [A], see Transition.
  """

  slate: Array
  log_prob: Array
  latent: Array


class Agent(NamedTuple):
  """An algorithm. All functions are of ONE user; the engine vmaps.

  Attributes:
    init: (key, catalogue, observation) -> params.
    act: (params, catalogue, observation, excluded, key, temperature) ->
      Action. With key None the slate is greedy; else it is sampled without
      replacement at the temperature, which for a latent action is the standard
      deviation of its noise. `excluded`, int32 [T], holds ids that may not be
      shown; 0 is ignored.
    loss: (params, target_params, catalogue, transition, key, progress) ->
      (loss [], metrics). `progress` in [0, 1] drives schedules. None where
      there is nothing to learn; such an agent gets a key in evaluation too.
    offline: learns from the logged slates instead of its own.
  """

  init: Callable[[PRNGKey, Catalogue, Observation], Params]
  act: Callable[..., Action]
  loss: (
    Callable[
      [Params, Params, Catalogue, Transition, PRNGKey, Array],
      tuple[Array, Metrics],
    ]
    | None
  )
  offline: bool = False


def geometric(start: float, end: float, progress: Array) -> Array:
  """A schedule: from `start` to `end` by equal ratios; both above 0, or 0."""
  return start * (end / start) ** progress if start else 0.0 * progress


def actor_critic(
  config: PolicyConfig,
  progress: Array,
  *,
  critic: Array,
  actor: Array,
  entropy: Array,
  behaviour: Array,
  value: Array,
  target: Array,
) -> tuple[Array, Metrics]:
  """The weighted sum of an actor-critic's losses (DESIGN, section 6).

  Args:
    config: for the weights.
    progress: float32 [], in [0, 1], of the entropy's schedule.
    critic: float32 [], the critic's loss.
    actor: float32 [], the actor's, without entropy.
    entropy: float32 [], nats.
    behaviour: float32 [], BCE of the observed responses.
    value: float32 [], V(s), for the metrics.
    target: float32 [], y, for the metrics.

  Returns:
    The loss, float32 [], and metrics.
  """
  entropy_weight = geometric(
    config.entropy_weight, config.entropy_weight_end, progress
  )
  loss = (
    config.critic_weight * critic
    + config.actor_weight * (actor - entropy_weight * entropy)
    + config.behaviour_weight * behaviour
  )
  return loss, {
    "loss": loss,
    "critic_loss": critic,
    "actor_loss": actor,
    "behaviour_loss": behaviour,
    "entropy": entropy,
    "value": value,
    "advantage": target - value,
  }


def usable(active: Array, scores: Array, excluded: Array) -> Array:
  """Scores of all items, [N + 1], with `masking.NEGATIVE` where none may be.

  Args:
    active: bool [N + 1], of the catalogue's index; False for padding.
    scores: float32 [N + 1].
    excluded: int32 [T], ids that may not be shown; 0 is ignored.
  """
  scores = jnp.where(active, scores, masking.NEGATIVE)
  return scores.at[excluded].set(masking.NEGATIVE)


def top(scores: Array, count: int) -> Array:
  """The ids of the largest scores, int32 [count]."""
  return jax.lax.top_k(scores, count)[1].astype(jnp.int32)


def noisy(
  log_pi: Array, key: PRNGKey | None, temperature: Array | float
) -> Array:
  """What the best of are a draw without replacement, [M] -> [M].

  Args:
    log_pi: float32 [M].
    key: of the Gumbel noise; None for none.
    temperature: of the draw.
  """
  if key is None:
    return log_pi
  return log_pi / temperature + sampling.gumbel(key, log_pi.shape)


def choose(
  log_pi: Array,
  index: SidIndex,
  excluded: Array,
  key: PRNGKey | None,
  temperature: Array | float,
  slate_size: int,
) -> Action:
  """A slate out of all items, exactly: top-K, or with a key Gumbel-top-K.

  Args:
    log_pi: float32 [N + 1], by which items are ranked.
    index: says which items may be recommended.
    excluded: see Agent.act.
    key: the same.
    temperature: of the draw, which is without replacement.
    slate_size: K.
  """
  scores = noisy(log_pi, key, temperature)
  slate = top(usable(index.active, scores, excluded), slate_size)
  return Action(slate, log_pi[slate], jnp.zeros(0))
