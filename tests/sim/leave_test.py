"""Leave rules: patience and boredom, and a rule of another kind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.spatial import distance as scipy_distance

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.sim import leave
from hsrl_jax.sim.leave import BoredomRule, DistanceRule, Length, Patience
from tests import toy


@dataclasses.dataclass(frozen=True)
class ByChance:
  """A user leaves after a slate with this chance, after `most` in any case."""

  chance: float
  most: int

  def start(self):
    return {"slates": jnp.int32(0)}

  def step(self, state, slate, response, reward, draw):
    del slate, response, reward
    slates = state["slates"] + 1
    return {"slates": slates}, (draw < self.chance) | (slates >= self.most)


class LeaveTest(absltest.TestCase):
  def test_patience_by_hand(self):
    """Falls by (1 - R) K + 1; at 1 the user stays, below 1 not."""
    rule, slate, nothing = Patience(4.0), jnp.arange(1, 3), jnp.float32(0.5)
    state, expected = rule.start(), [(2.0, False), (1.0, False), (-1.2, True)]
    for reward, (left, leaves) in zip((0.5, 1.0, 0.4), expected, strict=True):
      state, found = rule.step(
        state, slate, jnp.zeros(2), jnp.float32(reward), nothing
      )
      self.assertAlmostEqual(float(state), left, places=5)
      self.assertEqual(bool(found), leaves)

  def test_sessions_with_another_rule(self):
    env = toy.env()._replace(leave=ByChance(0.3, 4), max_steps=10)
    active = toy.inputs().catalogue.index.active
    sessions = simulate.simulate(
      bounds.random_policy(toy.SLATE),
      env,
      active,
      toy.inputs().env_params,
      jax.random.key(0),
      episodes=2000,
    )
    share = np.bincount(np.asarray(sessions.depth, int)) / 2000
    expected = [0.0, 0.3, 0.7 * 0.3, 0.7**2 * 0.3, 0.7**3]
    np.testing.assert_allclose(share, expected, atol=0.04)

  def test_a_new_user_starts_anew(self):
    env, users = toy.env()._replace(leave=ByChance(0.0, 2)), toy.inputs()
    state, slates = env.start(1, users.env_params), []
    for step in range(5):
      state, result, _ = env.step_or_reset(
        jax.random.key(step), state, jnp.arange(1, 4), users.env_params
      )
      slates.append(int(state.leave["slates"]))
      self.assertEqual(bool(result.terminated), step % 2 == 1)
    self.assertEqual(slates, [1, 0, 1, 0, 1])


class BoredomTest(absltest.TestCase):
  def test_one_item_by_hand(self):
    """Categories X of the items 1 and 2, Y of 2 and 3; item 4 has none."""
    table = jnp.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], bool)
    rule, items = BoredomRule(window=3, threshold=1), jnp.arange(5)
    state, nothing, left = rule.start(), jnp.float32(0), []
    for item in (1, 2, 3, 4, 3, 3, 4, 1):
      triggered = rule.triggers(state, items, table)
      state, leaves = rule.step(
        state, jnp.array([item]), jnp.ones(1), nothing, nothing, table
      )
      self.assertEqual(bool(leaves), bool(triggered[item]))
      left.append(bool(leaves))
    # Before the third item X was shown twice, Y once. Before the sixth the last
    # three are 3 4 3: Y twice. Before the seventh and the eighth as well.
    self.assertEqual(left, [0, 0, 0, 0, 1, 1, 0, 0])
    state = jnp.array([1, 2, 4])
    np.testing.assert_array_equal(
      rule.triggers(state, items, table), [0, 1, 1, 0, 0]
    )
    np.testing.assert_array_equal(
      BoredomRule(3, 0).triggers(state, items, table), [0, 1, 1, 1, 0]
    )

  def test_sessions_equal_lists(self):
    """Random slates of 2 with places that show nothing, also after leaving."""
    rng, window, threshold = np.random.default_rng(0), 6, 2
    rule, table = BoredomRule(window, threshold), rng.random((21, 6)) < 0.25
    table[0] = False
    own = [set(np.flatnonzero(row).tolist()) for row in table]
    slates = rng.integers(0, 21, (100, 2))

    def step(state, slate):
      return rule.step(state, slate, jnp.zeros(2), 0.0, 0.5, jnp.asarray(table))

    slates_ = jnp.asarray(slates, jnp.int32)
    _, found = jax.lax.scan(step, rule.start(), slates_)
    shown, expected = [], []
    for slate in slates.tolist():
      last = shown[-window:]
      expected.append(
        any(
          sum(category in own[x] for x in last) > threshold
          for item in slate
          for category in own[item]
        )
      )
      shown += [item for item in slate if item]
    np.testing.assert_array_equal(found, expected)
    self.assertBetween(sum(expected), 10, 90)

  def test_the_last_slate_earns(self):
    """All like all; a category may be among the last three once."""
    env = toy.env()._replace(
      response_fn=lambda params, profile, history, items: jnp.ones(len(items)),
      leave=BoredomRule(3, 1),
      slate_size=1,
    )
    active = jnp.arange(toy.ITEMS + 1) > 0
    sessions = simulate.simulate(
      bounds.random_policy(1),
      env,
      active,
      toy.users()._replace(categories=active[:, None]),
      jax.random.key(0),
      episodes=2,
    )
    # Before the third item two of the last three are of its category.
    np.testing.assert_array_equal(sessions.depth, 3)
    np.testing.assert_allclose(sessions.total_reward, 3)

  def test_rules_by_name(self):
    rules = {
      "patience": Patience(20.0),
      "length": Length(),
      "boredom": BoredomRule(4, 1),
      "distance": DistanceRule(4),
    }
    for name, rule in rules.items():
      config = SimulatorConfig(leave=name, leave_window=4, leave_threshold=1)
      self.assertEqual(leave.of_config(config), rule)
      self.assertEqual(config.uses_topics, name == "boredom")
    self.assertEqual(SimulatorConfig().leave, "patience")
    state, leaves = Length().step(
      Length().start(), jnp.arange(2), jnp.zeros(2), jnp.float32(-9), 0.5
    )
    self.assertFalse(leaves)
    self.assertEqual(state, Length().start())
    with self.assertRaisesRegex(ValueError, "leave_threshold is 5; expected"):
      SimulatorConfig(leave="boredom", leave_threshold=5)


class DistanceTest(parameterized.TestCase):
  def test_by_hand(self):
    """Items at 0, 1, 4, 9 of a line: distances 1, 3, 4, 5, 8, 9."""
    line = np.array([[99.0], [0], [1], [4], [9]])
    # Between the second and the third distance: 3.5.
    known, rule = leave.nearness(line, 30.0), DistanceRule(2)
    near = np.zeros((5, 5), bool)
    near[1:, 1:] = np.abs(line[1:] - line[1:].T) < 3.5
    np.testing.assert_array_equal(known.pairs, near)
    state, left = rule.start(), []
    for item in (1, 4, 2, 3, 0, 1, 1):
      triggered = rule.triggers(state, jnp.arange(5), known)
      state, leaves = rule.step(
        state, jnp.array([item]), jnp.ones(1), 0.0, 0.5, known
      )
      self.assertEqual(bool(leaves), bool(triggered[item]))
      left.append(bool(leaves))
    # 2 comes after 1 and 4; 3 after 4 and 2; 1 after 2 and 3, then after 3 and
    # itself.
    self.assertEqual(left, [0, 0, 1, 1, 0, 1, 1])

  def test_by_pairs_and_by_vectors(self):
    """Both are what scipy finds; the bound of a sample is close."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(3.0, 1.0, (61, 5))
    vectors[7] = vectors[8]
    distances = scipy_distance.squareform(scipy_distance.pdist(vectors[1:]))
    own = distances[np.triu_indices(60, 1)]
    expected = np.zeros((61, 61), bool)
    expected[1:, 1:] = distances < np.percentile(own, 20.0)
    every = leave.nearness(vectors, 20.0)
    np.testing.assert_array_equal(every.pairs, expected)
    drawn = leave.nearness(vectors, 20.0, most_items=59, pairs=50_000)
    self.assertBetween((own < float(drawn.bound)).mean(), 0.19, 0.21)
    exact = drawn._replace(bound=jnp.float32(np.percentile(own, 20.0)))
    items, others = jnp.arange(61), jnp.array([0, 7, 8, 30])
    np.testing.assert_array_equal(
      exact.near(items, others), expected[:, [0, 7, 8, 30]]
    )
    np.testing.assert_array_equal(
      every.near(items, others), expected[:, [0, 7, 8, 30]]
    )

  def test_sessions_of_the_farsighted(self):
    """Items on a circle: whoever sees the distances makes nobody leave."""
    angle = 2 * np.pi * np.arange(toy.ITEMS) / toy.ITEMS
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    known = leave.nearness(np.pad(circle, ((1, 0), (0, 0))), 30.0)
    env = toy.env(no_repeat=True)._replace(leave=DistanceRule(3), slate_size=1)
    users = toy.users()._replace(near=known)
    active = jnp.arange(toy.ITEMS + 1) > 0
    policies = {
      "random": (bounds.random_policy(1), active),
      "farsighted": (bounds.farsighted(env), (users, active)),
    }
    depth = {}
    for name, (act, params) in policies.items():
      sessions = simulate.simulate(
        act, env, params, users, jax.random.key(0), episodes=50
      )
      depth[name] = float(sessions.depth.mean())
      for row in np.asarray(sessions.slates)[..., 0]:
        shown = row[row > 0].tolist()
        left = [
          any(known.pairs[item, x] for x in shown[max(t - 3, 0) : t])
          for t, item in enumerate(shown)
        ]
        self.assertFalse(any(left[:-1]))
        self.assertEqual(left[-1], len(shown) < env.max_steps or left[-1])
    self.assertEqual(depth["farsighted"], env.max_steps)
    self.assertLess(depth["random"], env.max_steps)


if __name__ == "__main__":
  absltest.main()
