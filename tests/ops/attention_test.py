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

  @parameterized.parameters((1, 1.0), (6, 1.0), (6, 8.0))
  def test_heads_are_those_of_a_softmax(self, queries, scale):
    """Also where logits reach some dozens, of which most weights are 0."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.normal(size=(n, 2, 4)).astype("f") for n in (queries, 6, 6))
    q *= scale
    logits = jnp.einsum("qhs,khs->hqk", q, k)
    self.assertBetween(float(abs(logits).max()), 2.0, 70.0)
    usable = np.array([True, False, True, True, False, True])
    weights = jax.nn.softmax(logits, -1, where=usable)
    expected = jnp.einsum("hqk,khs->hsq", weights, v)
    found = attention.attend_heads(q, k, v, usable)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    nothing = attention.attend_heads(q, k, v, np.zeros(6, bool))
    np.testing.assert_array_equal(nothing, 0.0)

  def test_gradient_of_heads_is_that_of_each(self):
    rng = np.random.default_rng(3)
    q, k, v = (rng.normal(size=(6, 2, 4)).astype("f") for _ in range(3))
    usable = np.arange(6) > 1

    def each(q, k, v):
      return jnp.stack(
        [
          attention.attend(q[:, h], k[:, h], v[:, h], usable[:, None])
          for h in range(2)
        ]
      )

    found, expected = (
      jax.value_and_grad(lambda *x, of=of: (of(*x) ** 2).sum(), (0, 1, 2))
      for of in (lambda *x: attention.attend_heads(*x, usable), each)
    )
    chex.assert_trees_all_close(found(q, k, v), expected(q, k, v), rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
