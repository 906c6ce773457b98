"""Unique SIDs against brute force over permutations."""

import itertools
import re
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.sid import quantizer, resolve
from tests.sid.stream import Stream


def _codebooks(levels, vocab_size, seed=0):
  rng = np.random.default_rng(seed)
  scale = 0.3 ** np.arange(levels)[:, None, None]
  return (scale * rng.normal(size=(levels, vocab_size, 3))).astype("f")


def _vectors(rows, seed=1):
  return np.random.default_rng(seed).normal(size=(rows, 3)).astype("f")


def _num_distinct(tokens):
  return len({tuple(row) for row in tokens.tolist()})


class EncodeUniqueTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 40, 38),
    (1, 40, 40),
    (2, 8, 30),
    (2, 8, 61),  # 95 % full.
    (2, 8, 64),
    (3, 5, 119),
    (3, 5, 125),
    (4, 3, 81),
  )
  def test_distinct_up_to_a_full_space(self, levels, vocab_size, rows):
    codebooks, x = _codebooks(levels, vocab_size), _vectors(rows)
    plain = np.asarray(quantizer.encode(codebooks, x))
    self.assertLess(_num_distinct(plain), rows)  # There is work to do.
    tokens = resolve.encode_unique(codebooks, x)
    self.assertEqual(tokens.shape, (rows, levels))
    self.assertEqual(_num_distinct(tokens), rows)
    self.assertBetween(tokens.min(), 0, vocab_size - 1)
    self.assertBetween(tokens.max(), 0, vocab_size - 1)
    np.testing.assert_array_equal(tokens, resolve.encode_unique(codebooks, x))

  def test_plain_encoding_where_nothing_collides(self):
    codebooks, x = _codebooks(3, 8), _vectors(200)
    plain = np.asarray(quantizer.encode(codebooks, x))
    _, first = np.unique(plain, axis=0, return_index=True)
    self.assertGreater(len(first), 20)
    np.testing.assert_array_equal(
      resolve.encode_unique(codebooks, x[first]), plain[first]
    )

  def test_only_colliding_groups_differ_from_plain(self):
    codebooks, x = _codebooks(2, 8), _vectors(20)
    plain = np.asarray(quantizer.encode(codebooks, x))
    # No first token is wanted by more items than there is room for.
    self.assertLessEqual(np.bincount(plain[:, 0]).max(), 8)
    tokens = resolve.encode_unique(codebooks, x)
    np.testing.assert_array_equal(tokens[:, 0], plain[:, 0])
    groups = [plain[:, 0] == token for token in range(8)]
    free = [g for g in groups if _num_distinct(plain[g]) == g.sum() > 0]
    self.assertBetween(len(free), 1, 7)
    for group in free:
      np.testing.assert_array_equal(tokens[group], plain[group])

  @parameterized.parameters(1, 2, 3)
  def test_ten_equal_vectors(self, levels):
    x = np.repeat(_vectors(1), 10, 0)
    tokens = resolve.encode_unique(_codebooks(levels, 16), x)
    self.assertEqual(_num_distinct(tokens), 10)
    # All stay below the prefix that they share.
    self.assertEqual(_num_distinct(tokens[:, :-1]), 1)

  def test_last_level_has_least_total_error(self):
    """Against all assignments, of the vectors that share a prefix."""
    codebooks = _codebooks(2, 6)
    codebooks[0, 1:] += 100.0  # So all share the first token ...
    x = codebooks[0, 0] + 0.3 * _vectors(5)
    plain = np.asarray(quantizer.encode(codebooks, x))
    self.assertEqual(plain[:, 0].tolist(), [0] * 5)
    self.assertLess(_num_distinct(plain), 5)  # ... and some the second.

    def error(tokens):
      left = x - codebooks[0, 0] - codebooks[1, list(tokens)]
      return float((left.astype(np.float64) ** 2).sum())

    ranked = sorted(map(error, itertools.permutations(range(6), 5)))
    tokens = resolve.encode_unique(codebooks, x)
    self.assertAlmostEqual(error(tokens[:, 1]), ranked[0], places=6)
    self.assertGreater(ranked[1], ranked[0] + 1e-4)

  def test_who_loses_least_moves_where_room_is_short(self):
    """Against all choices of three out of nine that move."""
    # All nine want the code 1, below which there is room for six.
    codebooks = np.zeros((2, 6, 1), "f")
    codebooks[0, :, 0] = [1.0, -5.0, 90.0, 91.0, 92.0, 93.0]
    codebooks[1, :, 0] = np.arange(6) / 100
    x = np.random.default_rng(0).permutation(np.linspace(0, 4, 9))
    x = x.astype("f")[:, None]
    tokens = resolve.encode_unique(codebooks, x)

    def error(moved):
      codes = np.where(np.isin(np.arange(9), moved), -5.0, 1.0)
      return ((x[:, 0] - codes) ** 2).sum()

    best = min(itertools.combinations(range(9), 3), key=error)
    self.assertEqual(tuple(np.flatnonzero(tokens[:, 0])), best)


