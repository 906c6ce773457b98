"""A softmax over items, token by token, against one over the items."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl import item_softmax
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid import trie

SPACES = (
  # levels, vocab_size, items
  (1, 70, 60),
  (2, 33, 300),
  (3, 5, 125),
  (3, 6, 150),
  (4, 5, 300),
)


def _problem(levels, vocab_size, items):
  """An index with items that are gone and ids without a SID, and logits."""
  rng = np.random.default_rng(items)
  every = list(itertools.product(range(vocab_size), repeat=levels))
  tokens = rng.permutation(np.array(every, np.int32))[:items]
  active = rng.random(items) < 0.8
  index = trie.build_index(tokens, vocab_size, active, capacity=items + 9)
  logits = jnp.asarray(rng.normal(0, 1.5, items + 10), jnp.float32)
  return index, logits, tokens, active


def _of_items(index, weights, tokens):
  """Log of the product of the tokens' probabilities, [N]."""

  def of_item(sid):
    node, total = jnp.int32(0), 0.0
    for level in range(index.levels):
      logits = item_softmax.token_logits(index, weights, node, level)
      there = sid_index.valid_tokens(index, node, level)
      total += jax.nn.log_softmax(logits, where=there)[sid[level]]
      node = sid_index.child(index, node, sid[level], level)
    return total

  return np.asarray(jax.jit(jax.vmap(of_item))(jnp.asarray(tokens)))


class ItemSoftmaxTest(parameterized.TestCase):
  @parameterized.parameters(*SPACES)
  def test_the_product_over_tokens_is_the_softmax(self, *sizes):
    index, logits, tokens, active = _problem(*sizes)
    gone = np.flatnonzero(active)[:3] + 1
    excluded = jnp.asarray([0, *gone, 0, gone[0]])
    allowed = base.permitted(index.active, excluded)
    weights = item_softmax.weights_below(index, logits, allowed)
    left = active & ~np.isin(np.arange(len(active)) + 1, gone)
    own = np.asarray(logits)[1 : len(active) + 1]
    expected = own[left] - np.log(np.exp(own[left]).sum())
    for level, found in enumerate(weights):
      np.testing.assert_allclose(
        np.asarray(found).sum(),
        np.exp(own[left] - own[left].max()).sum(),
        rtol=1e-4,
        err_msg=str(level),
      )
    # Tokens that lead to excluded items alone keep the least weight there is.
    found = _of_items(index, weights, tokens[left])
    np.testing.assert_allclose(found, expected, atol=2e-3)

  @parameterized.parameters(*SPACES)
  def test_without_an_item_as_if_it_were_excluded(self, *sizes):
    index, logits, tokens, active = _problem(*sizes)
    item = int(np.flatnonzero(active)[1]) + 1
    weights = item_softmax.weights_below(index, logits, index.active)
    path, node = [], jnp.int32(0)
    for level, token in enumerate(tokens[item - 1]):
      node = sid_index.child(index, node, jnp.int32(token), level)
      path.append(node)
    allowed = base.permitted(index.active, jnp.array([item]))
    expected = item_softmax.weights_below(index, logits, allowed)
    gone = item_softmax.without(weights, path)
    scale = gone[0].sum() / expected[0].sum()  # Of another largest item.
    for found, want in zip(gone, expected, strict=True):
      np.testing.assert_allclose(found, want * scale, atol=1e-5)
    nothing = item_softmax.without(weights, [*path[:-1], jnp.int32(-1)])
    for found, want in zip(nothing, weights, strict=True):
      np.testing.assert_array_equal(found, want)


if __name__ == "__main__":
  absltest.main()
