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


if __name__ == "__main__":
  absltest.main()
