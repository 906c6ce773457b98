"""A softmax over all items of ONE user, as a choice token by token.

The probability of a token is that of all items below it, so the product along a
SID is the probability of its item. Callers vmap.
"""

import jax
import jax.numpy as jnp

from hsrl_jax.sid.index import SidIndex, children
from hsrl_jax.types import Array

_BLOCK = 64  # Of running sums; a scan over single leaves is slower on a CPU.
# The largest item weighs 1. Weights are differences of sums, so what is smaller
# than this is rounding.
_LEAST = 1e-8


def weights_below(
  index: SidIndex, logits: Array, allowed: Array
) -> tuple[Array, ...]:
  """Sums of exp(logit) of the items below each node, over the largest of them.

  Args:
    index: of the items.
    logits: float32 [C + 1].
    allowed: bool [C + 1], the items that have a part in it.

  Returns:
    For each level 1..L float32 [nodes_l]; on the last one nodes are leaves.
  """
  leaves = index.leaf_item
  scores = jnp.where(allowed[leaves], logits[leaves], -jnp.inf)
  largest = jnp.maximum(scores.max(), jnp.finfo(scores.dtype).min)
  found = [jnp.exp(scores - largest)]
  for level in reversed(range(1, index.levels)):
    bits = jax.lax.population_count(index.present[level])
    first = index.first_child[level]
    end = first + bits.sum(-1).astype(jnp.int32)
    sums = _running_sums(found[-1])
    found.append(
      sums.at[end].get(mode="clip") - sums.at[first].get(mode="clip")
    )
  return tuple(found[::-1])


def token_logits(
  index: SidIndex, weights: tuple[Array, ...], node: Array, level: int
) -> Array:
  """Logits of the tokens that go on from a node of `level`, float32 [V].

  Of tokens without an item below they are finite, and mean nothing.
  """
  there, number = children(index, node, level)
  weight = weights[level].at[number].get(mode="clip")
  weight = jnp.where(there & (node >= 0), weight, 0.0)
  return jnp.log(jnp.maximum(weight, _LEAST))


def without(weights: tuple[Array, ...], path: list[Array]) -> tuple[Array, ...]:
  """The weights without an item.

  Args:
    weights: of `weights_below`.
    path: int32 [] for each level 1..L, the nodes that lead to the item; -1 on
      the last level: there is none.
  """
  weight = weights[-1].at[path[-1]].get(mode="clip")
  weight = jnp.where(path[-1] >= 0, weight, 0.0)
  return tuple(
    x.at[node].add(-weight) for x, node in zip(weights, path, strict=True)
  )


def _running_sums(values: Array) -> Array:
  """The sums of what is before each value and of all, [n] -> [n + 1]."""
  blocks = jnp.pad(values, (0, -len(values) % _BLOCK)).reshape(-1, _BLOCK)
  ones = jnp.triu(jnp.ones((_BLOCK, _BLOCK)))
  within = jnp.matmul(blocks, ones, precision="highest")
  before = jnp.cumsum(within[:, -1]) - within[:, -1]
  sums = (within + before[:, None]).reshape(-1)[: len(values)]
  return jnp.concatenate([jnp.zeros(1), sums])
