import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from scipy import special, stats

from hsrl_jax.networks.critic import Critic
from hsrl_jax.networks.heads import Bounded
from tests import toy
from tests.agents import checks


def _mean(params, state):
  """tanh of the actor's linear map, in plain numpy."""
  layer = params["actor"]["params"]["Dense_0"]
  return np.tanh(state @ layer["kernel"] + layer["bias"])


class ActTest(absltest.TestCase):
  def test_greedy_slate_is_the_top_of_the_mean(self):
    made = checks.made("pgra")
    agent, params, catalogue, observation = made
    mean = _mean(params, checks.state(params, catalogue, observation))
    checks.shows_the_top(*made, checks.item_logits(params, catalogue, mean))
    latent = agent.act(
      params, catalogue, observation, checks.NOTHING, None, 1.0
    ).latent
    np.testing.assert_allclose(latent, mean, rtol=1e-4, atol=1e-6)

  def test_latents_are_gaussian_and_slates_follow_them(self):
    made = checks.made("pgra")
    agent, params, catalogue, observation = made
    mean = _mean(params, checks.state(params, catalogue, observation))
    actions = checks.sampled_slates(*made, count=5_000)
    latent = np.asarray(actions.latent)
    np.testing.assert_allclose(latent.mean(0), mean, atol=0.07)
    np.testing.assert_allclose(np.cov(latent.T), np.eye(8), atol=0.1)
    for i in range(20):
      density = stats.norm.logpdf(latent[i], mean, 1.0).sum()
      np.testing.assert_allclose(actions.log_prob[i], density, rtol=1e-3)
      scores = checks.item_logits(params, catalogue, latent[i])
      scores[[0, 5, 12]] = -np.inf
      np.testing.assert_array_equal(
        actions.slate[i], np.argsort(-scores)[: toy.SLATE]
      )


class LossTest(absltest.TestCase):
  def test_by_hand(self):
    overrides = dict(
      dropout=0.0,
      temperature=0.4,
      temperature_end=0.1,
      importance_clip=3.0,
      actor_weight=0.1,
      behaviour_weight=0.7,
    )
    agent, params, catalogue, observation = checks.made("pgra", **overrides)
    other = jax.tree.map(lambda x: 0.9 * x, params)
    state = checks.state(params, catalogue, observation)
    mean = _mean(params, state)
    latent = mean + 0.1 * np.arange(8)
    log_prob = stats.norm.logpdf(latent, mean, 0.2).sum()  # sqrt(0.4 * 0.1)
    step = checks.transition(
      observation,
      latent=jnp.asarray(latent, jnp.float32),
      log_prob=jnp.full(3, log_prob - np.log(2.0)),
    )
    next_state = checks.state(other, catalogue, step.next_observation)

    def value(params, state):
      return float(
        Critic((8,)).apply(params["critic"], jnp.asarray(state[None], "f"))[0]
      )

    difference = 0.6 + 0.9 * value(other, next_state) - value(params, state)
    actor = -2.0 * np.clip(difference, -1, 1) * log_prob
    guessed = Bounded(8, (16,)).apply(
      params["guess"], jnp.asarray(np.concatenate([state, next_state]), "f")
    )
    logits = checks.item_logits(params, catalogue, np.asarray(guessed))
    logits[0] = -np.inf
    predicted = -special.log_softmax(logits)[[1, 2, 3]].mean()
    loss, _ = agent.loss(params, other, catalogue, step, checks.KEY, 0.5)
    np.testing.assert_allclose(
      loss, difference**2 + 0.1 * actor + 0.7 * predicted, rtol=1e-3
    )

  def test_each_part_learns_from_its_own_loss(self):
    for weights, moved in (
      ((1, 0, 0), {"encoder", "critic"}),
      ((0, 1, 0), {"encoder", "actor"}),
      ((0, 0, 1), {"encoder", "guess", "items"}),
    ):
      critic, actor, behaviour = map(float, weights)
      agent, params, catalogue, observation = checks.made(
        "pgra",
        critic_weight=critic,
        actor_weight=actor,
        behaviour_weight=behaviour,
      )
      step = checks.transition(observation, latent=jnp.ones(8))
      own, target = checks.gradient_parts(agent, params, catalogue, step)
      self.assertEqual({k for k, x in own.items() if x}, moved)
      self.assertEqual(set(target.values()), {0.0})

  def test_learns(self):
    untrained, trained = toy.learning("pgra", actor_weight=0.1)
    self.assertLess(untrained, 0.5)
    self.assertGreater(trained, 0.6)


if __name__ == "__main__":
  absltest.main()
