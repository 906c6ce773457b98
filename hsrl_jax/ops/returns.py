"""Targets and advantages of ONE step; callers vmap."""

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array


def td_target(
  reward: Array, terminated: Array, next_value: Array, discount: float
) -> Array:
  """y = r + gamma (1 - terminated) V(s'), no gradient (DESIGN, section 6).

  Args:
    reward: float32 [].
    terminated: float32 [], 1 where the user left. A step limit is no end.
    next_value: float32 [], the target network's V(s').
    discount: gamma.
  """
  return jax.lax.stop_gradient(
    reward + discount * (1.0 - terminated) * next_value
  )


def item_rewards(response: Array, penalty: float) -> Array:
  """Reward of each item, [K]: 1 for a positive response, else `penalty`."""
  return jnp.where(response > 0, 1.0, penalty)


def slate_reward(rewards: Array, sweet_point: float | None) -> Array:
  """Reward of a slate, []: the mean r of its items' rewards, [..., K].

  With a sweet point it is 1 - |r - sweet_point| instead (DESIGN, section 5).
  """
  reward = rewards.mean(-1)
  return reward if sweet_point is None else 1.0 - jnp.abs(reward - sweet_point)


def expected_slate_reward(
  probabilities: Array, penalty: float, sweet_point: float | None
) -> Array:
  """The mean of `slate_reward`, [], of responses that are independent.

  Args:
    probabilities: float32 [K], of a positive response to each item.
    penalty: reward of an item without one.
    sweet_point: see `slate_reward`.
  """
  count = len(probabilities)
  chances = jnp.zeros(count + 1).at[0].set(1.0)  # Of 0..K positive responses.
  for p in probabilities:
    chances = (1.0 - p) * chances + p * jnp.roll(chances, 1)
  positive = jnp.tri(count + 1, count, -1)  # Row h: h ones, then zeros.
  return chances @ slate_reward(item_rewards(positive, penalty), sweet_point)


def item_advantages(
  target: Array,
  baseline: Array,
  rewards: Array,
  *,
  clip: float,
  item_credit: bool,
  sweet_point: float | None = None,
) -> Array:
  """A_k = clip(y - V) + the item's own share (DESIGN, section 6).

  Args:
    target: float32 [], y.
    baseline: float32 [B], values of the state; an advantage for each.
    rewards: float32 [K], r_k of each item.
    clip: bound of y - V.
    item_credit: whether the item's share is added.
    sweet_point: see `slate_reward`.

  Returns:
    float32 [K, B].
  """
  advantage = jnp.clip(target - baseline, -clip, clip)
  share = (
    item_shares(rewards, sweet_point)
    if item_credit
    else jnp.zeros_like(rewards)
  )
  return advantage + share[:, None]


def item_shares(rewards: Array, sweet_point: float | None) -> Array:
  """(K - 1) (R - R_k), [K]: R of the slate less what it is without item k.

  Without a sweet point that is r_k - mean_k(r). With one a miss is worth having
  where the others are too good, which r_k would not tell.
  """
  count = len(rewards)
  if sweet_point is None or count == 1:
    return rewards - rewards.mean()
  others = (rewards.sum() - rewards) / (count - 1)
  gain = slate_reward(rewards, sweet_point) - slate_reward(
    others[:, None], sweet_point
  )
  return (count - 1) * gain
