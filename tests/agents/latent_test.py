"""What the agents with a latent action have in common."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sklearn_metrics

from hsrl_jax.agents import hac, latent
from tests import toy
from tests.agents import latent_cases as cases


class ActTest(parameterized.TestCase):
  @parameterized.parameters("ddpg", "td3", "hac")
  def test_greedy_slate_is_the_exact_top(self, name):
    case = cases.make(name)
    state = cases.state(case.params, case.catalogue, case.observation)
    action = cases.action(case.params, state)
    best = cases.ranking(case.params, case.catalogue, action)
    excluded = jnp.array([best[0], 0, best[2]])
    for banned, want in (
      (cases.NOTHING, best[:3]),
      (excluded, [best[1], *best[3:5]]),
    ):
      got = case.agent.act(
        case.params, case.catalogue, case.observation, banned, None, 1.0
      )
      np.testing.assert_array_equal(got.slate, want)
      np.testing.assert_allclose(got.latent, action, rtol=1e-3, atol=1e-4)
      self.assertEqual(got.log_prob.tolist(), [0.0] * 3)

  @parameterized.parameters(*cases.AGENTS)
  def test_what_may_not_be_shown_never_is(self, name):
    case = cases.make(name)
    left = {2, 9, 30}
    excluded = jnp.array(
      sorted({*range(1, toy.ITEMS + 1)} - left - {cases.INACTIVE})
    )
    act = jax.jit(
      jax.vmap(
        lambda key: (
          case.agent.act(
            case.params, case.catalogue, case.observation, excluded, key, 2.0
          ).slate
        )
      )
    )
    slates = np.asarray(act(jax.random.split(jax.random.key(0), 100)))
    for slate in slates:
      self.assertEqual(set(slate.tolist()), left)

  @parameterized.parameters(*cases.AGENTS)
  def test_slates_vary_with_the_noise(self, name):
    case = cases.make(name)
    act = jax.jit(
      jax.vmap(
        lambda key: case.agent.act(
          case.params, case.catalogue, case.observation, cases.NOTHING, key, 1.0
        )
      )
    )
    acted = act(jax.random.split(jax.random.key(0), 100))
    self.assertGreater(len(set(map(tuple, acted.slate.tolist()))), 20)
    np.testing.assert_allclose(np.square(acted.latent).mean(-1), 1.0, rtol=1e-3)

  @parameterized.parameters(0.1, 0.3, 1.0)
  def test_the_angle_of_the_noise(self, temperature):
    action = cases.unit(np.sin(np.arange(64.0)))
    keys = jax.random.split(jax.random.key(0), 500)
    noisy = jax.vmap(latent.explore, in_axes=(None, 0, None))(
      jnp.asarray(action, jnp.float32), keys, temperature
    )
    cosine = np.asarray(noisy) @ action / 64
    angle = np.degrees(np.arccos(cosine)).mean()
    want = np.degrees(np.arctan(temperature))
    self.assertAlmostEqual(angle, want, delta=0.05 * want)


class LossTest(parameterized.TestCase):
  @parameterized.parameters(*cases.AGENTS)
  def test_targets_get_no_gradient_and_online_networks_do(self, name):
    case = cases.make(name)
    online, target = self._gradient(case)
    self.assertEqual(self._largest(target), 0.0)
    for part in ("encoder", "actor", "item", "critic", "response_bias"):
      self.assertGreater(self._largest(online[part]), 1e-6, part)

  @parameterized.product(
    name=cases.AGENTS,
    part=(
      ("critic_weight", {"encoder", "critic"}),
      ("actor_weight", {"encoder", "actor"}),
      ("behaviour_weight", {"encoder", "actor", "item", "response_bias"}),
    ),
  )
  @mock.patch.object(hac, "ALIGNMENT_WEIGHT", 0.0)
  def test_what_each_loss_moves(self, name, part):
    weight, moved = part
    off = dict(critic_weight=0.0, actor_weight=0.0, behaviour_weight=0.0)
    case = cases.make(name, **off | {weight: 1.0})
    gradient, _ = self._gradient(case)
    self.assertEqual({p for p in gradient if self._largest(gradient[p])}, moved)

  @parameterized.parameters(*cases.AGENTS)
  def test_behaviour_loss_is_log_loss(self, name):
    case = cases.make(name)
    step = cases.transition(case)
    state = cases.state(case.params, case.catalogue, case.observation)
    embedded = cases.embeddings(case.params, case.catalogue)
    scores = embedded[[1, 2, 3]] @ cases.action(case.params, state)
    scores = scores + float(case.params["params"]["response_bias"])
    want = sklearn_metrics.log_loss([1, 0, 1], 1 / (1 + np.exp(-scores)))
    got = cases.loss(case, step)[1]["behaviour_loss"]
    np.testing.assert_allclose(got, want, rtol=1e-3)

  @parameterized.parameters(*cases.AGENTS)
  def test_no_future_where_the_user_left(self, name):
    case = cases.make(name)
    step = cases.transition(case)
    _, metrics = cases.loss(case, step._replace(terminated=jnp.float32(1.0)))
    np.testing.assert_allclose(metrics["target"], 0.6, rtol=1e-5)

  def _gradient(self, case):
    def loss(params, target_params):
      return cases.loss(
        case._replace(params=params, target_params=target_params),
        cases.transition(case),
      )[0]

    online, target = jax.grad(loss, argnums=(0, 1))(
      case.params, case.target_params
    )
    return online["params"], target["params"]

  def _largest(self, tree):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


if __name__ == "__main__":
  absltest.main()
