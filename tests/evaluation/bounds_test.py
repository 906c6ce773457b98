"""Bounds of worlds with boredom against plain loops over items."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.evaluation import bounds, measures, simulate
from hsrl_jax.sim import dynamics, fatigue, leave
from hsrl_jax.sim.reward import Reward
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator

ITEMS, EPISODES = 40, 6
_RNG = np.random.default_rng(0)
CHANCES = np.float32([0, *_RNG.uniform(0.6, 0.99, ITEMS)])
TOPICS = np.int32([0, *_RNG.integers(0, 4, ITEMS)])  # Topic 0 is none.
TABLE = _RNG.random((ITEMS + 1, 5)) < 0.3  # Categories.
TABLE[0] = False
ACTIVE = jnp.arange(ITEMS + 1) > 0


def _env(slate_size, steps, **pieces):
  return UserSimulator(
    response_fn=lambda params, profile, history, items: params[items],
    slate_size=slate_size,
    no_repeat=True,
    max_steps=steps,
    reward=Reward(0.0),
    **({"leave": leave.Length()} | pieces),
  )


def _sessions(env, act, table=TABLE):
  users = _users(table)
  sessions = simulate.simulate(
    act, env, (users, ACTIVE), users, jax.random.key(0), episodes=EPISODES
  )
  return jax.tree.map(np.asarray, sessions)


def _users(table=TABLE):
  return EnvParams(
    jnp.asarray(CHANCES),
    jnp.zeros((1, 1)),
    jnp.zeros((1, 3), jnp.int32),
    topics=jnp.asarray(TOPICS),
    categories=jnp.asarray(table),
  )


def _by_room(room, excluded, count):
  """The slate of a loop over the items, the most probable first."""
  order = sorted(set(range(1, ITEMS + 1)) - excluded, key=lambda i: -CHANCES[i])
  chosen, taken = [], [0] * 4
  for item in order:
    topic = TOPICS[item]
    if topic == 0 or taken[topic] < room[topic]:
      taken[topic] += 1
      chosen.append(item)
  return (chosen + [i for i in reversed(order) if i not in chosen])[:count]


class BoredomTest(absltest.TestCase):
  def test_farsighted_equals_a_loop_and_never_bores(self):
    """Boredom by likes of the last 3 steps; some slates lack room."""
    threshold, window, slate_size, steps = 3, 3, 5, 8
    rule = dynamics.TopicBoredom(3, True, 10, window, threshold)
    env = _env(slate_size, steps, dynamics=rule)
    policies = bounds.bounds(env, _users(), ACTIVE)
    self.assertEqual([*policies], [*bounds.BOUNDS, "farsighted"])
    sessions = _sessions(env, policies["farsighted"][0])
    full = 0
    for slates, responses in zip(
      sessions.slates, sessions.responses, strict=True
    ):
      likes, excluded = [], set()
      for time in range(steps):
        recent = [t for t, at in likes[-10:] if at > time - window]
        room = [threshold - 1 - recent.count(topic) for topic in range(4)]
        expected = _by_room(room, excluded, slate_size)
        self.assertEqual(slates[time].tolist(), expected)
        places = [max(x, 0) for x in room[1:]]
        if max(np.bincount(TOPICS[expected], minlength=4)[1:] - places) > 0:
          break  # The slate lacked room: boredom may follow.
        full += 1
        excluded |= set(expected)
        for item, response in zip(expected, responses[time], strict=True):
          if response:
            likes.append((TOPICS[item], time))
    self.assertGreater(full, 2 * EPISODES)
    greedy = _sessions(env, policies["greedy_oracle"][0])
    self.assertGreater(
      sessions.total_reward.mean(), 1.2 * greedy.total_reward.mean()
    )
    # While a topic bores nothing is liked: the oracle has whole steps of that.
    without_likes = (greedy.responses.sum(-1) == 0).sum(-1)
    self.assertGreaterEqual(without_likes.min(), 3)

  def test_the_greedy_oracle_knows_what_bores(self):
    """Topic by topic: no item of a boring topic is shown while others last."""
    rule = dynamics.TopicBoredom(3, False, 10, 3, 2)
    env = _env(3, 5, dynamics=rule)
    greedy = _sessions(env, bounds.greedy_oracle(env))
    for slates, responses in zip(greedy.slates, greedy.responses, strict=True):
      until, likes = {}, []
      for time in range(5):
        boring = {topic for topic, last in until.items() if last >= time}
        self.assertEmpty(boring & set(TOPICS[slates[time]].tolist()))
        likes += [
          (topic, time)
          for topic, x in zip(
            TOPICS[slates[time]], responses[time], strict=True
          )
          if x
        ]
        recent = [t for t, at in likes[-10:] if at > time - 3]
        for topic in {1, 2, 3} - boring:
          if recent.count(topic) >= 2:
            until[topic] = time + 3
      self.assertNotEmpty(until)


class FatigueTest(absltest.TestCase):
  def test_the_myopic_equals_a_loop_and_the_greedy_never_looks(self):
    """Three clusters of items alike; the user tires of each by halves."""
    rng, steps, scale, pace = np.random.default_rng(1), 8, 2.0, 0.5
    kernel = np.eye(3)[rng.integers(0, 3, ITEMS + 1)]
    kernel = (kernel + 0.1 * rng.normal(size=kernel.shape)).astype(np.float32)
    kernel /= np.linalg.norm(kernel, axis=1, keepdims=True)
    env = _env(1, steps, dynamics=fatigue.Fatigue(1.0, scale))
    users = _users()._replace(
      kernel=jnp.asarray(kernel), people=jnp.array([[1.0, pace]])
    )
    policies = bounds.bounds(env, users, ACTIVE)
    self.assertEqual([*policies], [*bounds.BOUNDS, "myopic"])

    def shown(name):
      act, params = policies[name]
      key = jax.random.key(0)
      found = simulate.simulate(act, env, params, users, key, episodes=1)
      return found.slates[0, :, 0].tolist()

    best = np.argsort(-CHANCES[1:]) + 1
    self.assertEqual(shown("greedy_oracle"), best[:steps].tolist())
    had, logits = [], np.log(CHANCES[1:] / (1 - CHANCES[1:]))
    for item in shown("myopic"):
      load = sum(
        np.maximum(kernel[1:] @ kernel[j], 0) * pace ** (len(had) - at)
        for at, j in enumerate(had)
      )
      scores = logits - scale * load
      scores[np.array(had, int) - 1] = -np.inf
      self.assertEqual(item, scores.argmax() + 1)
      had.append(item)
    self.assertNotEqual(had, best[:steps].tolist())


class LeaveTest(absltest.TestCase):
  def test_farsighted_equals_a_loop(self):
    """Items by probability, but of no category that was shown twice lately."""
    window, threshold, steps = 3, 1, 12
    env = _env(1, steps, leave=leave.BoredomRule(window, threshold))
    sessions = _sessions(env, bounds.farsighted(env))
    shown = []
    for item in sessions.slates[0, :, 0].tolist():
      counts = sum(TABLE[x] for x in shown[-window:]) + np.zeros(5)

      def harmless(item, counts=counts):
        return not (TABLE[item] & (counts > threshold)).any()

      left = set(range(1, ITEMS + 1)) - set(shown)
      self.assertEqual(
        item, max(filter(harmless, left), key=lambda i: CHANCES[i])
      )
      shown.append(item)
    np.testing.assert_array_equal(sessions.depth, steps)

  def test_what_drives_away_is_the_best(self):
    """All items have one category: the user leaves, and the last item earns."""
    env = _env(1, 12, leave=leave.BoredomRule(4, 1))
    table = np.asarray(ACTIVE)[:, None]
    sessions = _sessions(env, bounds.farsighted(env), table)
    np.testing.assert_array_equal(sessions.depth, 3)
    best = np.argsort(-CHANCES)[:3]
    np.testing.assert_array_equal(sessions.slates[0, :3, 0], best)


class NormalisedTest(absltest.TestCase):
  def test_the_best_bound_is_one(self):
    def of(rewards):
      policies = {}
      for name, reward in rewards.items():
        one, shown = np.full(1, 1.0), np.ones((1, 1, 1))
        policies[name] = [
          simulate.Simulated(np.full(1, reward), one, one, shown, shown)
        ]
      table = measures.report(policies, items=40)
      return {x: row["normalised"]["mean"] for x, row in table.items()}

    self.assertEqual(
      of({"random": 1.0, "greedy_oracle": 2.0, "farsighted": 5.0}),
      {"random": 0.0, "greedy_oracle": 0.25, "farsighted": 1.0},
    )
    self.assertEqual(
      of({"random": 1.0, "greedy_oracle": 5.0, "farsighted": 3.0}),
      {"random": 0.0, "greedy_oracle": 1.0, "farsighted": 0.5},
    )
    why = bounds.normalised([[1.0]], {"random": 2.0, "greedy_oracle": 2.0})
    self.assertEqual(why["withheld"], "random and greedy_oracle earn the same")


if __name__ == "__main__":
  absltest.main()
