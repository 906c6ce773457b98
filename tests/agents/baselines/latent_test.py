"""Agents with a latent action: what they share, and their losses by hand."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sklearn_metrics

from hsrl_jax.agents.baselines import hac, latent, td3, wolpertinger
from tests import toy
from tests.agents.baselines import latent_cases as cases


class ExploreTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 0.3, 1.0)
  def test_the_angle_of_the_noise(self, std):
    action = cases.unit(np.sin(np.arange(64.0)))
    keys = jax.random.split(jax.random.key(0), 500)
    noisy = jax.vmap(latent.explore, in_axes=(None, 0, None))(
      jnp.asarray(action, jnp.float32), keys, std
    )
    cosine = np.asarray(noisy) @ action / 64
    angle = np.degrees(np.arccos(cosine)).mean()
    want = np.degrees(np.arctan(std))
    self.assertAlmostEqual(angle, want, delta=0.05 * want)


class LossTest(parameterized.TestCase):
  def test_behaviour_loss_is_log_loss(self):
    case = cases.make("ddpg")
    step = cases.transition(case)
    state = cases.state(case.params, case.catalogue, case.observation)
    embedded = cases.embeddings(case.params, case.catalogue)
    scores = embedded[[1, 2, 3]] @ cases.action(case.params, state)
    scores = scores + float(case.params["params"]["response_bias"])
    want = sklearn_metrics.log_loss([1, 0, 1], 1 / (1 + np.exp(-scores)))
    got = cases.loss(case, step)[1]["behaviour_loss"]
    np.testing.assert_allclose(got, want, rtol=1e-3)


class ActionCriticTest(absltest.TestCase):
  def test_each_critic_equals_plain_numpy(self):
    network = latent.ActionCritic((6,), critics=3)
    state, action = jnp.arange(2.0), jnp.array([1.0, -2.0, 0.5])
    params = network.init(jax.random.key(0), state, action)
    got = network.apply(params, state, action)
    dense = params["params"]["value"]
    x = np.concatenate([state, action])
    for i in range(3):
      hidden = x @ dense["Dense_0"]["kernel"][i] + dense["Dense_0"]["bias"][i]
      want = np.maximum(hidden, 0) @ dense["Dense_1"]["kernel"][i]
      np.testing.assert_allclose(got[i], want[0], rtol=1e-5)
    self.assertLen(set(got.tolist()), 3)


class DdpgTest(absltest.TestCase):
  def test_losses(self):
    case = cases.make("ddpg")
    step = cases.transition(case)
    _, metrics = cases.loss(case, step)
    state, target = cases.states(case, step)[0], cases.target(case, step)
    value = cases.q(case.params, state, step.latent)
    own = cases.q(case.params, state, cases.action(case.params, state))
    np.testing.assert_allclose(metrics["target"], target, rtol=1e-3)
    np.testing.assert_allclose(
      metrics["critic_loss"], (value - target) ** 2, rtol=1e-3
    )
    np.testing.assert_allclose(metrics["actor_loss"], -own, rtol=1e-3)

  def test_a_logged_slate_stands_for_the_mean_of_its_items(self):
    case = cases.make("ddpg", recipe="logs")
    step = cases.transition(case)
    _, metrics = cases.loss(case, step._replace(latent=np.zeros(0)))
    embedded = cases.embeddings(case.target_params, case.catalogue)
    mean = embedded[[1, 2, 3]].mean(0)
    mean /= np.sqrt((mean**2).mean())
    state = cases.state(case.params, case.catalogue, case.observation)
    value = cases.q(case.params, state, mean)
    np.testing.assert_allclose(
      metrics["critic_loss"], (value - metrics["target"]) ** 2, rtol=1e-3
    )


class HacTest(absltest.TestCase):
  def test_losses(self):
    case = cases.make("hac", critic_weight=0.0, actor_weight=0.0)
    step = cases.transition(case)
    loss, metrics = cases.loss(case, step)
    state, target = cases.states(case, step)[0], cases.target(case, step)
    embedded = cases.embeddings(case.params, case.catalogue)
    pooled = cases.unit((embedded[1] + embedded[2] + embedded[3]) / 3)
    critic = sum(
      (cases.q(case.params, state, action) - target) ** 2
      for action in (step.latent, pooled)
    )
    alignment = np.square(np.asarray(step.latent) - pooled).mean()
    np.testing.assert_allclose(metrics["critic_loss"], critic, rtol=1e-3)
    np.testing.assert_allclose(metrics["alignment_loss"], alignment, rtol=1e-3)
    np.testing.assert_allclose(
      loss - metrics["behaviour_loss"],
      hac.ALIGNMENT_WEIGHT * alignment,
      rtol=1e-3,
    )


class Td3Test(parameterized.TestCase):
  def test_losses(self):
    case = cases.make("td3")
    step = cases.transition(case)
    drawn = np.linspace(-4.0, 4.0, 8)  # Beyond the clip on both sides.
    with mock.patch.object(
      td3.sampling, "normal", lambda key, shape: jnp.asarray(drawn)
    ):
      _, metrics = cases.loss(case, step)
    state, next_state = cases.states(case, step)
    noise = [min(max(0.2 * x, -0.5), 0.5) for x in drawn]
    next_action = cases.unit(
      cases.action(case.target_params, next_state) + noise
    )
    both = [
      cases.q(case.target_params, next_state, next_action, c) for c in (0, 1)
    ]
    self.assertGreater(abs(both[0] - both[1]), 0.01)
    target = 0.6 + 0.9 * min(both)
    critic = sum(
      (cases.q(case.params, state, step.latent, c) - target) ** 2
      for c in (0, 1)
    )
    np.testing.assert_allclose(metrics["target"], target, rtol=1e-3)
    np.testing.assert_allclose(metrics["critic_loss"], critic, rtol=1e-3)

  def test_the_actor_learns_from_the_critic_every_second_iteration(self):
    case = cases.make("td3", behaviour_weight=0.0)
    step = cases.transition(case)

    @jax.jit
    def gradient(params, progress):
      return jax.grad(
        lambda p: cases.loss(case._replace(params=p), step, progress)[0]
      )(params)["params"]

    for iteration in range(toy.BASE.train.iterations):
      progress = jnp.int32(iteration) / toy.BASE.train.iterations
      parts = gradient(case.params, progress)
      moves = float(jnp.abs(parts["actor"]["kernel"]).max()) > 0
      self.assertEqual(moves, iteration % 2 == 0)
      self.assertGreater(
        float(jnp.abs(parts["critic"]["value"]["Dense_0"]["kernel"]).max()), 0
      )


def _choose(params, catalogue, observation, candidates, excluded=()):
  """The slate and its values, one item at a time."""
  state = cases.state(params, catalogue, observation)
  action = cases.action(params, state)
  embedded = cases.unit(cases.embeddings(params, catalogue))
  items = cases.ranking(params, catalogue, action, excluded)[:candidates]
  values = {i: cases.q(params, state, embedded[i]) for i in items}
  best = sorted(items, key=lambda i: -values[i])[:3]
  return best, [values[i] for i in best]


class WolpertingerTest(parameterized.TestCase):
  @parameterized.parameters(1, 5, 99)
  def test_the_best_candidates_are_shown(self, slates):
    case = cases.make("wolpertinger")
    with mock.patch.object(wolpertinger, "CANDIDATES", slates):
      act = jax.jit(lambda *x: case.agent.act(*x, None, 1.0))
      for excluded in ([0] * 5, [1, 0, 5, 9, 13]):
        got = act(
          case.params,
          case.catalogue,
          case.observation,
          jnp.array(excluded, jnp.int32),
        ).slate
        want, _ = _choose(
          case.params, case.catalogue, case.observation, 3 * slates, excluded
        )
        np.testing.assert_array_equal(got, want)

  def test_critic_loss(self):
    case = cases.make("wolpertinger")
    step = cases.transition(case)
    _, metrics = cases.loss(case, step)
    _, next_values = _choose(
      case.target_params, case.catalogue, cases.next_observation(step), 15
    )
    target = 0.6 + 0.9 * sum(next_values) / 3
    shares = [1.0, -0.1, 1.0]
    mean = sum(shares) / 3
    state = cases.state(case.params, case.catalogue, case.observation)
    embedded = cases.unit(cases.embeddings(case.params, case.catalogue))
    errors = [
      cases.q(case.params, state, embedded[i]) - (target + share - mean)
      for i, share in zip((1, 2, 3), shares, strict=True)
    ]
    np.testing.assert_allclose(metrics["target"], target, rtol=1e-3)
    np.testing.assert_allclose(
      metrics["critic_loss"], np.square(errors).mean(), rtol=1e-3
    )


if __name__ == "__main__":
  absltest.main()
