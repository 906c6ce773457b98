from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from hsrl_jax.ops import sampling


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

  def test_rounding_up_stays_in_range(self):
    """The largest draw times the count may round to the count itself."""
    with mock.patch.object(jax.random, "uniform", lambda key, s: jnp.ones(s)):
      np.testing.assert_array_equal(sampling.index(None, 5, (2,)), [4, 4])

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
