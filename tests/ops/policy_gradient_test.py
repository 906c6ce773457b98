import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from scipy import stats

from hsrl_jax.ops import policy_gradient


class PolicyGradientTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_token_sum_by_hand(self):
    levels = jnp.asarray([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    f = self.variant(policy_gradient.token_sum)
    np.testing.assert_array_equal(f(levels, jnp.asarray([2, 0])), 13.0)
    tokens = jnp.asarray([[[0, 1], [2, 0]], [[0, 2], [1, 2]]])
    np.testing.assert_array_equal(
      f(levels, tokens), [[11.0, 32.0], [23.0, 31.0]]
    )

  @chex.variants(with_jit=True, without_jit=True)
  def test_the_token_of_no_sid_is_not_the_last(self):
    levels = jnp.asarray([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    tokens = jnp.asarray([[-1, -1, 2], [-1, 0, -1]])
    np.testing.assert_array_equal(
      self.variant(policy_gradient.token_sum)(levels, tokens),
      [0.0, 10.0, 3.0],
    )
    gradient = jax.grad(lambda x: policy_gradient.token_sum(x, tokens).sum())(
      levels
    )
    np.testing.assert_array_equal(gradient, [[0, 0, 1], [1, 0, 0]])

  def test_token_sum_gradient_counts_the_picks(self):
    tokens = jnp.asarray([[0, 1, 0], [2, 2, 2]])
    gradient = jax.grad(lambda x: policy_gradient.token_sum(x, tokens).sum())(
      jnp.zeros((2, 3))
    )
    np.testing.assert_array_equal(gradient, [[2, 1, 0], [0, 0, 3]])

  @chex.variants(with_jit=True, without_jit=True)
  def test_entropy(self):
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype("f")
    found = self.variant(policy_gradient.entropy)(logits + 100.0)
    np.testing.assert_allclose(
      found, stats.entropy(np.exp(logits), axis=-1), rtol=1e-4
    )

  def test_entropy_extremes(self):
    logits = jnp.asarray([[5.0] * 8, [1e9] + [-1e9] * 7])
    np.testing.assert_allclose(
      policy_gradient.entropy(logits), [np.log(8), 0.0], atol=1e-6
    )
    gradient = jax.grad(lambda x: policy_gradient.entropy(x).sum())(logits)
    np.testing.assert_allclose(gradient, jnp.zeros((2, 8)), atol=1e-6)

  def test_importance_weights_by_hand(self):
    log_prob = jnp.log(jnp.asarray([0.2, 0.5, 0.9]))
    behaviour = jnp.log(jnp.asarray([0.4, 0.5, 0.1]))
    weights = policy_gradient.importance_weights
    np.testing.assert_allclose(
      weights(log_prob, behaviour, 2.0), [0.5, 1.0, 2.0], rtol=1e-5
    )
    np.testing.assert_array_equal(
      jax.grad(lambda x: weights(x, behaviour, 2.0).sum())(log_prob), 0.0
    )


class ActorLossTest(absltest.TestCase):
  LOG_PROBS = np.log(np.array([[0.2, 0.5], [0.9, 0.3], [0.4, 0.6]], np.float32))

  def _loss(self, advantages, behaviour=(0.0, 0.0, 0.0), clip=0.0):
    return policy_gradient.actor_loss(
      jnp.asarray(self.LOG_PROBS),
      jnp.asarray(advantages),
      jnp.asarray(behaviour),
      clip,
    )

  def test_is_the_weighted_log_likelihood(self):
    whole = np.array([[0.5], [-1.0], [2.0]], np.float32)
    by_level = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, -3.0]], np.float32)
    for advantages in (whole, by_level):
      want = -(advantages * self.LOG_PROBS).sum() / 3
      np.testing.assert_allclose(self._loss(advantages), want, rtol=1e-5)

  def test_importance_weights_are_truncated(self):
    log_pi = self.LOG_PROBS.sum(1)
    # pi / mu = 0.5, 1, 8; truncated at 2.
    behaviour = log_pi - np.log(np.array([0.5, 1.0, 8.0], np.float32))
    got = self._loss(np.ones((3, 1), np.float32), behaviour, 2.0)
    want = -(np.array([0.5, 1.0, 2.0]) * log_pi).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_gradient_is_probability_minus_choice(self):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=5), jnp.float32)

    behaviour = jax.nn.log_softmax(logits)[jnp.array([3])]

    def loss(logits, scale):
      log_probs = jax.nn.log_softmax(logits)[jnp.array([[3]])]
      return policy_gradient.actor_loss(
        log_probs, scale * jnp.ones((1, 1)), behaviour, 2.0
      )

    gradient, of_advantage = jax.grad(loss, argnums=(0, 1))(logits, 1.0)
    want = np.asarray(jax.nn.softmax(logits)) - np.eye(5)[3]
    np.testing.assert_allclose(gradient, want, atol=1e-6)
    self.assertEqual(float(of_advantage), 0.0)


if __name__ == "__main__":
  absltest.main()
