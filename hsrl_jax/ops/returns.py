"""Targets and advantages of ONE step; callers vmap."""

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array


def td_target(
  reward: Array, terminated: Array, next_value: Array, discount: float
) -> Array:
  """y = r + gamma (1 - terminated) V(s'), no gradient (docs/method.md).

  Args:
    reward: float32 [].
    terminated: float32 [], 1 where the user left. A step limit is no end.
    next_value: float32 [], the target network's V(s').
    discount: gamma.
  """
  return jax.lax.stop_gradient(
    reward + discount * (1.0 - terminated) * next_value
  )


def item_advantages(
  target: Array, baseline: Array, shares: Array | None, *, clip: float
) -> Array:
  """A_k = clip(y - V) + the item's own share (docs/method.md).

  Args:
    target: float32 [], y.
    baseline: float32 [B], values of the state; an advantage for each.
    shares: float32 [K], what each item added (`sim.reward.Reward.shares`); None
      where all items have the slate's advantage.
    clip: bound of y - V.

  Returns:
    float32 [K, B]; [1, B] without shares.
  """
  advantage = jnp.clip(target - baseline, -clip, clip)[None]
  return advantage if shares is None else advantage + shares[:, None]
