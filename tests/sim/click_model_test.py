"""Click models: their fit, offsets; another one."""

import dataclasses
from unittest import mock

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from scipy import special

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.data import feedback
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
  @pytest.mark.slow
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

  @pytest.mark.slow
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


class DoubleSigmoidTest(absltest.TestCase):
  @pytest.mark.slow
  def test_the_loss_applies_it_twice_and_users_respond_by_one(self):
    features, train = _logs(rows=8)
    config = SimulatorConfig(
      click_model="double_sigmoid", features=4, hidden=4, dropout=0.0
    )
    network = click_model.make_network(config)
    key, features = jax.random.key(0), jnp.asarray(features)
    problem = click_model._Problem(network, None, 8, key, features, train, None)
    row = train.profile[0], train.history[0], train.exposed[0]
    params = network.init(key, features, *row)
    respond = click_model.response_fn(config)
    params = jax.tree.map(lambda x: 4 * x, params)  # So that logits differ.
    p = np.float64(
      [
        respond(click_model.ResponseParams(params, features), *user)
        for user in zip(
          train.profile, train.history, train.exposed, strict=True
        )
      ]
    )
    self.assertGreater(np.ptp(p), 0.2)
    once = network.apply(params, features, *row)
    np.testing.assert_allclose(p[0], special.expit(once), rtol=1e-5)
    fitted = special.expit(p)
    y = train.response
    expected = -(y * np.log(fitted) + (1 - y) * np.log(1 - fitted)).mean()
    got = click_model._loss(problem, params, jnp.arange(8), key)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


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

  @pytest.mark.slow
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

  def test_what_is_owed_to_drawn_negatives_is_not_fitted(self):
    """An offset that explains all responses leaves nothing to learn."""
    features, train = _logs()
    offset = np.linspace(-4, 4, 21)
    liked = np.random.default_rng(0).random(train.exposed.shape)
    liked = liked < 1 / (1 + np.exp(-offset[train.exposed]))
    train = train._replace(response=liked.astype(np.float32))
    features[1:, 2] = offset[1:] / 2  # All that is to be known of an item.
    slopes = {}
    config = dataclasses.replace(self.config, learning_rate=0.1)
    for name, owed in (("with", offset), ("without", np.zeros(21))):
      fit = click_model.make_fit(config, features, train, owed)
      state = fit.init()
      for _ in range(config.epochs):
        state, _ = fit.epoch(state)
      logits = special.logit(np.float64(fit.predict(state.params, train)))
      own = (logits - owed[train.exposed]).ravel()
      slopes[name] = np.polyfit(offset[train.exposed].ravel(), own, 1)[0]
    self.assertAlmostEqual(slopes["without"], 1, delta=0.3)
    self.assertAlmostEqual(slopes["with"], 0, delta=0.15)

  def test_a_base_rate_shifts_all_logits(self):
    network = mock.Mock()
    network.apply.return_value = jnp.zeros(3)
    config = dataclasses.replace(self.config, click_model="mocked")
    with mock.patch.dict(
      click_model.CLICK_MODELS, {"mocked": lambda config: network}
    ):
      respond = click_model.response_fn(config)
    # One positive beside 4 negatives, and a tenth of what is shown is liked.
    shift = feedback.shift(4, 0.1)
    params = click_model.ResponseParams(None, None, shift=jnp.float32(shift))
    np.testing.assert_allclose(
      respond(params, None, None, None), 4 / (4 + 9), rtol=1e-6
    )

  def test_an_unknown_name_is_refused(self):
    with self.assertRaisesRegex(
      InputError,
      "--simulator_click_model is 'no'; expected one of attention, blended, "
      "double_sigmoid, linear",
    ):
      user_simulator.make(SimulatorConfig(click_model="no"), 4)


if __name__ == "__main__":
  absltest.main()
