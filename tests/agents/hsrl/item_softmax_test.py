"""A softmax over items, token by token, against one over the items."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

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


def _below(index, logits, excluded=0):
  rows = item_softmax.rows_of(index)
  excluded = jnp.atleast_1d(excluded)
  weights_below = jax.jit(item_softmax.weights_below)
  return weights_below(index, rows, logits[rows.item], excluded)


def _of_items(index, below, tokens):
  """Log of the product of the tokens' probabilities, [N]."""

  def of_item(sid):
    node, total = jnp.int32(0), 0.0
    for level in range(index.levels):
      nodes = sid_index.children(index, node, level)
      logits = item_softmax.token_logits(index, below, nodes, level)
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
    below = _below(index, logits, excluded)
    left = active & ~np.isin(np.arange(len(active)) + 1, gone)
    own = np.asarray(logits)[1 : len(active) + 1]
    expected = own[left] - np.log(np.exp(own[left]).sum())
    found = _of_items(index, below, tokens[left])
    np.testing.assert_allclose(found, expected, atol=2e-3)

  @parameterized.parameters(*SPACES)
  def test_items_below_poor_tokens_are_told_apart(self, *sizes):
    index, logits, tokens, active = _problem(*sizes)
    poor = 90.0 * (tokens[:, 0] % 2)
    logits = logits.at[1 : len(poor) + 1].add(-poor)
    below = _below(index, logits)
    own = np.asarray(logits, np.float64)[1 : len(poor) + 1][active]
    expected = own - np.log(np.exp(own).sum())
    found = _of_items(index, below, tokens[active])
    np.testing.assert_allclose(found, expected, atol=2e-3)

  def test_poor_kinds_keep_their_sums_beside_heavy_tokens(self):
    every = list(itertools.product(range(12), repeat=3))
    tokens = np.array(every, np.int32)
    active = np.ones(len(tokens), bool)
    index = trie.build_index(tokens, 12, active, capacity=len(tokens))
    own = np.where(tokens[:, 0] < 11, 0.0, -9.0)
    own[-144] = 0.0  # The best item below the last token.
    below = _below(index, jnp.asarray([0.0, *own], jnp.float32))
    node = sid_index.child(index, jnp.int32(0), jnp.int32(11), 0)
    nodes = sid_index.children(index, node, 1)
    found = item_softmax.token_logits(index, below, nodes, 1)[1:]
    np.testing.assert_allclose(found, np.log(12) - 9.0, atol=2e-3)

  @parameterized.parameters(*SPACES)
  def test_without_items_as_if_they_were_excluded(self, *sizes):
    index, logits, tokens, active = _problem(*sizes)
    without = jax.jit(item_softmax.without)
    for sharpness, least in ((1.0, -np.inf), (4.0, -7.0)):
      own = np.asarray(logits, np.float64)[1 : len(active) + 1] * sharpness
      below = _below(index, logits * sharpness)
      left = active.copy()
      for _ in range(4):  # The best of what is left goes.
        best = np.argmax(np.where(left, own, -np.inf))
        left[best] = False
        path, node = [], jnp.int32(0)
        for level, token in enumerate(tokens[best]):
          node = sid_index.child(index, node, jnp.int32(token), level)
          path.append(node)
        below = without(index, below, path)
      expected = own[left] - np.log(np.exp(own[left]).sum())
      found = _of_items(index, below, tokens[left])
      likely = expected > least
      np.testing.assert_allclose(found[likely], expected[likely], atol=2e-3)
      nothing = without(index, below, [*path[:-1], jnp.int32(-1)])
      jax.tree.map(np.testing.assert_array_equal, nothing, below)


if __name__ == "__main__":
  absltest.main()
