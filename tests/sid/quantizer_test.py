"""Residual k-means against scikit-learn and brute force."""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from hsrl_jax.sid import kmeans, quantizer
from tests.sid.stream import Stream


def _gaussian(rows, columns, seed=0):
  return np.random.default_rng(seed).normal(size=(rows, columns)).astype("f")


def _fit(x, levels, vocab_size, seed=0, **kwargs):
  """On one device, which is faster for little data; see DevicesTest."""
  return quantizer.fit(
    jax.random.key(seed),
    x,
    levels=levels,
    vocab_size=vocab_size,
    devices=jax.devices()[:1],
    **kwargs,
  )


def _mean_error(codebooks, x):
  _, residual = _brute_force_tokens(np.asarray(codebooks), x)
  return (residual**2).sum(1).mean()


def _brute_force_tokens(codebooks, x):
  residual, tokens = x.astype(np.float64), []
  for codes in codebooks.astype(np.float64):
    distance = ((residual[:, None] - codes[None]) ** 2).sum(-1)
    tokens.append(distance.argmin(1))
    residual = residual - codes[tokens[-1]]
  return np.stack(tokens, 1), residual


def _kmeans_residual(x, vocab_size, seed):
  kmeans = KMeans(vocab_size, n_init=8, max_iter=30, random_state=seed)
  # Its threads and those of jax would wait for each other's cores.
  with threadpool_limits(1):
    kmeans.fit(x)
  return x - kmeans.cluster_centers_[kmeans.labels_]


class FitTest(parameterized.TestCase):
  def test_recovers_separable_clusters(self):
    rng = np.random.default_rng(0)
    centers = 20.0 * np.eye(5, 4, dtype="f")  # The fifth is the origin.
    label = np.arange(200) % 5
    x = (centers[label] + rng.normal(size=(200, 4))).astype("f")
    means = np.stack([x[label == c].mean(0) for c in range(5)])

    (codes,) = np.asarray(_fit(x, 1, 5))

    order = ((means[:, None] - codes[None]) ** 2).sum(-1).argmin(1)
    self.assertCountEqual(order, range(5))
    np.testing.assert_allclose(codes[order], means, atol=1e-4)

  def test_error_is_that_of_residual_sklearn(self):
    """Of each level and in total, averaged over the luck of the seeding."""
    level_ratios, total_ratios = [], []
    for seed in range(5):
      x = _gaussian(300, 4, seed)
      codebooks = np.asarray(_fit(x, 3, 8, seed, restarts=8, iterations=30))
      ours = theirs = x.astype(np.float64)
      for level in range(3):
        alone = _kmeans_residual(ours, 8, seed)
        theirs = _kmeans_residual(theirs, 8, seed)
        _, ours = _brute_force_tokens(codebooks[: level + 1], x)
        level_ratios.append((ours**2).sum() / (alone**2).sum())
        total_ratios.append((ours**2).sum() / (theirs**2).sum())
    ratios = np.reshape(level_ratios + total_ratios, (2, 5, 3)).mean(1)
    self.assertLessEqual(ratios.max(), 1.02, ratios)

  @pytest.mark.slow
  def test_restart_with_least_error_is_kept(self):
    x = _gaussian(60, 2)

    def errors(restarts):
      fitted = [_fit(x, 1, 6, s, restarts=restarts) for s in range(8)]
      return [
        (_brute_force_tokens(np.asarray(c), x)[1] ** 2).sum() for c in fitted
      ]

    one, many = errors(1), errors(16)
    self.assertGreater(max(one), 1.02 * min(one))  # Seeding does matter here.
    self.assertLess(max(many), np.median(one))

  def test_no_code_is_empty(self):
    for seed in range(8):
      x = _gaussian(40, 3, seed)
      tokens = quantizer.encode(_fit(x, 1, 16, seed, restarts=1), x)[:, 0]
      self.assertLen(np.unique(tokens), 16)

  def test_empty_codes_move_to_the_worst_fitted(self):
    x = np.asarray([[0.0], [1.0], [10.0], [30.0]], "f")
    mesh = kmeans.lane_mesh(None)
    block = kmeans.place(x, 4, 3, mesh)
    codes = jnp.asarray([[0.0], [99.0], [98.0]])
    lanes = kmeans._sum_rows(codes, block, 4, mesh=mesh)
    sums = kmeans._add(jax.device_get(lanes), None)
    state = kmeans.Codes(codes, jnp.zeros(3))
    codes = kmeans._step(state, sums, 1.0, 0.0).codes
    # All go to the code 0; the worst fitted are 30 and then 10.
    np.testing.assert_allclose(codes, [[41 / 4], [30.0], [10.0]])

  def test_as_many_codes_as_vectors_fit_exactly(self):
    x = _gaussian(12, 3)
    codes = np.asarray(_fit(x, 1, 12))[0]
    np.testing.assert_allclose(
      codes[np.lexsort(codes.T)], x[np.lexsort(x.T)], atol=1e-6
    )

  def test_fewer_distinct_vectors_than_codes(self):
    x = np.repeat(_gaussian(3, 2), 10, 0)
    codebooks = _fit(x, 2, 8)
    self.assertTrue(np.isfinite(codebooks).all())
    tokens = quantizer.encode(codebooks, x)
    np.testing.assert_allclose(
      quantizer.reconstruct(codebooks, tokens), x, atol=1e-5
    )

  def test_all_vectors_equal(self):
    codebooks = _fit(np.ones((30, 2), "f"), 2, 8)
    self.assertTrue(np.isfinite(codebooks).all())
    np.testing.assert_allclose(codebooks[0], 1.0)
    np.testing.assert_allclose(codebooks[1], 0.0)

  def test_key_decides(self):
    x = _gaussian(300, 4)
    first = _fit(x, 3, 8, 0, restarts=8)
    np.testing.assert_array_equal(first, _fit(x, 3, 8, 0, restarts=8))
    self.assertGreater(np.abs(first - _fit(x, 3, 8, 1, restarts=8)).max(), 1e-3)


