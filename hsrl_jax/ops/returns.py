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


def item_advantages(
  advantage: Array, rewards: Array, sweet_point: float | None = None
) -> Array:
  """Per-item credit: A_k = A + (K - 1) (R - R_k), [K] (DESIGN, section 6).

  R is the slate's reward and R_k what it would be without item k. Without a
  sweet point the credit is r_k - mean_k(r). With one a miss is worth having
  where the others are too good, which r_k would not tell.

  Args:
    advantage: float32 [], A.
    rewards: float32 [K], r_k.
    sweet_point: see `slate_reward`.
  """
  if sweet_point is None or len(rewards) == 1:
    return advantage + rewards - rewards.mean()
  count = len(rewards)
  others = (rewards.sum() - rewards) / (count - 1)
  gain = slate_reward(rewards, sweet_point) - slate_reward(
    others[:, None], sweet_point
  )
  return advantage + (count - 1) * gain
