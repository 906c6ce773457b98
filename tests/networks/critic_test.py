"""The multi-level critic against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from hsrl_jax.networks import critic

LEVELS, WIDTH, HIDDEN = 4, 3, (6, 5)  # Contexts c_0 .. c_L: LEVELS = L + 1.
NETWORK = critic.Critic(HIDDEN)
_apply = jax.jit(NETWORK.apply)


@functools.cache
def _params():
  shapes = jax.eval_shape(
    NETWORK.init, jax.random.key(0), jnp.zeros((LEVELS, WIDTH))
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes)


def _contexts():
  return np.random.default_rng(1).normal(size=(LEVELS, WIDTH)).astype("f")


class CriticTest(parameterized.TestCase):
  def test_equals_plain_numpy(self):
    value, values = _apply(_params(), _contexts())
    p = jax.tree.map(np.float64, _params())["params"]
    expected = []
    for level, x in enumerate(_contexts()):
      for i in range(3):
        dense = p["value"][f"Dense_{i}"]
        x = x @ dense["kernel"][level] + dense["bias"][level]
        x = np.maximum(x, 0.0) if i < 2 else x
      expected.append(x[0])
    np.testing.assert_allclose(values, expected, atol=1e-4)
    mix = special.softmax(p["level_weight"])
    self.assertAlmostEqual(float(value), float(mix @ expected), places=4)

  def test_weights_sum_to_one(self):
    """Levels that agree on a value yield that value."""
    params = jax.tree.map(np.zeros_like, _params())["params"]
    params["value"]["Dense_2"]["bias"] += 3.0
    for weight in ([0.0] * 4, [5.0, -2.0, 1.0, 0.3]):
      params["level_weight"] = np.asarray(weight, "f")
      value, values = _apply({"params": params}, _contexts())
      np.testing.assert_allclose(values, [3.0] * 4)
      self.assertAlmostEqual(float(value), 3.0, places=5)

  def test_level_weight_is_trained(self):
    def value(params):
      return NETWORK.apply(params, _contexts())[0]

    gradient = jax.jit(jax.grad(value))(_params())
    mixed, values = _apply(_params(), _contexts())
    mix = special.softmax(_params()["params"]["level_weight"])
    expected = mix * (values - mixed)  # The derivative of a softmax mix.
    self.assertGreater(np.abs(expected).min(), 1e-3)
    np.testing.assert_allclose(
      gradient["params"]["level_weight"], expected, atol=1e-4
    )

  def test_levels_start_apart_and_with_equal_weights(self):
    params = jax.jit(NETWORK.init)(
      jax.random.key(0), jnp.zeros((LEVELS, WIDTH))
    )
    value, values = _apply(params, np.ones((LEVELS, WIDTH), "f"))
    self.assertGreater(np.std(values), 1e-3)
    self.assertAlmostEqual(float(value), float(np.mean(values)), places=5)


if __name__ == "__main__":
  absltest.main()
