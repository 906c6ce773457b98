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


def choice_advantages(
  values: Array,
  rewards: Array,
  over: Array,
  last_value: Array,
  *,
  discount: float,
  trace: float,
  place_trace: float,
  by_choice: bool = True,
) -> tuple[Array, Array]:
  """Advantages of the choices that made T slates, of ONE stream of sessions.

  A slate is K places after another, a place P choices after another. Returns
  are those of GAE (arXiv 1506.02438) over the chain of places; within a slate
  nothing is discounted. The baseline of a choice is the value of all choices
  before it, in its place and those before: a baseline may depend on anything
  but the choice itself and what follows it, so the gradient stays unbiased.

  Args:
    values: float32 [T, K, P], of the state and the choices before each.
    rewards: float32 [T, K], that each place of a slate adds.
    over: float32 [T], 1 where the session ends after the slate.
    last_value: float32 [], of the state after the last slate.
    discount: gamma, from slate to slate.
    trace: lambda, from slate to slate.
    place_trace: lambda from place to place.
    by_choice: False: all choices of a slate have one advantage, over the value
      of its state.

  Returns:
    Advantages, float32 [T, K, P], and the returns that values learn, the same
    shape.
  """
  if not by_choice:
    rewards = rewards.sum(-1, keepdims=True)
  of_place = values[:, : rewards.shape[1], 0]

  def slate(ahead, step):
    """`ahead`: the value after a slate, and its advantage, discounted."""
    value, reward, over = step
    next_value, next_advantage = ahead
    next_value = discount * (1.0 - over) * next_value
    advantage = trace * discount * (1.0 - over) * next_advantage
    advantages = []
    for place in reversed(range(len(reward))):
      advantage = advantage + reward[place] + next_value - value[place]
      advantages.append(advantage)
      advantage, next_value = place_trace * advantage, value[place]
    return (value[0], advantages[-1]), jnp.stack(advantages[::-1])

  _, advantages = jax.lax.scan(
    slate,
    (last_value, jnp.zeros_like(last_value)),
    (of_place, rewards, over),
    reverse=True,
  )
  returns = (advantages + of_place)[:, :, None]
  if not by_choice:
    advantages = jnp.broadcast_to(advantages[:, :, None], values.shape)
    return advantages, jnp.broadcast_to(returns, values.shape)
  return returns - values, jnp.broadcast_to(returns, values.shape)
