"""The sweep's advice, by hand."""

from absl.testing import absltest, parameterized

from hsrl_jax.evaluation.sid_quality import Size, recommend


class RecommendTest(parameterized.TestCase):
  def test_the_smallest_loss_with_unique_sids(self):
    sizes = [
      Size(64, 2, 0.30, 0.50),
      Size(64, 3, 0.20, 0.35),
      Size(128, 3, 0.25, 0.30),
    ]
    # 64x3 loses least before SIDs are unique, 128x3 after.
    self.assertEqual(recommend(sizes), (sizes[2], []))
    self.assertEqual(recommend(reversed(sizes)).size, sizes[2])

  def test_of_equal_losses_the_smaller_space(self):
    sizes = [Size(8, 4, 0, 0.0), Size(64, 2, 0, 0.0), Size(256, 1, 0, 0.0)]
    self.assertEqual(recommend(sizes).size, sizes[2])
    # 16^2 = 256 SIDs too, with more tokens.
    self.assertEqual(recommend([Size(16, 2, 0, 0.0), *sizes]).size, sizes[2])

  @parameterized.parameters((0.21, 0), (0.20, 0), (0.19, 1))
  def test_dear_unique_sids_are_warned_of(self, error, count):
    """Above half of 0.4."""
    size, warnings = recommend([Size(64, 3, error, 0.4)])
    self.assertEqual(size.levels, 3)
    self.assertLen(warnings, count)
    for line in warnings:
      self.assertIn("64x3: unique SIDs cost 21%", line)

  def test_worse_than_the_mean_is_refused(self):
    sizes = [Size(64, 3, 0.3, 1.39), Size(8, 2, 0.9, 1.0)]
    advice = recommend(sizes)
    self.assertEqual(advice.size, sizes[1])
    self.assertLen(advice.warnings, 1)
    self.assertIn("64x3 loses 139% of the variance", advice.warnings[0])
    advice = recommend(sizes[:1])
    self.assertIsNone(advice.size)
    self.assertLen(advice.warnings, 1)

  def test_an_empty_sweep(self):
    self.assertEqual(recommend([]), (None, []))


if __name__ == "__main__":
  absltest.main()
