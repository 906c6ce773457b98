"""Attention by hand against a softmax, and the gradient that JAX derives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.ops import attention


class AttendTest(parameterized.TestCase):
  @parameterized.parameters((None, 1.0), (None, 100.0), (30.0, 1.0))
  def test_value_and_gradient_are_those_of_a_softmax(self, bound, scale):
    """The gradient is written by hand; here one that JAX derives."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(6, 4)).astype("f") for _ in range(3))
    q *= scale  # Of logits that reach some hundreds exp would be infinite.
    usable = np.tri(6, dtype=bool)
    usable[:, 1] = False
    usable[0] = False  # Nothing to attend to.
    target = rng.normal(size=(6, 4)).astype("f")

    def plain(q, k, v, usable):
      weights = jax.nn.softmax(q @ k.T, -1, where=usable)
      return jnp.where(usable.any(-1, keepdims=True), weights @ v, 0.0)

    def run(attend):
      def loss(q, k, v):
        out = attend(q, k, v, usable)
        return ((out - target) ** 2).sum(), out

      return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    def turned(q, k, v, usable):
      return attention.attend(q, k, v, usable.T, bound).T

    chex.assert_trees_all_close(run(turned), run(plain), rtol=1e-4, atol=3e-5)


if __name__ == "__main__":
  absltest.main()
