"""The chunked loss of a catalogue against that of optax, with its gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from hsrl_jax.ops import softmax


class CatalogueLossTest(parameterized.TestCase):
  @parameterized.parameters(3, 256, 300)
  def test_value_and_gradient_are_those_of_optax(self, count):
    rng = np.random.default_rng(0)
    states = (3.0 * rng.normal(size=(count, 4))).astype("f")
    rows = rng.normal(size=(9, 4)).astype("f")
    target = rng.integers(0, 9, count)
    target[0] = 0

    def plain(states, rows):
      logits = states @ rows[1:].T
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(target - 1, 0)
      )
      return 2.0 * jnp.where(target > 0, losses, 0.0).sum()

    def chunked(states, rows):
      return 2.0 * softmax.catalogue_loss(states, rows, jnp.asarray(target))

    chex.assert_trees_all_close(
      jax.jit(jax.value_and_grad(chunked, (0, 1)))(states, rows),
      jax.value_and_grad(plain, (0, 1))(states, rows),
      rtol=1e-4,
      atol=1e-4,
    )


if __name__ == "__main__":
  absltest.main()
