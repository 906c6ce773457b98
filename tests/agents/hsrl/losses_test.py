"""Losses against numbers worked out by hand or in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.agents.hsrl import losses

K, L, V = 3, 2, 4


def _view(seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(K, L, V)).astype(np.float32)
  tokens = rng.integers(0, V, size=(K, L))
  return losses.SlateView(jnp.asarray(logits), jnp.asarray(tokens))


def _log_probs(view):
  """log p_l(z_l) of each item, [K, L], in plain numpy."""
  logits, tokens = np.asarray(view.logits, np.float64), np.asarray(view.tokens)
  norm = np.log(np.exp(logits).sum(-1))
  return np.array(
    [
      [logits[k, l, tokens[k, l]] - norm[k, l] for l in range(L)]
      for k in range(K)
    ]
  )


class LossesTest(absltest.TestCase):
  def test_actor_loss_is_the_weighted_log_likelihood(self):
    view = _view()
    advantages = np.array([[0.5], [-1.0], [2.0]])
    got = losses.actor_loss(view, jnp.asarray(advantages), jnp.zeros(K), 0.0)
    want = -(advantages * _log_probs(view)).sum(-1).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_actor_loss_by_level(self):
    view = _view(1)
    advantages = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, -3.0]])
    got = losses.actor_loss(view, jnp.asarray(advantages), jnp.zeros(K), 0.0)
    want = -(advantages * _log_probs(view)).sum(-1).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_importance_weights_are_truncated(self):
    view = _view(2)
    log_pi = _log_probs(view).sum(-1)
    # pi / mu = 0.5, 1, 8; truncated at 2.
    behaviour = jnp.asarray(log_pi - np.log([0.5, 1.0, 8.0]))
    got = losses.actor_loss(view, jnp.ones((K, 1)), behaviour, 2.0)
    want = -(np.array([0.5, 1.0, 2.0]) * log_pi).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_no_gradient_through_advantages_or_weights(self):
    view = _view(3)

    def loss(scale, logits):
      shifted = view._replace(logits=logits)
      return losses.actor_loss(
        shifted, scale * jnp.ones((K, 1)), jnp.zeros(K), 2.0
      )

    self.assertEqual(float(jax.grad(loss)(1.0, view.logits)), 0.0)

  def test_policy_gradient_is_probability_minus_choice(self):
    view = _view(4)
    gradient = jax.grad(
      lambda x: losses.actor_loss(
        view._replace(logits=x), jnp.ones((K, 1)), jnp.zeros(K), 0.0
      )
    )(view.logits)
    want = np.asarray(jax.nn.softmax(view.logits))
    want = want - np.eye(V)[np.asarray(view.tokens)]
    np.testing.assert_allclose(gradient, want / K, atol=1e-6)

  def test_item_advantages(self):
    rewards = jnp.array([1.0, -0.1, 1.0])
    mean = 1.9 / 3

    def get(**kw):
      return losses.item_advantages(
        jnp.float32(3.0),
        jnp.float32(1.5),
        jnp.array([2.8, 0.0, 9.0]),
        rewards,
        clip=1.0,
        **kw,
      )

    # y - V = 1.5, clipped to 1; each item's share on top.
    np.testing.assert_allclose(
      get(item_credit=True, per_level=False),
      [[2 - mean], [0.9 - mean], [2 - mean]],
      rtol=1e-5,
    )
    np.testing.assert_allclose(
      get(item_credit=False, per_level=False), [[1.0]] * 3
    )
    # Level 1 chose in c_0 (V_0 = 2.8), level 2 in c_1 (V_1 = 0).
    np.testing.assert_allclose(
      get(item_credit=False, per_level=True), [[0.2, 1.0]] * 3, rtol=1e-5
    )

  def test_entropy_of_uniform_tokens(self):
    view = losses.SlateView(jnp.zeros((K, L, V)), jnp.zeros((K, L), jnp.int32))
    np.testing.assert_allclose(losses.entropy(view), L * np.log(V), rtol=1e-6)

  def test_behaviour_loss_is_bce_on_the_additive_score(self):
    view = _view(5)
    logits, tokens = np.asarray(view.logits), np.asarray(view.tokens)
    score = 0.3 + np.array(
      [sum(logits[k, l, tokens[k, l]] for l in range(L)) for k in range(K)]
    )
    p = 1 / (1 + np.exp(-score))
    y = np.array([1.0, 0.0, 1.0])
    want = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    got = losses.behaviour_loss(view, jnp.float32(0.3), jnp.asarray(y))
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_critic_loss_moves_the_value_alone(self):
    gradients = jax.grad(losses.critic_loss, argnums=(0, 1))(3.0, 1.0)
    self.assertEqual(float(gradients[0]), 0.0)
    self.assertEqual(float(gradients[1]), -4.0)


if __name__ == "__main__":
  absltest.main()
