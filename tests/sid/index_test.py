"""SidIndex against dictionaries and sets of prefixes."""

import functools
import itertools
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from hsrl_jax import files
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid import store, trie
from hsrl_jax.sid.beam_search import beam_search

SPACES = (
  # levels, vocab_size, items, inactive
  (1, 70, 70, 5),
  (2, 33, 200, 20),
  (2, 64, 300, 30),
  (2, 70, 400, 390),
  (2, 300, 500, 50),
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
      index = trie.build_index(tokens, vocab_size, alive)
      table = {
        tuple(sid): i + 1 for i, sid in enumerate(tokens.tolist()) if alive[i]
      }
      expected = [table.get(tuple(sid), 0) for sid in sids.tolist()]
      self.assertEqual(np.count_nonzero(expected), alive.sum())
      np.testing.assert_array_equal(_lookup(index, sids), expected)

  @parameterized.parameters(*SPACES)
  def test_round_trip(self, levels, vocab_size, items, inactive):
    tokens, _ = _space(levels, vocab_size, items, inactive)
    index = trie.build_index(tokens, vocab_size)
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
    index = trie.build_index(tokens, vocab_size, active)
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
    index = trie.build_index(tokens, vocab_size)
    sids = [
      sid
      for wrong in (-1, -vocab_size, vocab_size, vocab_size + 1, 2**31 - 1)
      for sid in ([wrong, 0], [0, wrong], [wrong, wrong])
    ]
    np.testing.assert_array_equal(_lookup(index, np.asarray(sids)), 0)

  def test_no_active_item_at_all(self):
    tokens, _ = _space(2, 5, 9, 0)
    index = trie.build_index(tokens, 5, np.zeros(9, bool))
    np.testing.assert_array_equal(_lookup(index, tokens), 0)
    self.assertFalse(sid_index.valid_tokens(index, jnp.int32(0), 0).any())

  def test_no_node_has_no_tokens_and_no_children(self):
    index = trie.build_index(_all_sids(2, 3), 3)
    for level in range(2):
      self.assertFalse(
        sid_index.valid_tokens(index, jnp.int32(-1), level).any()
      )
      self.assertEqual(
        sid_index.child(index, jnp.int32(-1), jnp.int32(0), level), -1
      )

  @parameterized.parameters(np.uint8, np.uint64, np.int16)
  def test_any_integers(self, dtype):
    tokens, active = _space(2, 70, 400, 40)
    _same(
      trie.build_index(tokens.astype(dtype), 70, active.astype(int)),
      trie.build_index(tokens, 70, active),
    )

  def test_shared_sid_names_both_items(self):
    tokens = np.asarray([[1, 2], [0, 1], [2, 2], [0, 1]])
    with self.assertRaisesRegex(ValueError, r"items 2 and 4 .*\[0, 1\]"):
      trie.build_index(tokens, 3)

  @parameterized.parameters(3, -1)
  def test_token_out_of_range_names_the_item(self, wrong):
    tokens = np.asarray([[1, 2], [0, 1], [2, wrong]])
    with self.assertRaisesRegex(
      ValueError, rf"item 3 .*\[2, {wrong}\].* 0 to 2"
    ):
      trie.build_index(tokens, 3)

  def test_another_index_of_these_shapes_is_not_traced(self):
    traces = []

    @jax.jit
    def lookup(index, sids):
      traces.append(1)
      return jax.vmap(sid_index.lookup, in_axes=(None, 0))(index, sids)

    tokens, active = _space(3, 5, 40, 5)
    order = np.random.default_rng(1).permutation(40)
    one = trie.build_index(tokens, 5)
    two = trie.build_index(tokens[order], 5, active)
    np.testing.assert_array_equal(lookup(one, tokens), np.arange(1, 41))
    np.testing.assert_array_equal(
      lookup(two, tokens[order]), np.where(active, np.arange(1, 41), 0)
    )
    self.assertLen(traces, 1)

  @parameterized.parameters((256, np.uint8), (257, np.uint16), (65_537, "i4"))
  def test_tokens_are_as_small_as_the_vocabulary(self, vocab_size, dtype):
    last = vocab_size - 1
    index = trie.build_index([[last, 0], [0, last]], vocab_size)
    self.assertEqual({x.dtype for x in index.tokens}, {np.dtype(dtype)})
    sids = sid_index.sid_of(index, jnp.arange(3))
    self.assertEqual(sids.dtype, jnp.int32)
    np.testing.assert_array_equal(sids, [[-1, -1], [last, 0], [0, last]])
    self.assertEqual(sid_index.lookup(index, sids[1]), 1)

  @parameterized.named_parameters(
    ("capacity", dict(capacity=1), "capacity 1; expected 2"),
    ("active", dict(active=np.ones(3, bool)), r"active has the shape \[3\]"),
    ("space", dict(tokens=np.zeros((2, 32), int)), r"4\^32 SIDs.*fewer levels"),
    ("floats", dict(tokens=np.zeros((2, 2))), "float64"),
    ("flat", dict(tokens=np.zeros(2, int)), r"shape \[2\]"),
    ("no_levels", dict(tokens=np.zeros((2, 0), int)), r"shape \[2, 0\]"),
  )
  def test_bad_arguments(self, change, message):
    arguments = dict(tokens=np.asarray([[0, 1], [1, 0]]), vocab_size=4)
    with self.assertRaisesRegex(ValueError, message):
      trie.build_index(**arguments | change)


def _vectors(rows, seed):
  return np.random.default_rng(seed).normal(size=(rows, 2)).astype("f")


def _codebooks(levels, vocab_size):
  return _vectors(levels * vocab_size, 9).reshape(levels, vocab_size, 2)


def _same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


@jax.jit
def _best(index, logits):
  """All items, best first, by a sum of logits [L, V]."""
  return beam_search(
    index,
    (),
    lambda context, level: logits[level],
    lambda context, token, level: context,
    beams=27,
  )


# Eight ids for eight SIDs. Their gaps are such that few capacities come up:
# each is compiled.
_IDS = (1, 2, 3, 4, 5, 6, 12, 20)
# (whether to add, ids of which those that fit are taken)
_CHANGES = st.lists(
  st.tuples(
    st.booleans(), st.lists(st.sampled_from(_IDS), max_size=6, unique=True)
  ),
  max_size=8,
)


class LivingTest(parameterized.TestCase):
  @settings(max_examples=12, deadline=None, derandomize=True, database=None)
  @given(changes=_CHANGES, capacity=st.sampled_from([None, 10]))
  @pytest.mark.slow
  def test_any_changes_against_a_dictionary(self, changes, capacity):
    """As many ids as SIDs, so that the space gets full."""
    codebooks = _codebooks(3, 2)
    logits = np.random.default_rng(0).normal(size=(3, 2)).astype("f")
    every = _all_sids(3, 2)
    index = trie.build_index(every[[5, 2, 3]], 2, capacity=capacity)
    sids = {1: tuple(every[5]), 2: tuple(every[2]), 3: tuple(every[3])}
    active = {1, 2, 3}
    for number, (add, ids) in enumerate(changes):
      old = index
      before = jax.tree.map(np.array, old)
      if add:
        ids = [i for i in ids if i not in active]
        x = _vectors(len(ids), number)
        index = trie.add_items(index, ids, codebooks, x)
        active |= set(ids)
        new = [i for i in ids if i not in sids]
        given_sids = np.asarray(sid_index.sid_of(index, np.asarray(new, int)))
        sids |= {i: tuple(s) for i, s in zip(new, given_sids, strict=True)}
      else:
        ids = [i for i in ids if i in active]
        index = trie.remove_items(index, ids)
        active -= set(ids)
      _same(old, before)  # Nothing was changed in place.

      self.assertLen(set(sids.values()), len(sids))
      self.assertEqual(index.num_items, max(sids))
      self.assertGreaterEqual(index.capacity, max(sids))
      everyone = np.arange(index.capacity + 1)
      np.testing.assert_array_equal(
        sid_index.sid_of(index, everyone),
        [sids.get(i, (-1, -1, -1)) for i in everyone],
      )
      of_sid = {sids[i]: i for i in active}
      np.testing.assert_array_equal(
        _lookup(index, every), [of_sid.get(tuple(s), 0) for s in every]
      )
      score = {i: sum(logits[range(3), sids[i]]) for i in active}
      found = _best(index, logits)
      self.assertEqual(
        np.asarray(found.items)[np.asarray(found.valid)].tolist(),
        sorted(active, key=lambda i: -score[i]),
      )

  @parameterized.parameters((2, 70, 900), (3, 12, 1200), (1, 300, 260))
  def test_many_changes_equal_one_build(self, levels, vocab_size, items):
    """Array for array, with several words a node and all capacities equal."""
    rng = np.random.default_rng(0)
    codebooks = _codebooks(levels, vocab_size)
    x = _vectors(items, 1)
    index = trie.build_index(np.zeros((0, levels), int), vocab_size)
    ids = rng.permutation(items) + 1
    for some in np.split(ids, [1, 3, 90, 100]):
      index = trie.add_items(index, some, codebooks, x[some - 1])
      index = trie.remove_items(index, some[::2])
      index = trie.add_items(index, some[::4], codebooks, x[some[::4] - 1])
    active = np.asarray(index.active)[1 : items + 1]
    self.assertBetween(active.sum(), items // 2, items - items // 5)
    tokens = np.asarray(sid_index.sid_of(index, np.arange(1, items + 1)))
    _same(
      index,
      trie.build_index(tokens, vocab_size, active, index.capacity),
    )

  def test_newcomers_are_encoded(self):
    """To their nearest SIDs where those are free, in the order given."""
    codebooks = np.asarray([[[0.0], [10.0]], [[0.0], [1.0]]], "f")
    index = trie.build_index([[0, 0]], 2, capacity=4)
    index = trie.add_items(index, [4, 2, 3], codebooks, [[11.0], [0.9], [9.8]])
    np.testing.assert_array_equal(
      sid_index.sid_of(index, np.arange(1, 5)),
      [[0, 0], [0, 1], [1, 0], [1, 1]],
    )

  def test_an_id_keeps_its_sid(self):
    codebooks = _codebooks(2, 8)
    index = trie.build_index([[7, 7], [0, 0]], 8)
    index = trie.remove_items(index, [1])
    # Neither of its vector now, nor of one that would like its SID.
    x = np.repeat(codebooks[:1, 7] + codebooks[1:, 7], 3, 0)
    index = trie.add_items(index, [3, 4, 5], codebooks, x)
    self.assertNotIn([7, 7], sid_index.sid_of(index, jnp.arange(2, 6)).tolist())
    index = trie.add_items(index, [1], codebooks, np.full((1, 2), np.nan))
    self.assertEqual(sid_index.sid_of(index, 1).tolist(), [7, 7])
    self.assertEqual(sid_index.lookup(index, jnp.asarray([7, 7])), 1)

  def test_only_a_new_capacity_is_traced(self):
    traces = []

    @jax.jit
    def search(index):
      traces.append(index.capacity)
      return _best.__wrapped__(index, jnp.zeros((3, 5))).items

    codebooks = _codebooks(3, 5)
    index = trie.build_index(_all_sids(3, 5)[:4], 5, capacity=8)
    for item in range(5, 36):
      index = trie.add_items(index, [item], codebooks, _vectors(1, item))
      self.assertIn(item, search(index))
      if item % 3 == 0:
        index = trie.remove_items(index, [item])
        self.assertNotIn(item, search(index))
    self.assertEqual(traces, [8, 16, 32, 64])
    # An id far ahead sets the capacity itself.
    index = trie.add_items(index, [500], codebooks, _vectors(1, 0))
    self.assertEqual((index.capacity, index.num_items), (500, 500))
    self.assertEqual(sid_index.sid_of(index, 400).tolist(), [-1, -1, -1])

  @parameterized.named_parameters(
    ("active", dict(items=[4, 2]), "item 2 is active"),
    ("twice", dict(items=[5, 5]), "item 5 is there twice"),
    ("zero", dict(items=[4, 0]), "item 0; expected ids from 1"),
    ("huge", dict(items=[4, 2**31 - 1]), "item 2147483647; expected ids"),
    ("floats", dict(items=[4.0, 5.0]), "float64"),
    ("rows", dict(x=np.zeros((3, 2))), r"\[3, 2\] for 2 items.*\[2, 2\]"),
    ("width", dict(x=np.zeros((2, 5))), r"\[2, 5\] for 2 items.*\[2, 2\]"),
    ("levels", dict(codebooks=np.zeros((3, 4, 2))), r"\[3, 4, 2\].*\[2, 4, w"),
    ("codes", dict(codebooks=np.zeros((2, 5, 2))), r"\[2, 5, 2\].*\[2, 4, w"),
    ("flat", dict(codebooks=np.zeros((2, 4))), r"\[2, 4\].*\[2, 4, width"),
    ("nan", dict(x=[[0, 0], [0, np.nan]]), "1 rows .* first of item 5"),
  )
  def test_refused_to_add(self, change, message):
    arguments = dict(items=[4, 5], codebooks=_codebooks(2, 4), x=_vectors(2, 0))
    index = trie.build_index([[0, 0], [1, 1], [2, 2]], 4)
    trie.add_items(index, **arguments)
    with self.assertRaisesRegex(ValueError, message):
      trie.add_items(index, **arguments | change)

  def test_a_full_space_takes_no_more(self):
    codebooks = _codebooks(2, 3)
    index = trie.build_index(_all_sids(2, 3)[:7], 3)
    index = trie.remove_items(index, [1])  # Its SID stays taken.
    index = trie.add_items(index, [8, 9], codebooks, _vectors(2, 0))
    with self.assertRaisesRegex(ValueError, "vocab_size 4 or levels 3"):
      trie.add_items(index, [10], codebooks, _vectors(1, 1))
    index = trie.add_items(index, [1], codebooks, _vectors(1, 1))
    self.assertEqual(np.asarray(index.active).sum(), 9)

  @parameterized.parameters(
    ([2], "item 2 is not active"),
    ([1, 4], "item 4 is not active"),
    ([9], "item 9 is not active"),
    ([1, 1], "item 1 is there twice"),
    ([0], "item 0; expected ids from 1"),
  )
  def test_refused_to_remove(self, items, message):
    tokens, active = [[0, 0], [1, 1], [2, 2]], np.asarray([True, False, True])
    index = trie.build_index(tokens, 4, active, capacity=6)
    with self.assertRaisesRegex(ValueError, message):
      trie.remove_items(index, items)

  def test_no_change_at_all(self):
    index = trie.build_index([[0, 0], [1, 1]], 4)
    _same(index, trie.remove_items(index, []))
    nothing = np.zeros((0, 2))
    _same(index, trie.add_items(index, [], _codebooks(2, 4), nothing))


class FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / "index.npz"
    tokens, active = _space(2, 70, 20, 5)
    index = trie.build_index(tokens, 70, active, capacity=25)
    self.index = trie.add_items(index, [24], _codebooks(2, 70), _vectors(1, 0))

  def test_round_trip(self):
    store.save_index(self.path, self.index)
    loaded = store.load_index(str(self.path))
    self.assertEqual(jax.tree.structure(loaded), jax.tree.structure(self.index))
    _same(loaded, self.index)

  def test_damage_is_one_line(self):
    store.save_index(self.path, self.index)
    data = self.path.read_bytes()
    middle = len(data) // 2  # Among the tokens.
    flipped = bytearray(data)
    flipped[data.index(self.index.sids[1:21].tobytes())] ^= 1
    for damaged in (b"", data[:100], data[:middle], data[:-1], bytes(flipped)):
      self.path.write_bytes(damaged)
      with self.assertRaisesRegex(ValueError, r"^.*index\.npz is no .*\.?$"):
        store.load_index(self.path)

  @parameterized.parameters(
    (dict(format=2), "format 2, expected 1"),
    (dict(capacity=3), "capacity 3"),
    (dict(vocab_size=9), "expected tokens from 0 to 8"),
    (dict(items=np.full(21, 2)), "item 2 is there twice"),
    (dict(items=np.arange(1, 8)), "active has the shape"),
    (dict(tokens=np.zeros((21, 2), int)), "share the SID"),
  )
  def test_contents_are_checked(self, change, message):
    store.save_index(self.path, self.index)
    with np.load(self.path) as arrays:
      contents = dict(arrays)
    np.savez(self.path, **contents | change)
    with self.assertRaisesRegex(ValueError, message):
      store.load_index(self.path)

  def test_another_array_file(self):
    with self.path.open("wb") as file:
      np.save(file, np.arange(3))
    with self.assertRaisesRegex(ValueError, "save_index wrote"):
      store.load_index(self.path)

  def test_missing(self):
    with self.assertRaises(FileNotFoundError):
      store.load_index(self.path)

  def test_a_failed_write_leaves_the_old_file(self):
    store.save_index(self.path, self.index)
    other = trie.remove_items(self.index, [24])
    with (
      mock.patch.object(files.os, "fsync", side_effect=OSError(28, "full")),
      self.assertRaisesRegex(OSError, "full"),
    ):
      store.save_index(self.path, other)
    self.assertEqual(
      [p.name for p in self.path.parent.iterdir()], ["index.npz"]
    )
    _same(store.load_index(self.path), self.index)


if __name__ == "__main__":
  absltest.main()
