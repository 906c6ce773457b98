"""Reward: what the responses to a slate are worth (docs/simulator.md).

A reward of another kind is a subclass of `Reward` here that overrides `items`
or `slate`; simulator, agents and experiments ask the object alone.
"""

import dataclasses

import jax.numpy as jnp

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.session_config import FITTED
from hsrl_jax.types import Array


# A dataclass and no NamedTuple: rewards of different classes are not equal,
# so that jax.jit, to which they are static, does not take one for the other.
@dataclasses.dataclass(frozen=True)
class Reward:
  """Reward of a slate: the mean r of the rewards of its items, or their sum.

  With a sweet point it is 1 - |r - sweet_point| instead, as in RL4RS.
  """

  penalty: float  # Reward of an item without a positive response.
  # The mean r that is worth most; None for the mean itself.
  sweet_point: float | None = None
  sums: bool = False  # Whether a slate earns the sum; not with a sweet point.

  @property
  def is_mean(self) -> bool:
    """Whether the K items that are wanted most make the best slate.

    So they do where a slate earns the mean of its items, or their sum.
    """
    return self.sweet_point is None and self._is_of_the_mean

  @property
  def _is_of_the_mean(self) -> bool:
    return type(self).slate is Reward.slate

  def items(self, response: Array) -> Array:
    """Reward of each item, float32 [..., K], of `response`, 1 or 0 each."""
    return jnp.where(response > 0, 1.0, self.penalty)

  def expected_items(self, probabilities: Array) -> Array:
    """Reward of items to expect, of probabilities of a response, [...]."""
    miss, like = self.items(jnp.array([0.0, 1.0]))
    return miss + probabilities * (like - miss)

  def slate(self, rewards: Array) -> Array:
    """Reward of slates, float32 [...], of the `items` in them, [..., K]."""
    if self.sums:
      return rewards.sum(-1)
    mean = rewards.mean(-1)
    if self.sweet_point is None:
      return mean
    return 1.0 - jnp.abs(mean - self.sweet_point)

  def places(self, response: Array) -> Array:
    """Part of each place in the reward of a slate, float32 [K].

    Where the reward is no mean of the items', all of it is the last place's.

    Args:
      response: float32 [K], 1 for a positive response, else 0.
    """
    rewards = self.items(response)
    if self.is_mean:
      return rewards / len(rewards)
    return jnp.zeros_like(rewards).at[-1].set(self.slate(rewards))

  def expected(self, probabilities: Array) -> Array:
    """Mean of `slate`, float32 [], over responses that are independent.

    Args:
      probabilities: float32 [K], of a positive response to each item. Which of
        the items have one must not matter to `slate`, only how many.
    """
    count = len(probabilities)
    chances = jnp.zeros(count + 1).at[0].set(1.0)  # Of 0..K responses.
    for p in probabilities:
      chances = (1.0 - p) * chances + p * jnp.roll(chances, 1)
    positive = jnp.tri(count + 1, count, -1)  # Row h: h ones, then zeros.
    return chances @ self.slate(self.items(positive))

  def shares(self, response: Array) -> Array:
    """(K - 1) (R - R_k), float32 [K]: R of a slate, R_k of it without item k.

    Where R is the mean that is r_k - mean_k(r); where it is the sum, K times
    the mean, so are the shares. With a sweet point a miss is worth having where
    the others are too good, which r_k would not tell.

    Args:
      response: float32 [K], 1 for a positive response, else 0.
    """
    rewards = self.items(response)
    count = len(rewards)
    if self.is_mean or count == 1:
      shares = rewards - rewards.mean()
      return count * shares if self.sums else shares
    if self._is_of_the_mean:
      others = ((rewards.sum() - rewards) / (count - 1))[:, None]
    else:
      place = jnp.arange(count)[:, None] + jnp.arange(1, count)[None]
      others = rewards[place % count]  # Row k: the slate without item k.
    return (count - 1) * (self.slate(rewards) - self.slate(others))


def of_config(config: SimulatorConfig) -> Reward:
  """The reward that the flags of the simulator ask for."""
  # A world of SARDINE counts clicks.
  penalty = config.penalty if config.world == FITTED else 0.0
  return Reward(penalty, config.sweet_point, config.sums)
