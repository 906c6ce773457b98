"""Slates drawn without replacement, place by place, with their probabilities.

The first place is a draw from softmax(scores / temperature), each later one
from the same without the items before it: the Plackett-Luce model. The items of
the K largest sums of scaled score and Gumbel noise, in that order, are such a
slate (arXiv 1903.06059).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hsrl_jax.ops import masking, sampling
from hsrl_jax.types import Array, PRNGKey

# Of a position and what was allowed there: the new state, and what is kept.
After = Callable[[Array, Array], tuple[Any, Any]]
# Of a state and the number of a place: float32 [M] scores, and what follows.
Step = Callable[[Any, Array], tuple[Array, After]]


def draw(
  key: PRNGKey, scores: Array, allowed: Array, temperature: Array, count: int
) -> tuple[Array, Array]:
  """Draws K of M items.

  Args:
    key: of the draw, and then consumed.
    scores: float32 [M].
    allowed: bool [M], what may be drawn.
    temperature: float32 [], above 0.
    count: K, at most M.

  Returns:
    Positions in `scores`, int32 [K], and the probability of each, given those
    before, float32 [K]: 0 where nothing was left to draw.
  """
  scaled = scale(scores, allowed, temperature)
  ranks = scaled + sampling.long_tailed_gumbel(key, scores.shape)
  slate = jax.lax.top_k(jnp.where(allowed, ranks, masking.NEGATIVE), count)[1]
  return slate, probabilities(scaled, allowed, slate)


def scale(scores: Array, allowed: Array, temperature: Array) -> Array:
  """Scores divided by the temperature, [M]; the largest allowed becomes 0.

  So small temperatures lose no digits where they matter.
  """
  largest = jnp.where(allowed, scores, masking.NEGATIVE).max()
  return jnp.where(allowed, (scores - largest) / temperature, masking.NEGATIVE)


def probabilities(scores: Array, allowed: Array, slate: Array) -> Array:
  """The probability of each place of a slate, given those before it.

  Args:
    scores: float32 [M], at temperature 1.
    allowed: bool [M].
    slate: int32 [K], distinct positions in `scores`.

  Returns:
    float32 [K]; 0 where the item is not allowed.
  """
  there = allowed[slate]
  rest = jnp.where(allowed.at[slate].set(False), scores, masking.NEGATIVE)
  own = jnp.where(there, scores[slate], masking.NEGATIVE)
  # What is left at place k: the rest, and the slate from k on. Nothing is
  # subtracted, so that a likely item at an early place costs no digits later.
  places = jnp.arange(len(slate))
  later = jnp.where(places[:, None] <= places[None], own[None], -jnp.inf)
  left = jnp.logaddexp(jax.nn.logsumexp(later, -1), jax.nn.logsumexp(rest))
  return jnp.where(there, jnp.exp(own - left), 0.0)


def of_choice(
  scores: Array, allowed: Array, choice: Array, temperature: Array | float
) -> Array:
  """The probability of one draw from softmax(scores / temperature), float32 [].

  It is 1 at temperature 0, where the largest score is chosen.

  Args:
    scores: float32 [M].
    allowed: bool [M], of what was chosen.
    choice: int32 [], what was chosen.
    temperature: float32 [].
  """
  is_draw = jnp.asarray(temperature) > 0
  scaled = scale(scores, allowed, jnp.where(is_draw, temperature, 1.0))
  log_probs = masking.log_softmax(scaled, allowed)
  probability = jnp.exp(masking.pick(log_probs, choice))
  return jnp.where(is_draw, probability, 1.0)


def in_turn(
  step: Step,
  state: Any,
  allowed: Array,
  count: int,
  key: PRNGKey | None,
  temperature: Array | float,
) -> tuple[Array, Array, Any]:
  """Chooses K of M items, each by scores that may know those before it.

  Args:
    step: see Step; it is traced once.
    state: before the first place, a pytree.
    allowed: bool [M], what may be chosen, once.
    count: K.
    key: of Gumbel noise, and then consumed; None for the best item each time.
    temperature: of the noise, in units of the scores.

  Returns:
    Positions, int32 [K], 0 where nothing was left; the probability of each as
    drawn, float32 [K]; and what `step` kept of each place, leaves [K, ...].
  """
  noise, tempered = perturbation(key, (count, len(allowed)), temperature)

  def place(carry, inputs):
    state, allowed = carry
    number, noise = inputs
    scores, after = step(state, number)
    item = jnp.argmax(jnp.where(allowed, scores + noise, -jnp.inf))
    item = item.astype(jnp.int32)
    propensity = of_choice(scores, allowed, item, tempered)
    state, kept = after(item, allowed)
    return (state, allowed.at[item].set(False)), (item, propensity, kept)

  _, chosen = jax.lax.scan(place, (state, allowed), (jnp.arange(count), noise))
  return chosen


def perturbation(
  key: PRNGKey | None, shape: tuple[int, ...], temperature: Array | float
) -> tuple[Array, Array | float]:
  """Gumbel noise times the temperature, `shape`, and the temperature.

  Without a key both are 0, and the last axis of the noise has one entry.
  """
  if key is None:
    return jnp.zeros((*shape[:-1], 1)), 0.0
  return sampling.gumbel(key, shape) * temperature, temperature