class TakenTest(parameterized.TestCase):
  @parameterized.parameters((1, 40, 10), (2, 8, 20), (3, 5, 60), (4, 3, 40))
  def test_rows_avoid_what_is_taken(self, levels, vocab_size, rows):
    """Also where the space gets full: all that is not taken is given out."""
    codebooks, space = _codebooks(levels, vocab_size), vocab_size**levels
    for seed, count in ((0, space - rows), (1, space // 3)):
      rng = np.random.default_rng(seed)
      taken = np.sort(rng.permutation(space)[:count])
      x = _vectors(rows)
      tokens = resolve.encode_unique(codebooks, x, taken=taken)
      numbers = np.ravel_multi_index(tokens.T, (vocab_size,) * levels)
      self.assertLen(np.unique(np.concatenate([numbers, taken])), rows + count)

  def test_one_by_one_below_a_full_prefix(self):
    """The next free token by distance, and then the next prefix."""
    codebooks = np.asarray([[[0.0], [10.0]], [[0.0], [1.0]]], "f")
    x, taken, given = np.asarray([[0.2]], "f"), [], []
    for _ in range(4):
      (tokens,) = resolve.encode_unique(codebooks, x, taken=np.sort(taken))
      given.append(tokens.tolist())
      taken.append(2 * tokens[0] + tokens[1])
    self.assertEqual(given, [[0, 0], [0, 1], [1, 0], [1, 1]])
    with self.assertRaisesRegex(ValueError, "5 items"):
      resolve.encode_unique(codebooks, x, taken=np.sort(taken))

  def test_numbers_past_63_bits(self):
    x = _vectors(3)
    with self.assertRaisesRegex(ValueError, "fewer than 2.63"):
      resolve.encode_unique(np.zeros((21, 8, 3), "f"), x)


class StreamTest(parameterized.TestCase):
  def test_pieces_change_nothing(self):
    """However few rows are read, held and compared at once."""
    codebooks, x = _codebooks(3, 6), _vectors(180)
    whole = resolve.encode_unique(codebooks, x)
    stream = Stream(x)
    with (
      mock.patch.object(quantizer, "_BATCH", 50),
      mock.patch.object(resolve, "_READ", 50),
      mock.patch.object(resolve, "_HELD", 30 * 3 * 4),
      mock.patch.object(resolve, "_TABLE", 40 * 6),
    ):
      tokens = resolve.encode_unique(codebooks, stream)
    self.assertEqual(stream.largest, 50)
    np.testing.assert_array_equal(tokens, whole)

  def test_same_sids_whatever_the_devices(self):
    x = _vectors(400)

    def sids(devices):
      codebooks = quantizer.fit(
        jax.random.key(0), x, levels=3, vocab_size=8, devices=devices
      )
      return resolve.encode_unique(codebooks, x)

    np.testing.assert_array_equal(sids(jax.devices()[:1]), sids(jax.devices()))

  def test_rows_that_are_not_finite(self):
    x = _vectors(20)
    x[3] = np.nan
    for levels in (1, 2):
      with self.assertRaises(ValueError):
        resolve.encode_unique(_codebooks(levels, 20 if levels == 1 else 5), x)


class CapacityTest(parameterized.TestCase):
  @parameterized.parameters(
    (10, 1, 9),
    (65, 2, 8),
    (126, 3, 5),
    (125, 3, 4),  # 125^(1/3) is below 5 in floating point.
    (1000, 3, 9),
    (1001, 3, 2),
    (59_050, 10, 2),
  )
  def test_names_the_smallest_sizes(self, num_items, levels, vocab_size):
    with self.assertRaises(ValueError) as caught:
      resolve.check_capacity(num_items, levels, vocab_size)
    message = str(caught.exception)
    self.assertIn(f"{num_items} items", message)
    self.assertIn(f"{vocab_size**levels} SIDs", message)
    advice = re.search(r"use vocab_size (\d+) or levels (\d+)", message)
    vocab, depth = map(int, advice.groups())
    self.assertEqual(
      vocab, next(v for v in itertools.count(2) if v**levels >= num_items)
    )
    self.assertEqual(
      depth, next(l for l in itertools.count(1) if vocab_size**l >= num_items)
    )
    resolve.check_capacity(num_items, levels, vocab)
    resolve.check_capacity(num_items, depth, vocab_size)

  def test_exact_fit_is_enough(self):
    resolve.check_capacity(64, 2, 8)
    with self.assertRaises(ValueError):
      resolve.check_capacity(65, 2, 8)

  def test_encode_refuses_too_many(self):
    with self.assertRaisesRegex(ValueError, "vocab_size 4 or levels 4"):
      resolve.encode_unique(_codebooks(2, 2), _vectors(16))


if __name__ == "__main__":
  absltest.main()
