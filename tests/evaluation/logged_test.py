"""Policies as logs see them, in a toy world whose every value is enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import agents
from hsrl_jax.evaluation import logged, off_policy
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Sessions
from tests import toy
from tests.agents import checks

ROWS = 600
ACTIVE = jnp.arange(toy.ITEMS + 1) > 0


def _by_profile(params, observation):
  """A policy that knows which group a user likes; no padding."""
  items = jnp.arange(toy.ITEMS + 1)
  liked = observation.profile[(items - 1) % toy.GROUPS] > 0
  return logged.softmax(params * liked, ACTIVE)


def _wrong(params, observation):
  """A model of responses; nothing of padding."""
  del observation
  return jnp.linspace(0, params, toy.ITEMS + 1).at[0].set(-jnp.inf)


def _logs():
  """Items by a known distribution, and as the toy's users respond."""
  rng, users = np.random.default_rng(0), toy.inputs().env_params
  user = np.arange(ROWS) % toy.USERS
  mu = rng.dirichlet(np.full(toy.ITEMS, 5.0))
  shown = rng.choice(toy.ITEMS, (ROWS, toy.SLATE), p=mu) + 1
  profile = np.asarray(users.profiles)[user]
  likes = profile[np.arange(ROWS)[:, None], (shown - 1) % toy.GROUPS] > 0
  liked = rng.random(shown.shape) < np.where(likes, 0.95, 0.1)
  return Sessions(
    user,
    profile,
    np.asarray(users.histories)[user],
    shown.astype(np.int32),
    liked.astype(np.float32),
    propensity=mu[shown - 1].astype(np.float32),
  )


class PoliciesTest(parameterized.TestCase):
  def test_softmax_leaves_out_what_may_not_be_shown(self):
    got = logged.softmax(jnp.log(jnp.array([9.0, 1, 2, 3])), jnp.arange(4) > 1)
    np.testing.assert_allclose(got, [0, 0, 0.4, 0.6], rtol=1e-6)

  def test_a_list_shows_its_best(self):
    scores, active = jnp.array([9.0, 1, 2, 3, 0]), jnp.arange(5) > 0
    got = logged.shows_best(scores, active, 2)
    np.testing.assert_array_equal(got, [0, 0, 0.5, 0.5, 0])
    got = logged.shows_best(scores, jnp.arange(5) == 4, 2)
    np.testing.assert_array_equal(got, [0, 0, 0, 0, 1])

  @parameterized.parameters("a2c", "ddpg")
  def test_an_agents_probabilities(self, name):
    made = checks.made(name)
    own, nothing = (made.params, made.catalogue), jnp.zeros(0, jnp.int32)
    agent = agents.make_agent(made.config, toy.ITEMS, toy.ITEMS)
    policy = jax.jit(logged.of_agent(agent, toy.SLATE))
    got = policy(own, made.observation)
    self.assertAlmostEqual(float(got.sum()), 1, places=5)
    self.assertEqual(got[0], 0)
    action = jax.jit(lambda o: agent.act(*own, o, nothing, None, 1.0))(
      made.observation
    )
    shown = np.asarray(got)[action.slate]
    if name == "ddpg":  # Which has none: its greedy slate.
      want = (np.arange(toy.ITEMS) < toy.SLATE) / toy.SLATE
    else:
      want = np.exp(action.log_prob) / np.exp(action.log_prob).sum()
    np.testing.assert_allclose(shown, want, rtol=1e-4)


class SeenByTest(absltest.TestCase):
  def test_columns_by_hand_and_the_true_value_within(self):
    logs, strength = _logs(), (jnp.float32(1.5), jnp.float32(0.5))
    seen = logged.seen_by(
      _by_profile, strength, (_wrong, jnp.float32(1.0)), logs, toy.ITEMS
    )
    liked = logs.profile[:, np.arange(toy.ITEMS) % toy.GROUPS] > 0
    raised = np.exp(np.array([1.5, 0.5])[:, None, None] * liked)
    pi = (raised / raised.sum(-1, keepdims=True)).mean(0)  # Of two seeds.
    q = np.linspace(0, 1, toy.ITEMS + 1)[1:]
    flat = logs.exposed - 1
    np.testing.assert_allclose(
      seen.target, np.take_along_axis(pi, flat, 1), rtol=1e-5
    )
    np.testing.assert_allclose(seen.predicted, q[flat], rtol=1e-5)
    np.testing.assert_allclose(seen.expected[:, 0], pi @ q, rtol=1e-5)
    seen = logged.of_items(seen, logs)
    np.testing.assert_allclose(
      seen.expected[:, 0], np.repeat(pi @ q, toy.SLATE), rtol=1e-5
    )
    np.testing.assert_array_equal(seen.user, np.repeat(logs.user_id, toy.SLATE))
    # Users with a like of the group, and a chance of each item.
    truth = (pi * np.where(liked, 0.95, 0.1)).sum(1).mean()
    for name, found in off_policy.estimates(seen).items():
      low, high = found["ci95"]
      self.assertBetween(truth, low, high, name)
      self.assertLess(high - low, 0.15)

  def test_sessions_by_hand(self):
    # Two users: one session of two slates, its second one first; one of one.
    logs = Sessions(
      user_id=np.array([7, 3, 3]),
      profile=np.zeros((3, 1)),
      history=np.zeros((3, 1), int),
      exposed=np.ones((3, 2), np.int32),
      response=np.array([[1, 1], [0, 1], [1, 0]]),
      session=np.array([0, 1, 1]),
      step=np.array([0, 1, 0]),
      propensity=np.array([[0.5, 0.5], [0.5, 0.25], [1.0, 0.5]]),
      reward=np.array([np.nan, 9.0, np.nan]),
    )
    q = np.array([[0.5, 1.0], [0.2, 0.4], [0.0, 0.0]])
    seen = logged.Seen(
      np.array([[0.5, 1.0], [0.2, 0.5], [0.3, 0.5]]), q, np.full((3, 1), 0.5)
    )
    got = logged.of_sessions(seen, logs, Reward(-0.2))
    by_user = {int(user): i for i, user in enumerate(got.user)}
    first, other = by_user[3], by_user[7]
    np.testing.assert_allclose(got.target[first], [0.15, 0.1])
    np.testing.assert_allclose(got.logging[first], [0.5, 0.125])
    np.testing.assert_allclose(got.reward[first], [0.4, 9.0])
    # The means of q - 0.2 (1 - q).
    np.testing.assert_allclose(got.predicted[first], [-0.2, 0.16], atol=1e-9)
    np.testing.assert_allclose(got.expected[first], [0.4, 0.4])
    np.testing.assert_allclose(got.target[other], [0.5, 1.0])
    np.testing.assert_allclose(got.logging[other], [0.25, 1.0])
    np.testing.assert_allclose(got.reward[other], [1.0, 0.0])
    weight = off_policy.weights(got)
    np.testing.assert_allclose(weight[first], [0.3, 0.24])
    # By decision: (0.3 x 0.4 + 0.24 x 9 + 2 x 1) / 2.
    self.assertAlmostEqual(off_policy.ips(got).value, 2.14)
    # Of rewards that are no mean the model knows nothing.
    got = logged.of_sessions(seen, logs, Reward(-0.2, sweet_point=0.5))
    self.assertFalse(got.predicted.any())


if __name__ == "__main__":
  absltest.main()
