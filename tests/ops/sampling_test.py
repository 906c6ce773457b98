from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from scipy import stats

from hsrl_jax.ops import sampling


class BitsTest(parameterized.TestCase):
  """The draws are judged by their distribution: the generator is our own."""

  def _keys(self, count):
    """Keys as the training loop makes them: neighbours of one another."""
    fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return fold_in(jax.random.key(0), jnp.arange(count))

  def test_every_bit_is_fair_and_independent_of_the_others(self):
    words = np.asarray(
      jax.vmap(lambda k: sampling.bits(k, 500))(self._keys(40))
    )
    self.assertEqual(words.dtype, np.uint32)
    bits = (words.ravel()[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    limit = 5 / np.sqrt(len(bits))  # Five standard deviations.
    signs = 2.0 * bits - 1
    self.assertLess(np.abs(signs.mean(0)).max(), limit)
    between = signs.T @ signs / len(signs) - np.eye(32)
    self.assertLess(np.abs(between).max(), limit)
    # One position against the next, and one key against the next.
    across = signs.reshape(40, 500, 32)
    for one, other in (
      (across[:, 1:], across[:, :-1]),
      (across[1:], across[:-1]),
    ):
      between = np.einsum("abi,abj->ij", one, other) / one[..., 0].size
      self.assertLess(np.abs(between).max(), limit)

  def test_no_word_twice(self):
    """All positions of one key differ, since the mixer is a bijection."""
    words = np.asarray(sampling.bits(jax.random.key(5), 100_000))
    self.assertLen(np.unique(words), 100_000)

  def test_uniform(self):
    draws = jax.vmap(lambda k: sampling.uniform(k, (10, 50)))(self._keys(100))
    self.assertEqual(draws.shape, (100, 10, 50))
    draws = np.asarray(draws)
    self.assertGreater(stats.kstest(draws.ravel(), "uniform").pvalue, 1e-3)
    # Within one position, over keys.
    self.assertGreater(stats.kstest(draws[:, 3, 7], "uniform").pvalue, 1e-3)

  def test_normal(self):
    draws = jax.vmap(lambda k: sampling.normal(k, (10, 50)))(self._keys(100))
    draws = np.asarray(draws)
    self.assertGreater(stats.kstest(draws.ravel(), "norm").pvalue, 1e-3)
    self.assertGreater(stats.kstest(draws[:, 3, 7], "norm").pvalue, 1e-3)

  @parameterized.parameters(0, 2**32 - 1)
  def test_extreme_words_stay_inside(self, word):
    words = jnp.full(3, word, jnp.uint32)
    with mock.patch.object(sampling, "bits", lambda key, count: words):
      draws = np.asarray(sampling.uniform(None, (3,)))
      noise = np.asarray(sampling.gumbel(None, (3,)))
      normal = np.asarray(sampling.normal(None, (3,)))
    self.assertTrue(((draws > 0) & (draws < 1)).all())
    self.assertTrue(np.isfinite(noise).all())
    np.testing.assert_allclose(np.abs(normal), 5.295, atol=1e-2)

  def test_gumbel(self):
    noise = np.asarray(sampling.gumbel(jax.random.key(1), (40_000,)))
    self.assertGreater(stats.kstest(noise, "gumbel_r").pvalue, 1e-3)

  @parameterized.parameters("threefry2x32", "rbg")
  def test_split(self, impl):
    keys = sampling.split(jax.random.key(2, impl=impl), 300)
    self.assertEqual(keys.shape, (300,))
    self.assertEqual(keys.dtype, jax.random.key(0, impl=impl).dtype)
    self.assertLen(np.unique(jax.random.key_data(keys), axis=0), 300)
    draws = np.asarray(jax.vmap(jax.random.uniform)(keys))
    self.assertGreater(stats.kstest(draws, "uniform").pvalue, 1e-3)


class IndexTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 7)
  def test_uniform(self, count):
    draws = sampling.index(jax.random.key(0), count, (7000,))
    self.assertEqual(draws.dtype, jnp.int32)
    counts = np.bincount(draws, minlength=count)
    self.assertLen(counts, count)
    self.assertEqual(counts.sum(), 7000)
    if count > 1:
      self.assertGreater(stats.chisquare(counts).pvalue, 1e-3)

  def test_largest_count(self):
    count = 2**24
    draws = np.asarray(sampling.index(jax.random.key(0), count, (100_000,)))
    self.assertBetween(draws.min(), 0, count // 1000)
    self.assertBetween(draws.max(), count - count // 1000, count - 1)
    self.assertGreater(stats.kstest(draws / count, "uniform").pvalue, 1e-3)

  @parameterized.parameters(2**24 - 3, 2**17 + 1)
  def test_all_values_of_a_large_count_can_come(self, count):
    self._all_can_come(count)

  @parameterized.parameters(2**24, 2**23 + 1)
  @pytest.mark.slow
  def test_all_values_of_other_large_counts_can_come(self, count):
    self._all_can_come(count)

  def _all_can_come(self, count):
    """Each value has a word that yields it, the first of its share."""
    first = -(-(np.arange(count, dtype=np.int64) << 32) // count)
    words = jnp.asarray(first.astype(np.uint32))
    with mock.patch.object(sampling, "bits", lambda key, n: words):
      found = np.asarray(sampling.index(None, count, (count,)))
    np.testing.assert_array_equal(found, np.arange(count))

  @parameterized.parameters(7, 5000, 2**17, 2**17 + 1, 2**24, 2**31 - 1)
  def test_extreme_words_are_the_first_and_the_last_value(self, count):
    words = jnp.array([0, 2**32 - 1], jnp.uint32)
    with mock.patch.object(sampling, "bits", lambda key, n: words):
      found = sampling.index(None, count, (2,))
    np.testing.assert_array_equal(found, [0, count - 1])

  def test_rounding_up_stays_in_range(self):
    """The largest draw times the count may round to the count itself."""
    np.testing.assert_array_equal(sampling.index_of(jnp.ones(2), 5), [4, 4])

  def test_traced_count_and_key(self):
    f = jax.jit(sampling.index, static_argnames="shape")
    found = f(jax.random.key(3), jnp.int32(5), shape=(2, 3))
    self.assertEqual(found.shape, (2, 3))
    expected = sampling.index(jax.random.key(3), 5, (2, 3))
    np.testing.assert_array_equal(found, expected)
    other = sampling.index(jax.random.key(4), 5, (2, 3))
    self.assertFalse(np.array_equal(found, other))


if __name__ == "__main__":
  absltest.main()
