import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from hsrl_jax import sid
from hsrl_jax.networks.critic import Critic
from tests import toy
from tests.agents import checks


class ActTest(parameterized.TestCase):
  @parameterized.parameters("features", "free")
  def test_greedy_slate_is_the_exact_top(self, item_logits):
    made = checks.made("a2c", item_logits=item_logits)
    _, params, catalogue, observation = made
    state = checks.state(params, catalogue, observation)
    logits = checks.item_logits(params, catalogue, state)
    removed, log_probs = checks.shows_the_top(*made, logits)
    # What is removed has no probability, nor has padding.
    logits[[0, removed]] = -np.inf
    log_pi = special.log_softmax(logits)
    for item, log_prob in log_probs.items():
      np.testing.assert_allclose(log_prob, log_pi[item], rtol=1e-4)

  def test_samples_vary(self):
    slates = np.asarray(checks.sampled_slates(*checks.made("a2c")).slate)
    self.assertGreater(len(set(map(tuple, slates.tolist()))), 50)


class LossTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(),
    dict(item_logits="free"),
    dict(
      item_credit=False,
      behaviour_weight=0.0,
      actor_weight=1.0,
      entropy_weight=0.1,
      entropy_weight_end=0.1,
    ),
    dict(importance_clip=1.5, advantage_clip=0.05),
  )
  def test_by_hand(self, **overrides):
    agent, params, catalogue, observation = checks.made(
      "a2c", dropout=0.0, **overrides
    )
    catalogue = catalogue._replace(
      index=sid.remove_items(catalogue.index, [12])
    )
    other = jax.tree.map(lambda x: 0.9 * x, params)
    step = checks.transition(
      observation, log_prob=jnp.array([-9.0, -4.0, -0.1])
    )
    config = toy.config(agent="a2c", **overrides)

    def value(params, observation):
      state = checks.state(params, catalogue, observation)
      return float(
        Critic((8,)).apply(params["critic"], jnp.asarray(state[None], "f"))[0]
      )

    y = 0.6 + 0.9 * value(other, step.next_observation)
    difference = y - value(params, observation)
    logits = checks.item_logits(
      params, catalogue, checks.state(params, catalogue, observation)
    )
    active = logits.copy()
    active[[0, 12]] = -np.inf
    pi, log_pi = special.softmax(active), special.log_softmax(active)

    clip = config.advantage_clip
    advantages = np.full(3, np.clip(difference, -clip, clip))
    if config.item_credit:
      advantages += np.array([1.1, -2.2, 1.1]) / 3
    if config.importance_clip:
      ratio = np.exp(log_pi[[1, 2, 3]] - np.array([-9.0, -4.0, -0.1]))
      self.assertGreater(ratio.max(), 1.5)
      self.assertLess(ratio.min(), 1.5)
      advantages *= np.minimum(ratio, config.importance_clip)
    actor = -(advantages * log_pi[[1, 2, 3]]).mean()
    entropy = special.entr(pi).sum()
    beta = np.sqrt(config.entropy_weight * config.entropy_weight_end)
    bias = params["items"]["params"]["response_bias"]
    p = special.expit(logits[[1, 2, 3]] + bias)
    behaviour = -np.log([p[0], 1 - p[1], p[2]]).mean()
    want = (
      difference**2
      + config.actor_weight * (actor - beta * entropy)
      + config.behaviour_weight * behaviour
    )
    loss, _ = agent.loss(params, other, catalogue, step, checks.KEY, 0.5)
    np.testing.assert_allclose(loss, want, rtol=1e-4)

  @parameterized.parameters(
    ({}, True), (dict(behaviour_weight=0.0, actor_weight=0.0), False)
  )
  def test_which_parts_learn(self, overrides, items_learn):
    agent, params, catalogue, observation = checks.made("a2c", **overrides)
    own, target = checks.gradient_parts(
      agent, params, catalogue, checks.transition(observation)
    )
    self.assertEqual(set(target.values()), {0.0})
    self.assertEqual(own["items"] > 0, items_learn)
    self.assertGreater(own["critic"], 0)

  def test_learns(self):
    untrained, trained = toy.learning("a2c")
    self.assertLess(untrained, 0.5)
    self.assertGreater(trained, 0.8)


if __name__ == "__main__":
  absltest.main()
