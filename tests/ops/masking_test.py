import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.ops import masking


class MaskingTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_masked_softmax_by_hand(self):
    logits = jnp.log(jnp.asarray([[1.0, 3.0, 9.0], [1.0, 2.0, 5.0]]))
    mask = jnp.asarray([[True, True, False], [True, True, True]])
    np.testing.assert_allclose(
      self.variant(masking.masked_softmax)(logits, mask),
      [[0.25, 0.75, 0.0], [0.125, 0.25, 0.625]],
      rtol=1e-6,
    )

  def test_masked_logits_do_not_matter(self):
    mask = jnp.asarray([True, False, True])
    for masked in (-1e30, 0.0, 1e30, jnp.inf, jnp.nan):
      logits = jnp.asarray([1.0, masked, 1.0])
      np.testing.assert_allclose(
        masking.masked_softmax(logits, mask), [0.5, 0.0, 0.5]
      )

  def test_log_softmax_of_what_has_left_is_finite(self):
    mask = jnp.asarray([True, True, False])
    logits = jnp.log(jnp.asarray([1.0, 3.0, 8.0]))
    np.testing.assert_allclose(
      masking.log_softmax(logits, mask), np.log([0.25, 0.75, 2.0]), rtol=1e-6
    )
    gradient = jax.grad(lambda x: masking.log_softmax(x, mask)[2])(logits)
    np.testing.assert_allclose(gradient, [-0.25, -0.75, 1.0], rtol=1e-6)

  def test_nothing_left(self):
    x, mask = jnp.asarray([1.0, -2.0, 3.0]), jnp.zeros(3, bool)
    np.testing.assert_array_equal(masking.masked_softmax(x, mask), 0.0)
    gradient = jax.grad(lambda x: masking.masked_softmax(x, mask).sum())(x)
    np.testing.assert_array_equal(gradient, 0.0)


if __name__ == "__main__":
  absltest.main()
