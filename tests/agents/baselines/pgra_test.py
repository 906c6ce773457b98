"""PG-RA's Gaussian policy, and its loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from scipy import special, stats

from hsrl_jax.agents.baselines.pgra import Bounded
from tests import toy
from tests.agents import checks


def _mean(params, state):
  """tanh of the actor's linear map, in plain numpy."""
  layer = params["actor"]["params"]["Dense_0"]
  return np.tanh(state @ layer["kernel"] + layer["bias"])


class ActTest(absltest.TestCase):
  def test_latents_are_gaussian_and_slates_follow_them(self):
    made = checks.made("pgra")
    _, _, params, catalogue, observation = made
    mean = _mean(params, checks.state(params, catalogue, observation))
    actions = checks.sample(made, [])
    latent = np.asarray(actions.latent)
    np.testing.assert_allclose(latent.mean(0), mean, atol=0.07)
    np.testing.assert_allclose(np.cov(latent.T), np.eye(8), atol=0.1)
    for i in range(20):
      density = stats.norm.logpdf(latent[i], mean, 1.0).sum()
      np.testing.assert_allclose(actions.log_prob[i], density, rtol=1e-3)
      scores = checks.item_logits(params, catalogue, latent[i])
      scores[0] = -np.inf
      np.testing.assert_array_equal(
        actions.slate[i], np.argsort(-scores)[: toy.SLATE]
      )


class LossTest(absltest.TestCase):
  def test_by_hand(self):
    overrides = dict(
      temperature=0.2,
      importance_clip=3.0,
      actor_weight=0.1,
      behaviour_weight=0.7,
    )
    made = checks.made("pgra", **overrides)
    _, _, params, catalogue, observation = made
    other = jax.tree.map(lambda x: 0.9 * x, params)
    state = checks.state(params, catalogue, observation)
    mean = _mean(params, state)
    latent = mean + 0.1 * np.arange(8)
    log_prob = stats.norm.logpdf(latent, mean, 0.2).sum()
    step = checks.transition(
      observation,
      latent=jnp.asarray(latent, jnp.float32),
      log_prob=jnp.full(3, log_prob - np.log(2.0)),
    )
    next_state = checks.state(other, catalogue, step.next_observation)

    difference = (
      0.6 + 0.9 * checks.value(other, next_state) - checks.value(params, state)
    )
    actor = -2.0 * np.clip(difference, -1, 1) * log_prob
    guessed = Bounded(8, (16,)).apply(
      params["guess"], jnp.asarray(np.concatenate([state, next_state]), "f")
    )
    logits = checks.item_logits(params, catalogue, np.asarray(guessed))
    logits[0] = -np.inf
    predicted = -special.log_softmax(logits)[[1, 2, 3]].mean()
    loss, _ = checks.losses(made, other, step)
    np.testing.assert_allclose(
      loss, difference**2 + 0.1 * actor + 0.7 * predicted, rtol=1e-3
    )


if __name__ == "__main__":
  absltest.main()
