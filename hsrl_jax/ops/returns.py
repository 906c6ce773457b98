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


def item_advantages(advantage: Array, rewards: Array) -> Array:
  """Per-item credit: A_k = A + r_k - mean_k(r), [K] (DESIGN, section 6)."""
  return advantage + rewards - rewards.mean()
