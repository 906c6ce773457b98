"""Estimates from logs in a toy simulator, whose every value is enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from hsrl_jax import agents
from hsrl_jax.evaluation import logged
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Sessions
from tests import toy

USER = np.arange(1_200) % toy.USERS
TEMPERATURES = (0.5, 0.7, 0.3, 0.15)  # The logs are drawn at the first.
EVERYTHING = agents.make_agent(toy.config(), toy.ITEMS, toy.ITEMS)


class LoggedTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.env, inputs = toy.env(), toy.inputs()
    cls.users, cls.catalogue = inputs.env_params, inputs.catalogue
    start = cls.env.start(0, cls.users).observation
    params = EVERYTHING.init(jax.random.key(3), cls.catalogue, start)
    cls.params = (params, cls.catalogue)
    # log pi of every user and item, and by hand what the item earns.
    cls.log_pi = np.asarray(
      jax.jit(
        jax.vmap(
          lambda row: logged.log_probs(
            EVERYTHING, cls.params, cls.env.start(row, cls.users).observation
          )
        )
      )(jnp.arange(toy.USERS)),
      np.float64,
    )
    liked = (np.arange(toy.ITEMS) % toy.GROUPS) == (
      np.arange(toy.USERS)[:, None] % toy.GROUPS
    )
    chance = np.where(liked, 0.95, 0.1)
    cls.reward = chance - 0.1 * (1 - chance)
    cls.table = np.linspace(0, 1, toy.ITEMS + 1, dtype=np.float32)

  def pi(self, temperature):
    """[users, items], by the definition."""
    raised = np.exp(self.log_pi[:, 1:] / temperature)
    return raised / raised.sum(1, keepdims=True)

  def score(self, sessions):
    return logged.score(
      EVERYTHING,
      self.env,
      self.params,
      self.users,
      sessions,
      self.table,
      TEMPERATURES,
      jax.random.key(5),
    )

  def check_covers(self, rows, within=3.5):
    for row in rows:
      truth = (self.pi(row["temperature"]) * self.reward).sum(1).mean()
      for name in ("snips", "doubly_robust"):
        low, high = row[name]["ci95"]
        error = (high - low) / 2 / 2.07  # Student's, 23 degrees of freedom.
        self.assertLess(
          abs(row[name]["value"] - truth), within * error, (name, row)
        )
        self.assertLess(error, 0.15)
      self.assertAlmostEqual(row["mean_weight"], 1.0, delta=0.15)

  def test_log_probs_are_those_of_the_slates_shown(self):
    # Weights are what the probabilities of a sample are kept for.
    act = toy.agent(toy.config(importance_clip=1.0)).act
    for row in (0, 7):
      observation = self.env.start(row, self.users).observation
      action = act(
        self.params[0],
        self.catalogue,
        observation,
        jnp.zeros(0, jnp.int32),
        jax.random.key(row),
        1.0,
      )
      np.testing.assert_allclose(
        action.log_prob, self.log_pi[row][action.slate], rtol=1e-5
      )
      self.assertEqual(self.log_pi[row][0], -np.inf)

  def test_simulated_logs_give_the_known_answer(self):
    logs = logged.collect(
      EVERYTHING,
      self.params,
      self.env,
      self.users,
      USER,
      jax.random.key(4),
      temperature=TEMPERATURES[0],
    )
    for user in (0, 5):
      # Items fall as pi says, and are liked as the simulator says.
      mine = np.asarray(logs.exposed)[user == USER] - 1
      pi, draws = self.pi(TEMPERATURES[0])[user], mine.size
      share = np.bincount(mine.ravel(), minlength=toy.ITEMS) / draws
      bound = 4.5 * np.sqrt(pi * (1 - pi) / draws)
      np.testing.assert_array_less(np.abs(share - pi), bound + 1 / draws)
    earned = np.asarray(logs.response) * 1.1 - 0.1
    want = self.reward[USER[:, None], np.asarray(logs.exposed) - 1]
    self.assertAlmostEqual(earned.mean(), want.mean(), delta=0.03)

    rows = logged.estimates(
      logs,
      self.score(logs),
      TEMPERATURES,
      env=self.env,
      table=self.table,
      clip=1e9,
    )
    self.check_covers(rows)
    for row in rows:
      pi = self.pi(row["temperature"])
      self.assertAlmostEqual(
        row["truth"], (pi * self.reward).sum(1).mean(), places=5
      )
      self.assertAlmostEqual(
        row["direct"]["value"], (pi @ self.table[1:]).mean(), places=5
      )
      self.assertEqual(row["draws"], len(USER) * toy.SLATE)
    # The further from the logs, the fewer of them count.
    share = [x["effective_sample_size"] / x["draws"] for x in rows]
    self.assertGreater(share[0], 0.5)
    self.assertLess(share[2], share[1])

  @pytest.mark.slow
  def test_acted_is_what_the_policy_earns(self):
    act = toy.agent(toy.config()).act

    @jax.jit
    @jax.vmap
    def reward(row, key):
      state = self.env.start(row, self.users)
      slate = act(
        self.params[0],
        self.catalogue,
        state.observation,
        state.seen,
        jax.random.fold_in(key, 0),
        TEMPERATURES[2],
      ).slate
      key = jax.random.fold_in(key, 1)
      return self.env.step(key, state, slate, self.users)[1].reward

    keys = jax.random.split(jax.random.key(6), len(USER))
    want = np.asarray(reward(jnp.asarray(USER), keys))
    sessions = Sessions(
      USER,
      self.users.profiles[USER],
      self.users.histories[USER],
      jnp.ones((len(USER), toy.SLATE), jnp.int32),
      jnp.zeros((len(USER), toy.SLATE)),
    )
    got = np.asarray(self.score(sessions).acted)[:, 2]
    error = np.hypot(want.std(), got.std()) / np.sqrt(len(USER))
    self.assertLess(abs(got.mean() - want.mean()), 4 * error)

  def test_logs_of_guessed_propensities_that_are_right(self):
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(toy.ITEMS, 20))
    shown = rng.choice(toy.ITEMS, (len(USER), toy.SLATE), p=share) + 1
    chance = (self.reward + 0.1) / 1.1
    liked = rng.random(shown.shape) < chance[USER[:, None], shown - 1]
    logs = Sessions(
      USER,
      self.users.profiles[USER],
      self.users.histories[USER],
      jnp.asarray(shown, jnp.int32),
      jnp.asarray(liked, jnp.float32),
    )
    rows = logged.estimates(
      logs,
      self.score(logs),
      TEMPERATURES,
      env=self.env,
      table=self.table,
      clip=1e9,
      log_mu=np.log(np.concatenate([[1e-30], share])),
    )
    self.check_covers(rows)
    for row in rows:
      self.assertNotIn("truth", row)  # Which nobody knows.
      pi = self.pi(row["temperature"])
      self.assertAlmostEqual(  # The click model is right here.
        row["direct"]["value"], (pi * self.reward).sum(1).mean(), places=5
      )

  def test_tables_of_the_logs_by_hand(self):
    logs = Sessions(
      None, None, None, np.array([[1, 2], [1, 3]]), np.array([[1, 0], [0, 0]])
    )
    # Rewards: 1, -0.1, -0.1, -0.1, their mean 0.175; item 4 was never shown.
    got = logged.item_rewards(logs, 4, Reward(-0.1))
    want = [0.175, 2.65 / 12, 1.65 / 11, 1.65 / 11, 0.175]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(
      np.exp(logged.log_popularity(logs, 4)),
      [0, 3 / 8, 2 / 8, 2 / 8, 1 / 8],
      rtol=1e-5,
    )


if __name__ == "__main__":
  absltest.main()
