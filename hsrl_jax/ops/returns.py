"""Targets and advantages of ONE step; callers vmap."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array

PLACE_TRACE = 0.95  # lambda from place to place of a slate.


class Ends(NamedTuple):
  """How each of T slates ended its session, if it did."""

  # float32 [T], 1 where the user left: nothing is earned after it.
  terminated: Array
  # float32 [T], 1 where the session was cut, such as by a step limit: what the
  # user would have gone on to earn is still worth something.
  truncated: Array
  # float32 [T], V of the state after the slate, where it was cut.
  cut_value: Array


def td_target(
  reward: Array, terminated: Array, next_value: Array, discount: float
) -> Array:
  """y = r + gamma (1 - terminated) V(s'), no gradient (docs/policy.md).

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
  """A_k = clip(y - V) + the item's own share (docs/policy.md).

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
  ends: Ends,
  last_value: Array,
  *,
  discount: float,
  trace: float,
  credit: str,
) -> tuple[Array, Array]:
  """Advantages of the choices that made T slates, of ONE stream of sessions.

  A slate is K places after another, a place P choices after another. Returns
  are those of GAE (arXiv 1506.02438): over slates, or over the chain of their
  places, within which nothing is discounted. The baseline of a choice may know
  all that was chosen before it: a baseline may depend on anything but the
  choice itself and what follows it, so the gradient stays unbiased.

  Args:
    values: float32 [T, K, P], of the state and the choices before each.
    rewards: float32 [T, K], that each place of a slate adds.
    ends: of the sessions.
    last_value: float32 [], of the state after the last slate.
    discount: gamma, from slate to slate.
    trace: lambda, from slate to slate; from place to place it is PLACE_TRACE.
    credit: `slate`: all choices of a slate have one advantage, over the value
      of its state; `slot`: those of a place have one, over the value of the
      state and the items before it; `token`: each choice has its own, over the
      value of all choices before it.

  Returns:
    Advantages, float32 [T, K, P], and the returns that values learn, the same
    shape.
  """
  if credit == "slate":
    rewards = rewards.sum(-1, keepdims=True)
  of_place = values[:, : rewards.shape[1], 0]

  def slate(ahead, step):
    """`ahead`: the value after a slate, and its advantage, discounted."""
    value, reward, terminated, truncated, cut_value = step
    next_value, next_advantage = ahead
    next_value = jnp.where(truncated > 0, cut_value, next_value)
    next_value = discount * (1.0 - terminated) * next_value
    goes_on = (1.0 - terminated) * (1.0 - truncated)
    advantage = trace * discount * goes_on * next_advantage
    advantages = []
    for place in reversed(range(len(reward))):
      advantage = advantage + reward[place] + next_value - value[place]
      advantages.append(advantage)
      advantage, next_value = PLACE_TRACE * advantage, value[place]
    return (value[0], advantages[-1]), jnp.stack(advantages[::-1])

  _, advantages = jax.lax.scan(
    slate,
    (last_value, jnp.zeros_like(last_value)),
    (of_place, rewards, *ends),
    reverse=True,
  )
  returns = jnp.broadcast_to((advantages + of_place)[:, :, None], values.shape)
  if credit == "token":
    return returns - values, returns
  return jnp.broadcast_to(advantages[:, :, None], values.shape), returns
