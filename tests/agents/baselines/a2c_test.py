"""A2C's loss, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from hsrl_jax import sid
from hsrl_jax.agents import base
from tests.agents import checks


class ActTest(absltest.TestCase):
  def test_what_is_stored_is_of_the_tempered_softmax(self):
    made = checks.made("a2c", importance_clip=1.0)
    acted = checks.sample(made, [12], 0.5)
    state = checks.state(made.params, made.catalogue, made.observation)
    logits = checks.item_logits(made.params, made.catalogue, state)
    logits[0] = -np.inf
    log_pi = special.log_softmax(logits)
    logits[12] = -np.inf  # What is banned is no part of what was drawn from.
    pi, mu = special.softmax(logits), special.softmax(logits / 0.5)
    slates = np.asarray(acted.slate)[:50]
    ratio = np.exp(log_pi[slates] - np.asarray(acted.log_prob)[:50])
    np.testing.assert_allclose(ratio, pi[slates] / mu[slates], rtol=1e-3)


class LossTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(item_logits="free"),
    dict(
      behaviour_weight=0.0,
      actor_weight=1.0,
      entropy_weight=0.1,
      entropy_weight_end=0.1,
    ),
    dict(importance_clip=1.5),
  )
  def test_by_hand(self, **overrides):
    made = checks.made("a2c", **overrides)
    config, _, params, catalogue, observation = made
    settings = config.settings
    catalogue = catalogue._replace(
      index=sid.remove_items(catalogue.index, [12])
    )
    other = jax.tree.map(lambda x: 0.9 * x, params)
    step = checks.transition(
      observation, log_prob=jnp.array([-9.0, -4.0, -0.1])
    )

    def value(params, observation):
      return checks.value(params, checks.state(params, catalogue, observation))

    y = 0.6 + 0.9 * value(other, step.next_observation)
    difference = y - value(params, observation)
    logits = checks.item_logits(
      params, catalogue, checks.state(params, catalogue, observation)
    )
    active = logits.copy()
    active[[0, 12]] = -np.inf
    pi, log_pi = special.softmax(active), special.log_softmax(active)

    clip = base.ADVANTAGE_CLIP
    advantages = np.full(3, np.clip(difference, -clip, clip))
    advantages += np.array([1.1, -2.2, 1.1]) / 3
    if settings.importance_clip:
      ratio = np.exp(log_pi[[1, 2, 3]] - np.array([-9.0, -4.0, -0.1]))
      self.assertGreater(ratio.max(), 1.5)
      self.assertLess(ratio.min(), 1.5)
      advantages *= np.minimum(ratio, settings.importance_clip)
    actor = -(advantages * log_pi[[1, 2, 3]]).mean()
    entropy = special.entr(pi).sum()
    beta = np.sqrt(settings.entropy_weight * settings.entropy_weight_end)
    bias = params["items"]["params"]["response_bias"]
    p = special.expit(logits[[1, 2, 3]] + bias)
    behaviour = -np.log([p[0], 1 - p[1], p[2]]).mean()
    want = (
      difference**2
      + settings.actor_weight * (actor - beta * entropy)
      + settings.behaviour_weight * behaviour
    )
    loss, _ = checks.losses(made._replace(catalogue=catalogue), other, step)
    np.testing.assert_allclose(loss, want, rtol=1e-4)


if __name__ == "__main__":
  absltest.main()
