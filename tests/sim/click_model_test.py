"""Click models: fit and quality against scikit-learn and by hand; another."""

from unittest import mock

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.sim import click_model, user_simulator
from hsrl_jax.types import Sessions


def _logs(rows=256, seed=0):
  """Users like items whose first feature has the sign of their profile."""
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(21, 3)).astype(np.float32)
  features[0] = 0
  profile = rng.choice([-1.0, 1.0], size=(rows, 1)).astype(np.float32)
  exposed = np.stack([rng.permutation(20)[:4] + 1 for _ in range(rows)])
  chance = 1 / (1 + np.exp(-4 * features[exposed, 0] * profile))
  return features, Sessions(
    user_id=np.arange(rows) % 32,
    profile=profile,
    history=rng.integers(1, 21, size=(rows, 5)).astype(np.int32),
    exposed=exposed.astype(np.int32),
    response=(rng.random((rows, 4)) < chance).astype(np.float32),
  )


class ClickModelTest(parameterized.TestCase):
  def test_quality_is_that_of_scikit_learn(self):
    rng = np.random.default_rng(1)
    p = rng.random((30, 5))
    y = (rng.random((30, 5)) < p).astype(float)
    users = np.repeat(np.arange(6), 5)
    got = click_model.quality(p, y, users)
    self.assertAlmostEqual(
      got["auc"], metrics.roc_auc_score(y.ravel(), p.ravel())
    )
    self.assertAlmostEqual(
      got["log_loss"], -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    )
    within = [
      metrics.roc_auc_score(y[users == u].ravel(), p[users == u].ravel())
      for u in range(6)
    ]
    self.assertAlmostEqual(got["auc_within_users"], np.mean(within))

  def test_calibration_error_by_hand(self):
    # Bin 0.2: said 0.25, was 0.5. Bin 0.9: said 0.95, was 1. Half each.
    p = np.array([[0.25, 0.25, 0.95, 0.95]])
    y = np.array([[1.0, 0, 1, 1]])
    got = click_model.quality(p, y, np.zeros(1))
    self.assertAlmostEqual(got["calibration_error"], 0.5 * 0.25 + 0.5 * 0.05)

  def test_no_auc_where_all_responses_are_alike(self):
    got = click_model.quality(
      np.full((2, 3), 0.9), np.ones((2, 3)), np.arange(2)
    )
    self.assertSetEqual(set(got), {"log_loss", "calibration_error"})

  def test_fit_learns_and_resumes_to_the_same_bits(self):
    features, train = _logs()
    config = SimulatorConfig(
      features=4,
      hidden=16,
      dropout=0.1,
      epochs=8,
      batch_size=32,
      learning_rate=1e-2,
    )
    fit = click_model.make_fit(config, features, train)
    straight = fit.init()
    for epoch in range(config.epochs):
      if epoch == 3:
        kept = jax.tree.map(np.asarray, straight)
      straight, _ = fit.epoch(straight)
    again = click_model.make_fit(config, features, train)
    resumed = jax.tree.map(jax.numpy.asarray, kept)
    for _ in range(3, config.epochs):
      resumed, _ = again.epoch(resumed)
    chex.assert_trees_all_equal(resumed, straight)
    _, test = _logs(seed=2)
    p = fit.predict(straight.params, test)
    # The test users' items are drawn anew, with the features of the fit.
    chance = 1 / (1 + np.exp(-4 * features[test.exposed, 0] * test.profile))
    self.assertGreater(np.corrcoef(np.ravel(p), chance.ravel())[0, 1], 0.9)

  def test_keep_best_keeps_the_best(self):
    features, train = _logs(rows=64)
    fit = click_model.make_fit(
      SimulatorConfig(features=2, hidden=4, epochs=2), features, train
    )
    first, _ = fit.epoch(fit.init())
    first = fit.keep_best(first, 0.5)
    second, _ = fit.epoch(first)
    worse = fit.keep_best(second, 0.6)
    chex.assert_trees_all_equal(worse.best_params, first.params)
    better = fit.keep_best(second, 0.4)
    chex.assert_trees_all_equal(better.best_params, second.params)
    self.assertAlmostEqual(float(better.best_loss), 0.4)


class Linear(nn.Module):
  """Another click model: an item is liked by its features and the profile."""

  width: int

  @nn.compact
  def __call__(
    self, item_features, profile, history, slate, *, deterministic=True
  ):
    del history, deterministic
    user = nn.Dense(self.width)(profile)
    return nn.Dense(self.width)(item_features[slate]) @ user


class AnotherClickModelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    models = {"linear": lambda config: Linear(config.features)}
    self.enter_context(mock.patch.dict(click_model.CLICK_MODELS, models))
    self.config = SimulatorConfig(
      click_model="linear", features=4, batch_size=32, learning_rate=1e-2
    )

  def test_it_is_fitted_and_users_respond_by_it(self):
    features, train = _logs()
    fit = click_model.make_fit(self.config, features, train)
    state = fit.init()
    for _ in range(self.config.epochs):
      state, _ = fit.epoch(state)
    users = user_simulator.pool(
      click_model.ResponseParams(state.params, jnp.asarray(features)), train
    )
    env = user_simulator.make(self.config, 4)
    # It has learned what users like: see `_logs`.
    items, asked = jnp.arange(1, 21), env.start(0, users).observation
    answer = np.asarray(env.probabilities(asked, items, users))
    liked = features[1:, 0] * train.profile[0] > 0
    self.assertGreater(answer[liked].mean(), answer[~liked].mean() + 0.3)

    active = jnp.arange(21) > 0
    rewards = {
      name: simulate.simulate(
        act, env, params, users, jax.random.key(0), episodes=64
      ).total_reward.mean()
      for name, (act, params) in bounds.bounds(env, users, active).items()
    }
    self.assertGreater(rewards["greedy_oracle"], rewards["random"] + 1)

  def test_an_unknown_name_is_refused(self):
    with self.assertRaisesRegex(
      InputError,
      "--simulator_click_model is 'no'; expected one of attention, linear",
    ):
      user_simulator.make(SimulatorConfig(click_model="no"), 4)


if __name__ == "__main__":
  absltest.main()
