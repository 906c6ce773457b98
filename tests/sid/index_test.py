"""SidIndex against dictionaries and sets of prefixes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.sid import index as sid_index

SPACES = (
  # levels, vocab_size, items, inactive
  (1, 70, 70, 5),
  (2, 33, 200, 20),
  (2, 64, 300, 30),
  (2, 70, 400, 390),
  (3, 5, 1, 0),
  (3, 5, 125, 60),
  (4, 5, 300, 30),
)


def _space(levels, vocab_size, items, inactive, seed=0):
  """Random distinct SIDs [N, L] in random order, and who is active [N]."""
  rng = np.random.default_rng(seed)
  number = rng.choice(vocab_size**levels, items, replace=False)
  tokens = np.stack(
    [number // vocab_size**l % vocab_size for l in range(levels)], 1
  )
  active = np.ones(items, bool)
  active[rng.choice(items, inactive, replace=False)] = False
  return tokens, active


def _all_sids(levels, vocab_size):
  every = list(itertools.product(range(vocab_size), repeat=levels))
  return np.asarray(every, np.int32).reshape(len(every), levels)


@functools.partial(jax.jit, static_argnames="length")
@functools.partial(jax.vmap, in_axes=(None, 0, None))
def _valid_after(index, prefix, length):
  node = jnp.int32(0)
  for level in range(length):
    node = sid_index.child(index, node, prefix[level], level)
  return sid_index.valid_tokens(index, node, length)


_lookup = jax.jit(jax.vmap(sid_index.lookup, in_axes=(None, 0)))


class IndexTest(parameterized.TestCase):
  @parameterized.parameters(*SPACES)
  def test_lookup_of_every_sid(self, levels, vocab_size, items, inactive):
    tokens, active = _space(levels, vocab_size, items, inactive)
    sids = _all_sids(levels, vocab_size)
    for alive in (np.ones(items, bool), active):
      index = sid_index.build_index(tokens, vocab_size, alive)
      table = {
        tuple(sid): i + 1 for i, sid in enumerate(tokens.tolist()) if alive[i]
      }
      expected = [table.get(tuple(sid), 0) for sid in sids.tolist()]
      self.assertEqual(np.count_nonzero(expected), alive.sum())
      np.testing.assert_array_equal(_lookup(index, sids), expected)

  @parameterized.parameters(*SPACES)
  def test_round_trip(self, levels, vocab_size, items, inactive):
    tokens, _ = _space(levels, vocab_size, items, inactive)
    index = sid_index.build_index(tokens, vocab_size)
    self.assertEqual((index.levels, index.num_items), (levels, items))
    ids = np.arange(1, items + 1)
    sids = sid_index.sid_of(index, ids)
    np.testing.assert_array_equal(sids, tokens)
    np.testing.assert_array_equal(sid_index.sid_of(index, 0), [-1] * levels)
    # All SIDs, so that the lookup compiles once for both tests.
    every = _all_sids(levels, vocab_size)
    place = np.asarray(sids) @ vocab_size ** np.arange(levels)[::-1]
    np.testing.assert_array_equal(every[place], sids)
    np.testing.assert_array_equal(_lookup(index, every)[place], ids)

  @parameterized.parameters(*SPACES)
  def test_valid_tokens(self, levels, vocab_size, items, inactive):
    tokens, active = _space(levels, vocab_size, items, inactive)
    index = sid_index.build_index(tokens, vocab_size, active)
    for length in range(levels):
      alive = {tuple(t[: length + 1]) for t in tokens[active].tolist()}
      prefixes = _all_sids(length, vocab_size)
      expected = [
        [(*p, token) in alive for token in range(vocab_size)]
        for p in prefixes.tolist()
      ]
      valid = _valid_after(index, prefixes, length)
      with self.subTest(length=length):
        np.testing.assert_array_equal(valid, expected)

  @parameterized.parameters(5, 32, 33, 64)
  def test_tokens_out_of_range_are_no_item(self, vocab_size):
    tokens = _all_sids(2, vocab_size)[: vocab_size * 2]
    index = sid_index.build_index(tokens, vocab_size)
    sids = [
      sid
      for wrong in (-1, -vocab_size, vocab_size, vocab_size + 1, 2**31 - 1)
      for sid in ([wrong, 0], [0, wrong], [wrong, wrong])
    ]
    np.testing.assert_array_equal(_lookup(index, np.asarray(sids)), 0)

  def test_no_active_item_at_all(self):
    tokens, _ = _space(2, 5, 9, 0)
    index = sid_index.build_index(tokens, 5, np.zeros(9, bool))
    np.testing.assert_array_equal(_lookup(index, tokens), 0)
    self.assertFalse(sid_index.valid_tokens(index, jnp.int32(0), 0).any())

  def test_no_node_has_no_tokens_and_no_children(self):
    index = sid_index.build_index(_all_sids(2, 3), 3)
    for level in range(2):
      self.assertFalse(
        sid_index.valid_tokens(index, jnp.int32(-1), level).any()
      )
      self.assertEqual(
        sid_index.child(index, jnp.int32(-1), jnp.int32(0), level), -1
      )

  def test_shared_sid_names_both_items(self):
    tokens = np.asarray([[1, 2], [0, 1], [2, 2], [0, 1]])
    with self.assertRaisesRegex(ValueError, r"items 2 and 4 .*\[0, 1\]"):
      sid_index.build_index(tokens, 3)

  @parameterized.parameters(3, -1)
  def test_token_out_of_range_names_the_item(self, wrong):
    tokens = np.asarray([[1, 2], [0, 1], [2, wrong]])
    with self.assertRaisesRegex(
      ValueError, rf"item 3 .*\[2, {wrong}\].* 0 to 2"
    ):
      sid_index.build_index(tokens, 3)

  def test_another_index_of_these_shapes_is_not_traced(self):
    traces = []

    @jax.jit
    def lookup(index, sids):
      traces.append(1)
      return jax.vmap(sid_index.lookup, in_axes=(None, 0))(index, sids)

    tokens, active = _space(3, 5, 40, 5)
    order = np.random.default_rng(1).permutation(40)
    one = sid_index.build_index(tokens, 5)
    two = sid_index.build_index(tokens[order], 5, active)
    np.testing.assert_array_equal(lookup(one, tokens), np.arange(1, 41))
    np.testing.assert_array_equal(
      lookup(two, tokens[order]), np.where(active, np.arange(1, 41), 0)
    )
    self.assertLen(traces, 1)


if __name__ == "__main__":
  absltest.main()