class ManyRowsTest(parameterized.TestCase):
  """What little data does not reach: growing samples, batches, streams."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    x = _gaussian(40_000, 3)
    cls.x = x[np.argsort(x[:, 0])]  # So neighbours are alike.
    cls.whole = _fit(cls.x, 2, 16, restarts=2)

  def test_growing_sample_is_as_good_as_sklearn(self):
    kmeans = KMeans(16, n_init=2, random_state=0).fit(self.x)
    error = _mean_error(self.whole[:1], self.x)
    self.assertLess(error, 1.01 * kmeans.inertia_ / len(self.x))

  def test_stream_is_as_good_as_an_array(self):
    with mock.patch.object(quantizer, "_BATCH", 6_000):
      stream = Stream(self.x)
      streamed = _fit(stream, 2, 16, restarts=2)
    self.assertLessEqual(stream.largest, quantizer._RUN)
    self.assertLess(
      _mean_error(streamed, self.x), 1.02 * _mean_error(self.whole, self.x)
    )

  @parameterized.parameters(False, True)
  def test_batches_are_nearly_as_good(self, stream):
    x = Stream(self.x) if stream else self.x
    codebooks = _fit(x, 2, 16, restarts=2, batch_size=2_000)
    # By the key and the order of sums it is 1.035 to 1.063 times as much.
    self.assertLess(
      _mean_error(codebooks, self.x), 1.1 * _mean_error(self.whole, self.x)
    )

  @parameterized.parameters((1, 40_000), (7, 100), (256, 6_000))
  def test_batches_hold_each_row_once(self, run, size):
    with mock.patch.object(quantizer, "_RUN", run):
      batches = quantizer._batches(jax.random.key(0), 40_000, size, run == 1)
    rows = [np.concatenate([np.arange(*r) for r in batch]) for batch in batches]
    self.assertLessEqual(max(map(len, rows)), size)
    self.assertGreaterEqual(
      min(map(len, rows[:-1]), default=size), size - 2 * run
    )
    np.testing.assert_array_equal(
      np.sort(np.concatenate(rows)), np.arange(40_000)
    )

  def test_seeds_are_a_sample_of_all_rows(self):
    """Of a stream too, in which neighbours are alike."""
    batches = quantizer._batches(jax.random.key(0), 40_000, 40_000, False)
    sample = quantizer._read(Stream(self.x), batches[0])[:2_000]
    np.testing.assert_allclose(sample.mean(0), self.x.mean(0), atol=0.1)
    np.testing.assert_allclose(sample.std(0), self.x.std(0), atol=0.1)

  def test_encode_reads_a_stream_in_pieces(self):
    stream = Stream(self.x)
    with mock.patch.object(quantizer, "_BATCH", 7_000):
      tokens = quantizer.encode(self.whole, stream)
    self.assertEqual(stream.largest, 7_000)
    np.testing.assert_array_equal(
      tokens, quantizer.encode(self.whole, jnp.asarray(self.x))
    )


class DevicesTest(parameterized.TestCase):
  @parameterized.parameters(
    {},
    {"batch_size": 700},
    {"stream": True},
  )
  def test_bit_for_bit_on_one_and_more_devices(self, stream=False, **kwargs):
    self.assertEqual(jax.local_device_count(), 4)
    x = _gaussian(3_001, 5)  # Neither chunks nor lanes divide it.

    def fit(devices):
      with mock.patch.object(quantizer, "_BATCH", 1_000):
        return quantizer.fit(
          jax.random.key(0),
          Stream(x) if stream else x,
          levels=2,
          vocab_size=16,
          restarts=2,
          devices=devices,
          **kwargs,
        )

    one = fit(jax.devices()[:1])
    np.testing.assert_array_equal(one, fit(jax.devices()[:3]))
    np.testing.assert_array_equal(one, fit(None))

  def test_all_devices_are_used(self):
    block = kmeans.place(_gaussian(50, 3), 50, 8, kmeans.lane_mesh(None))
    self.assertLen(block.sharding.device_set, 4)
    shards = [np.asarray(s.data) for s in block.addressable_shards]
    self.assertEqual(sum(s.shape[1] for s in shards), 8)


class ResumeTest(absltest.TestCase):
  def test_goes_on_after_a_level(self):
    x, seen = _gaussian(500, 4), []
    whole = _fit(x, 3, 8, on_level=seen.append)
    self.assertEqual([len(c) for c in seen], [1, 2, 3])
    np.testing.assert_array_equal(seen[2], whole)
    for codebooks in seen:
      np.testing.assert_array_equal(codebooks, whole[: len(codebooks)])
      calls = []
      resumed = _fit(x, 3, 8, initial=codebooks, on_level=calls.append)
      np.testing.assert_array_equal(resumed, whole)
      self.assertLen(calls, 3 - len(codebooks))

  def test_of_batches(self):
    x, seen = _gaussian(500, 4), []
    whole = _fit(x, 2, 8, batch_size=100, on_level=seen.append)
    resumed = _fit(x, 2, 8, batch_size=100, initial=seen[0])
    np.testing.assert_array_equal(resumed, whole)


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"x": np.zeros(3, "f")}, r"shape \(3,\); expected \[N, D\]"),
    ({"x": np.zeros((0, 2), "f")}, "expected .* rows and columns"),
    ({"levels": 0}, "levels is 0"),
    ({"vocab_size": 1}, "vocab_size is 1; expected at least 2"),
    ({"iterations": 0}, "iterations is 0"),
    ({"restarts": 0}, "restarts is 0"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"initial": np.zeros((1, 4, 3))}, r"initial has shape \(1, 4, 3\)"),
    ({"initial": np.zeros((3, 4, 2))}, "at most 2 levels"),
  )
  def test_one_line(self, wrong, message):
    arguments = {
      "x": _gaussian(9, 2),
      "levels": 2,
      "vocab_size": 4,
    } | wrong
    with self.assertRaisesRegex(ValueError, message) as caught:
      quantizer.fit(jax.random.key(0), **arguments)
    self.assertNotIn("\n", str(caught.exception))


class EncodeTest(parameterized.TestCase):
  def test_equals_brute_force(self):
    codebooks, x = _gaussian(3 * 9, 4, 1).reshape(3, 9, 4), _gaussian(101, 4)
    tokens = quantizer.encode(codebooks, x)
    expected, residual = _brute_force_tokens(codebooks, x)
    np.testing.assert_array_equal(tokens, expected)
    self.assertEqual(tokens.dtype, jnp.int32)
    np.testing.assert_allclose(
      x - quantizer.reconstruct(codebooks, tokens), residual, atol=1e-5
    )

  def test_all_products_are_asked_for_in_float32(self):
    """A TPU or GPU would round the factors: other SIDs than on a CPU."""
    codebooks, x = np.zeros((2, 4, 3), np.float32), np.zeros((9, 3), np.float32)
    program = quantizer._encode.lower(codebooks, x).as_text()
    products = re.findall(r"dot_general.*", program)
    self.assertNotEmpty(products)
    for product in products:
      self.assertIn("[HIGHEST, HIGHEST]", product)

  def test_the_tokens_of_no_sid_are_no_vector(self):
    codebooks = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])
    tokens = jnp.array([[-1, -1], [1, -1]])
    np.testing.assert_array_equal(
      quantizer.reconstruct(codebooks, tokens), [[0.0], [3.0]]
    )

  def test_reconstruct_by_hand(self):
    codebooks = np.asarray([[[1, 2], [3, 4]], [[10, 20], [30, 40]]], "f")
    tokens = np.asarray([[[0, 1]], [[1, 0]]])
    np.testing.assert_array_equal(
      quantizer.reconstruct(codebooks, tokens), [[[31, 42]], [[13, 24]]]
    )

  @parameterized.parameters(1, 7, 100, 101, 200)
  def test_chunks_change_nothing(self, chunk):
    codebooks, x = _gaussian(2 * 9, 4, 1).reshape(2, 9, 4), _gaussian(101, 4)

    # A new function each time, or jax returns its trace with another chunk.
    def encode():
      return lambda c, x: quantizer._encode.__wrapped__(c, x)

    whole = str(jax.make_jaxpr(encode())(codebooks, x))
    with mock.patch.object(kmeans, "chunk_size", lambda *_: chunk):
      chunked = str(jax.make_jaxpr(encode())(codebooks, x))
      tokens = jax.jit(encode())(codebooks, x)
    if chunk < len(x):
      self.assertNotEqual(whole, chunked)
    np.testing.assert_array_equal(tokens, _brute_force_tokens(codebooks, x)[0])

  def test_nearest(self):
    codes, x = _gaussian(9, 4, 1), _gaussian(101, 4)
    nearest, distance = kmeans.nearest(x, codes)
    expected = ((x[:, None] - codes[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest, expected.argmin(1))
    np.testing.assert_allclose(distance, expected.min(1), atol=1e-5)

  @parameterized.parameters("_add_rows", "_add_rows_by_product")
  def test_sums_of_rows_by_code(self, name):
    x, code = _gaussian(101, 4), np.arange(101) % 9  # The code 8 is none.
    sums, sizes = _gaussian(8, 4, 1), np.arange(8, dtype="f")
    given = map(jnp.asarray, (sums, sizes, code, x))
    found = getattr(kmeans, name)(*given, 7)
    expected = [sums[v] + x[code == v].sum(0) for v in range(8)]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    counts = [np.count_nonzero(code == v) for v in range(8)]
    np.testing.assert_array_equal(found[1], sizes + counts)
    np.testing.assert_array_equal(found[2], x[7])

  def test_first_of_equal_codes(self):
    codes = np.asarray([[5.0], [1.0], [1.0]], "f")
    nearest, _ = kmeans.nearest(np.ones((2, 1), "f"), codes)
    np.testing.assert_array_equal(nearest, [1, 1])

  def test_relative_error_by_hand(self):
    x = np.asarray([[0.0, 0.0], [2.0, 4.0]], "f")
    other = np.asarray([[1.0, 0.0], [2.0, 2.0]], "f")
    # Mean (1, 2): spread 5 + 5; error 1 + 4.
    self.assertAlmostEqual(float(quantizer.relative_error(x, other)), 0.5)


if __name__ == "__main__":
  absltest.main()
