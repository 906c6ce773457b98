"""The quality of SIDs against brute force and scikit-learn."""

import itertools

import numpy as np
from absl.testing import absltest, parameterized
from sklearn.neighbors import NearestNeighbors

from hsrl_jax import sid
from hsrl_jax.data import embeddings
from hsrl_jax.evaluation import sid_quality
from hsrl_jax.evaluation.sid_quality import Size, recommend


def _random(seed, count=60, levels=3, vocab_size=5, width=4):
  rng = np.random.default_rng(seed)
  codebooks = rng.normal(size=(levels, vocab_size, width)).astype(np.float32)
  number = rng.choice(vocab_size**levels, count, replace=False)
  tokens = np.stack(np.unravel_index(number, (vocab_size,) * levels), 1)
  x = rng.normal(size=(count, width)).astype(np.float32) + 7
  return codebooks, tokens.astype(np.int32), x


class SidQualityTest(parameterized.TestCase):
  @parameterized.parameters(60, embeddings.BLOCK + 3)
  def test_errors_are_those_of_the_reconstruction(self, count):
    codebooks, tokens, x = _random(0, min(count, 100))
    rows = np.resize(x, (count, x.shape[1]))
    tokens = np.resize(tokens, (count, tokens.shape[1]))
    plain = np.asarray(sid.encode(codebooks, rows))
    seen = []
    found = sid_quality.errors(codebooks, rows, plain, tokens, seen.append)
    self.assertEqual(sum(seen), count)
    for level, error in enumerate(found["plain"], start=1):
      reconstructed = sid.reconstruct(codebooks[:level], plain[:, :level])
      self.assertAlmostEqual(
        sid_quality.relative(error, found["variance"]),
        float(sid.relative_error(rows, reconstructed)),
        places=4,
      )
    reconstructed = np.asarray(sid.reconstruct(codebooks, tokens))
    expected = np.square(rows - reconstructed).sum(1).mean()
    self.assertAlmostEqual(found["unique"] / expected, 1, places=4)

  def test_nothing_can_be_lost_of_equal_embeddings(self):
    codebooks, tokens, _ = _random(0, 10)
    x = np.full((10, 4), 3.3, np.float32)
    found = sid_quality.errors(codebooks, x, tokens, tokens)
    self.assertEqual(sid_quality.relative(1.0, found["variance"]), 0.0)

  def test_recall_equals_that_of_scikit_learn(self):
    codebooks, tokens, x = _random(1, 120)
    reconstructed = np.asarray(sid.reconstruct(codebooks, tokens))

    def nearest(rows):
      found = NearestNeighbors(n_neighbors=11).fit(rows).kneighbors(rows)[1]
      return found[:, 1:]  # The first is the row itself.

    kept = [
      len(set(a) & set(b))
      for a, b in zip(nearest(x), nearest(reconstructed), strict=True)
    ]
    found = sid_quality.recall(codebooks, x, tokens)
    self.assertAlmostEqual(found["recall"], np.mean(kept) / 10, places=2)
    self.assertEqual((found["queries"], found["among"]), (120, 120))

  def test_recall_is_1_without_error(self):
    codebooks, tokens, _ = _random(2, 50)
    x = np.asarray(sid.reconstruct(codebooks, tokens))
    self.assertEqual(sid_quality.recall(codebooks, x, tokens)["recall"], 1.0)

  @parameterized.parameters((1, None), (2, 1), (5, 4))
  def test_recall_in_a_small_catalogue(self, count, neighbours):
    codebooks, tokens, x = _random(3, count)
    found = sid_quality.recall(codebooks, x, tokens)
    self.assertEqual(found and found["neighbours"], neighbours)

  def test_occupancy_by_hand(self):
    tokens = np.array([[0, 0], [0, 1], [0, 3], [2, 1]])
    found = sid_quality.occupancy(tokens, 4)
    self.assertEqual(found["codes_used"], [2, 3])
    self.assertEqual(found["largest_code"], [3, 2])
    self.assertEqual(found["smallest_code"], [1, 1])
    # exp of the entropy of (3/4, 1/4) and of (1/4, 1/2, 1/4).
    np.testing.assert_allclose(
      found["perplexity"], [4 / 3**0.75, 2**1.5], rtol=1e-6
    )
    first, second = found["next_tokens"]
    self.assertEqual(first["prefixes"], 1)
    self.assertEqual((first["min"], first["max"]), (2, 2))
    self.assertEqual(second["prefixes"], 2)
    self.assertEqual((second["min"], second["max"]), (1, 3))
    self.assertEqual(second["mean"], 2.0)

  @parameterized.parameters(1, 2, 3, 4)
  def test_followers_equal_brute_force(self, levels):
    _, tokens, _ = _random(4, 4, levels, 5)
    rows = list(map(tuple, tokens.tolist()))
    for depth, counts in enumerate(sid_quality.followers(tokens, 5)):
      expected = [
        len({row[depth] for row in rows if row[:depth] == prefix})
        for prefix in itertools.product(range(5), repeat=depth)
      ]
      self.assertEqual(counts.tolist(), [x for x in expected if x])

  def test_collided_counts_all_who_share(self):
    plain = np.array([[0, 1], [2, 2], [0, 1], [0, 1], [2, 1], [2, 2]])
    self.assertEqual(sid_quality.collided(plain, 3), 5)

  def test_drift_adds_up(self):
    facts = {"drift": None, "variance": 2.0, "relative_error": [0.5, 0.1]}
    error = {"plain": [9.0, 0.2], "unique": 0.4}
    facts["drift"] = sid_quality.drift(facts, 10, error)
    self.assertFalse(facts["drift"]["refit_due"])
    error = {"plain": [9.0, 0.5], "unique": 0.8}
    facts["drift"] = sid_quality.drift(facts, 30, error)
    self.assertEqual(facts["drift"]["newcomers"], 40)
    # (10 x 0.1 + 30 x 0.25) / 40, and the same of the unique ones.
    self.assertAlmostEqual(facts["drift"]["relative_error"], 0.2125)
    self.assertAlmostEqual(facts["drift"]["relative_error_unique"], 0.35)
    self.assertTrue(facts["drift"]["refit_due"])


