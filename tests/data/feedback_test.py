"""Sampled negatives and the probabilities that are made of them."""

import itertools

import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize, special

from hsrl_jax.data import feedback


class SamplingTest(parameterized.TestCase):
  def test_distributions_by_hand(self):
    positives = np.array([2, 2, 2, 4])
    np.testing.assert_allclose(
      feedback.sampling_probabilities(positives, 4, "uniform"),
      [0, 1 / 4, 1 / 4, 1 / 4, 1 / 4],
    )
    np.testing.assert_allclose(
      feedback.sampling_probabilities(positives, 4, "popularity"),
      [0, 1 / 8, 4 / 8, 1 / 8, 2 / 8],
    )

  def test_slates_follow_sampling_without_replacement(self):
    """Against the probabilities of all ordered pairs."""
    sampling = np.array([0, 0.5, 0.2, 0.1, 0.15, 0.05])
    rows, positive, liked = 40_000, 4, 3
    allowed = [1, 2, 5]
    expected = np.zeros(6)
    total = sampling[allowed].sum()
    for a, b in itertools.permutations(allowed, 2):
      p = sampling[a] / total * sampling[b] / (total - sampling[a])
      expected[[a, b]] += p
    drawn = feedback.draw_negatives(
      np.random.default_rng(0),
      sampling,
      np.full(rows, 7),
      np.full(rows, positive),
      (np.array([7, 8]), np.array([liked, 1])),
      2,
    )
    share = np.bincount(drawn.ravel(), minlength=6) / rows
    np.testing.assert_allclose(share, expected, atol=0.01)
    self.assertTrue((drawn[:, 0] != drawn[:, 1]).all())

  def test_never_what_the_user_liked(self):
    rng = np.random.default_rng(1)
    user, item = rng.integers(0, 5, 300), rng.integers(1, 31, 300)
    liked = (user[:100], item[:100])
    sampling = feedback.sampling_probabilities(item, 30, "popularity")

    def draw(seed):
      generator = np.random.default_rng(seed)
      return feedback.draw_negatives(generator, sampling, user, item, liked, 4)

    drawn = draw(2)
    pairs = set(zip(*map(np.ndarray.tolist, liked), strict=True))
    for u, i, row in zip(user, item, drawn.tolist(), strict=True):
      self.assertLen(set(row) - {0, i}, 4)
      self.assertNoCommonElements({(u, j) for j in row}, pairs)
    np.testing.assert_array_equal(drawn, draw(2))
    self.assertTrue((drawn != draw(3)).any())

  def test_all_that_is_left_even_where_it_is_hardly_ever_drawn(self):
    sampling = np.array([0, 1 - 2e-9, 1e-9, 1e-9])
    drawn = feedback.draw_negatives(
      np.random.default_rng(0),
      sampling,
      np.array([0, 0, 1]),
      np.array([1, 2, 2]),
      (np.array([0]), np.array([1])),
      2,
    )
    # User 0 likes item 1, so that beside item 2 one item is left.
    self.assertEqual(set(drawn[0]), {2, 3})
    self.assertEqual(drawn[1].tolist(), [0, 0])
    self.assertEqual(set(drawn[2]), {1, 3})


class ProbabilityTest(parameterized.TestCase):
  @parameterized.parameters(1, 9)
  def test_of_a_world_whose_likes_are_known(self, per_positive):
    """Odds among positives and negatives in expectation, then back."""
    rng = np.random.default_rng(0)
    like, shown = rng.uniform(0.01, 0.6, 50), rng.dirichlet(np.ones(50))
    base_rate = float((shown * like).sum())
    positives = shown * like / base_rate
    negatives = shown * (1 - like) / (1 - base_rate)
    logit = np.log(positives / (per_positive * negatives))
    np.testing.assert_allclose(
      special.expit(logit + feedback.shift(per_positive, base_rate)),
      like,
      rtol=1e-12,
    )

  def test_of_a_classifier_on_drawn_slates(self):
    """Slates drawn by popularity; the fit knows the offset, as a model will."""
    rng = np.random.default_rng(0)
    users, items = 2_000, 200
    feature = rng.normal(size=items + 1)
    true = special.expit(feature - 3)
    liked = rng.random((users, items + 1)) < true
    liked[:, 0] = False
    user, item = np.nonzero(liked)
    sampling = feedback.sampling_probabilities(item, items, "popularity")
    drawn = feedback.draw_negatives(rng, sampling, user, item, (user, item), 3)
    shown = np.concatenate([item[:, None], drawn], 1)
    offset = feedback.log_q_offset(sampling)[shown]
    sign = np.array([1, -1, -1, -1])

    def loss(w):
      logit = w[0] * feature[shown] + w[1] + offset
      return -special.log_expit(sign * logit).mean()

    slope, bias = optimize.minimize(loss, [0.0, 0.0]).x
    np.testing.assert_allclose(slope, 1, atol=0.05)
    logit = slope * feature[1:] + bias
    base_rate = liked[:, 1:].mean()
    fitted = special.expit(logit + feedback.shift(3, base_rate))
    np.testing.assert_allclose(fitted, true[1:], rtol=0.2)
    np.testing.assert_allclose(fitted.mean(), base_rate, rtol=0.1)
    self.assertGreater(special.expit(logit).mean(), 2 * base_rate)

  def test_offsets_by_hand(self):
    np.testing.assert_allclose(
      feedback.log_q_offset(np.array([0, 0.5, 0.25, 0.25])),
      [0, -np.log(1.5), -np.log(0.75), -np.log(0.75)],
    )
    uniform = feedback.sampling_probabilities(np.array([1]), 7, "uniform")
    np.testing.assert_allclose(feedback.log_q_offset(uniform), 0, atol=1e-12)

  @parameterized.parameters((0, 0.1), (9, 0), (9, 1), (9, 1.5))
  def test_out_of_range(self, per_positive, base_rate):
    with self.assertRaisesRegex(ValueError, "expected a number above 0 and"):
      feedback.shift(per_positive, base_rate)


if __name__ == "__main__":
  absltest.main()
