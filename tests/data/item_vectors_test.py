"""Item vectors against dense algebra, scikit-learn and cases by hand."""

import numpy as np
from absl.testing import absltest, parameterized
from sklearn.feature_extraction.text import TfidfVectorizer

from hsrl_jax.data import item_vectors
from hsrl_jax.types import Sessions


class InteractionsTest(absltest.TestCase):
  def test_cosines_of_the_damped_matrix(self):
    rng = np.random.default_rng(0)
    matrix = (rng.random((30, 12)) < 0.3).astype(float)
    matrix[:, 4] = 0  # Nobody liked item 5.
    matrix[7] = 0  # User 7 liked nothing.
    user, item = np.nonzero(matrix)
    made = item_vectors.of_interactions(3 * user, item + 1, 12, 64)
    by_user, by_item = matrix.sum(1, keepdims=True), matrix.sum(0)
    scale = np.where(matrix > 0, by_user * by_item, 1) ** -0.5
    columns = matrix * scale
    length = np.linalg.norm(columns, axis=0)
    columns = columns / np.where(length > 0, length, 1)
    np.testing.assert_allclose(made @ made.T, columns.T @ columns, atol=1e-5)
    self.assertFalse(made[4].any())

  def test_few_dimensions_find_the_groups(self):
    """Two groups of users with items of their own, in two dimensions."""
    rng = np.random.default_rng(1)
    user = rng.integers(0, 200, 3_000)
    item = 2 * rng.integers(0, 20, 3_000) + user % 2 + 1
    pairs = np.unique(np.stack([user, item], 1), axis=0)
    made = item_vectors.of_interactions(pairs[:, 0], pairs[:, 1], 40, 2)
    self.assertEqual(made.shape, (40, 2))
    likeness = made @ made.T
    same = np.equal.outer(np.arange(40) % 2, np.arange(40) % 2)
    self.assertGreater(likeness[same].min(), 0.9)
    self.assertLess(np.abs(likeness[~same]).max(), 0.1)

  def test_nothing_liked(self):
    none = np.zeros(0, int)
    made = item_vectors.of_interactions(none, none, 5, 4)
    self.assertEqual(made.shape, (5, 0))

  def test_positives_by_hand(self):
    train = Sessions(
      user_id=np.array([3, 1, 3]),
      profile=np.zeros((3, 0)),
      history=np.array([[0, 2], [0, 0], [2, 5]]),
      exposed=np.array([[4, 5], [1, 2], [6, 7]]),
      response=np.array([[0, 1], [1, 0], [0, 1]]),
    )
    user, item = item_vectors.positives(train)
    pairs = list(zip(user.tolist(), item.tolist(), strict=True))
    self.assertEqual(pairs, [(1, 1), (3, 2), (3, 5), (3, 7)])


class WordsTest(absltest.TestCase):
  def test_cosines_of_tf_idf(self):
    texts = {
      "title": ["Green tea", "Black Tea", "Rye bread", "", "Tea"],
      "brand": ["Tea Co", "tea co", "", "", "Bread & Co"],
    }
    made = item_vectors.of_words(texts, 64)
    tokens = [
      {"title=green tea", "title=green", "title=tea"}
      | {"brand=tea co", "brand=tea", "brand=co"},
      {"title=black tea", "title=black", "title=tea"}
      | {"brand=tea co", "brand=tea", "brand=co"},
      {"title=rye bread", "title=rye", "title=bread"},
      set(),
      {"title=tea", "brand=bread & co", "brand=bread", "brand=co"},
    ]
    expected = TfidfVectorizer(analyzer=list).fit_transform(tokens)
    np.testing.assert_allclose(
      made @ made.T, (expected @ expected.T).toarray(), atol=1e-5
    )

  def test_nothing_to_read(self):
    self.assertEqual(item_vectors.of_words({}, 4).size, 0)
    self.assertEqual(item_vectors.of_words({"title": ["", ""]}, 4).shape[1], 0)


class BlocksTest(parameterized.TestCase):
  def test_blocks_weigh_the_same(self):
    rng = np.random.default_rng(0)
    wide, long = rng.normal(size=(50, 8)), 1e4 * rng.normal(size=(50, 2))
    wide[:20] = 0  # Items that the block knows nothing of.
    joined = item_vectors.join([wide, long])
    square = (joined.astype(float) ** 2).sum(0)
    np.testing.assert_allclose(square[:8].sum() / 30, 1, rtol=1e-5)
    np.testing.assert_allclose(square[8:].sum() / 50, 1, rtol=1e-5)
    self.assertFalse(joined[:20, :8].any())

  def test_columns_by_numpy(self):
    rng = np.random.default_rng(0)
    columns = rng.normal(5, [1e-3, 1, 1e6], (40, 3))
    columns[3, 1] = columns[7, 1] = np.nan
    columns = np.concatenate([columns, np.full((40, 1), 0.1)], 1)
    made = item_vectors.standardised(columns)
    expected = (columns - np.nanmean(columns, 0)) / np.nanstd(columns, 0)
    expected[np.isnan(expected)] = 0
    np.testing.assert_allclose(made[:, :3], expected[:, :3], atol=1e-9)
    self.assertFalse(made[:, 3].any())

  def test_lengths_with_a_heavy_tail_become_one(self):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 8))
    same, notes = item_vectors.tamed(rows)
    self.assertIs(same, rows)
    self.assertEmpty(notes)
    heavy = rows * rng.lognormal(sigma=1.0, size=(500, 1))
    heavy[9] = 0
    # 99 % of a lognormal lie below exp(2.33), of this product a bit above.
    self.assertBetween(item_vectors.tail(heavy), 7, 20)
    made, (note,) = item_vectors.tamed(heavy)
    self.assertIn("brought to length one (99th percentile", note)
    direction = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    direction[9] = 0
    np.testing.assert_allclose(made, direction, atol=1e-6)
    kept, (note,) = item_vectors.tamed(heavy, normalise=False)
    self.assertIs(kept, heavy)
    self.assertIn("heavy-tailed", note)
    made, _ = item_vectors.tamed(rows, normalise=True)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-6)

  def test_a_few_rows_have_no_tail(self):
    self.assertEqual(item_vectors.tail(np.array([[1.0], [1.0], [50.0]])), 1)


if __name__ == "__main__":
  absltest.main()