class RecommendTest(parameterized.TestCase):
  def test_the_smallest_loss_with_unique_sids(self):
    sizes = [
      Size(64, 2, 0.30, 0.50),
      Size(64, 3, 0.20, 0.35),
      Size(128, 3, 0.25, 0.30),
    ]
    # 64x3 loses least before SIDs are unique, 128x3 after.
    self.assertEqual(recommend(sizes), (sizes[2], []))
    self.assertEqual(recommend(sizes[::-1])[0], sizes[2])

  def test_of_equal_losses_the_smaller_space(self):
    sizes = [
      Size(8, 4, 0, 0.0),
      Size(64, 2, 0, 0.0),
      Size(256, 1, 0, 0.0),
    ]
    self.assertEqual(recommend(sizes)[0], sizes[2])
    # 16^2 = 256 SIDs too, with more tokens.
    self.assertEqual(
      recommend([Size(16, 2, 0, 0.0), *sizes])[0],
      sizes[2],
    )

  @parameterized.parameters((0.21, 0), (0.20, 0), (0.19, 1))
  def test_dear_unique_sids_are_warned_of(self, error, count):
    """Above half of 0.4."""
    size, warnings = recommend([Size(64, 3, error, 0.4)])
    self.assertEqual(size.levels, 3)
    self.assertLen(warnings, count)
    for line in warnings:
      self.assertIn("64x3: unique SIDs cost 21%", line)

  def test_worse_than_the_mean_is_refused(self):
    sizes = [
      Size(64, 3, 0.3, 1.39),
      Size(8, 2, 0.9, 1.0),
    ]
    size, (warning,) = recommend(sizes)
    self.assertEqual(size, sizes[1])
    self.assertIn("64x3 loses 139% of the variance", warning)
    self.assertEqual(recommend(sizes[:1]), (None, [warning]))

  def test_an_empty_sweep(self):
    self.assertEqual(recommend([]), (None, []))


if __name__ == "__main__":
  absltest.main()
