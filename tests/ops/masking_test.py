import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.ops import masking


class MaskingTest(absltest.TestCase):
  def test_log_softmax_of_what_has_left_is_finite(self):
    mask = jnp.asarray([True, True, False])
    logits = jnp.log(jnp.asarray([1.0, 3.0, 8.0]))
    np.testing.assert_allclose(
      masking.log_softmax(logits, mask), np.log([0.25, 0.75, 2.0]), rtol=1e-6
    )
    gradient = jax.grad(lambda x: masking.log_softmax(x, mask)[2])(logits)
    np.testing.assert_allclose(gradient, [-0.25, -0.75, 1.0], rtol=1e-6)

  def test_pick_reads_the_position_or_nothing(self):
    x = jnp.arange(1.0, 13.0).reshape(3, 4)
    position = jnp.asarray([2, -1, 0])
    np.testing.assert_array_equal(masking.pick(x, position), [3.0, 0.0, 9.0])
    np.testing.assert_array_equal(masking.pick(x[0], position), [3.0, 0.0, 1.0])
    np.testing.assert_array_equal(
      masking.pick(x, jnp.int32(1)), [2.0, 6.0, 10.0]
    )
    gradient = jax.grad(lambda x: masking.pick(x, position).sum())(x)
    expected = np.zeros((3, 4))
    expected[[0, 2], [2, 0]] = 1.0
    np.testing.assert_array_equal(gradient, expected)

  def test_entropy_and_its_gradient_know_what_counts_alone(self):
    # The gradient of sum p (-log p) by logits: -p (log p + H).
    p = np.array([0.25, 0.75])
    entropy = -(p * np.log(p)).sum()
    for left in (2.0, 100.0, 1e4):  # Whose exponential is no number.
      logits = jnp.asarray([0.0, np.log(3.0), left])
      mask = jnp.asarray([True, True, False])
      found, gradient = jax.value_and_grad(
        lambda x, mask=mask: masking.entropy(masking.log_softmax(x, mask), mask)
      )(logits)
      np.testing.assert_allclose(found, entropy, rtol=1e-6)
      np.testing.assert_allclose(
        gradient, [*(-p * (np.log(p) + entropy)), 0.0], rtol=1e-5, atol=1e-7
      )

  def test_divergence_and_its_gradient_know_what_counts_alone(self):
    # The gradient of sum p log(p / q) by logits: p (log(p / q) - KL).
    p, q = np.array([0.25, 0.75]), np.array([0.6, 0.4])
    divergence = (p * np.log(p / q)).sum()
    for left in (2.0, 100.0, 1e4):
      logits = jnp.asarray([0.0, np.log(3.0), left])
      anchor = jnp.asarray([*np.log(q), -left])
      mask = jnp.asarray([True, True, False])

      def of(x, anchor, mask=mask):
        return masking.divergence(masking.log_softmax(x, mask), anchor, mask)

      found, gradients = jax.value_and_grad(of, (0, 1))(logits, anchor)
      np.testing.assert_allclose(found, divergence, rtol=1e-5)
      expected = [*(p * (np.log(p / q) - divergence)), 0.0]
      np.testing.assert_allclose(gradients[0], expected, rtol=1e-5, atol=1e-7)
      np.testing.assert_array_equal(gradients[1], 0.0)

  def test_rank_within_equals_a_loop(self):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 4, 50).astype(np.int32)
    scores = rng.integers(0, 6, 50).astype(np.float32)  # With ties.
    expected = [
      sum(
        groups[j] == groups[i] and (-scores[j], j) < (-scores[i], i)
        for j in range(50)
      )
      for i in range(50)
    ]
    found = masking.rank_within(jnp.asarray(groups), jnp.asarray(scores))
    np.testing.assert_array_equal(found, expected)


class LargestTest(absltest.TestCase):
  def test_as_a_sort_says(self):
    rng = np.random.default_rng(0)
    rows = np.float32(rng.normal(size=(50, 30)) * 10.0 ** rng.integers(-9, 9))
    rows[0] = 0.0
    rows[1, :20] = rows[1, 20]
    rows[2, 5] = -np.inf
    for count in (1, 7, 30, 40):
      found = jax.vmap(lambda x, n=count: masking.largest(x, n))(rows)
      least = np.sort(rows)[:, ::-1][:, min(count, 30) - 1]
      np.testing.assert_array_equal(found, rows >= least[:, None])


if __name__ == "__main__":
  absltest.main()
