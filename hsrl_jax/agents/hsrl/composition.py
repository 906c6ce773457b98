"""Slates for a reward with a sweet point, which the best K items overshoot."""

import jax
import jax.numpy as jnp

from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Array


def compose_slate(
  best_scores: Array,
  worst_scores: Array,
  reward: Reward,
) -> Array:
  """Positions of the slate that earns most in expectation, int32 [K].

  The candidates are the first K - n of the best items and the first n of the
  worst, n = 0..K. A score is the logit of a positive response.

  Args:
    best_scores: float32 [K], of the items that are wanted most, best first.
    worst_scores: float32 [K], of those that are wanted least, worst first.
    reward: of slates.

  Returns:
    Positions in the best items followed by the worst.
  """
  count = len(best_scores)
  place = jnp.arange(count)[None]
  worst_from = count - jnp.arange(count + 1)[:, None]  # K - n.
  slates = jnp.where(place < worst_from, place, 2 * count - 1 - place)
  probabilities = jax.nn.sigmoid(jnp.concatenate([best_scores, worst_scores]))
  rewards = jax.vmap(reward.expected)(probabilities[slates])
  return slates[jnp.argmax(rewards)]
