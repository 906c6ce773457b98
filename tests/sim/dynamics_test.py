"""Boredom against a user of plain lists, step by step, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.sim import dynamics, leave, user_simulator
from hsrl_jax.sim.dynamics import TopicBoredom
from hsrl_jax.sim.reward import Reward

ITEMS, TOPICS, SLATE, STEPS = 30, 4, 5, 100
OF_ITEMS = np.arange(ITEMS + 1) % (TOPICS + 1)  # Topic 0 is among them.
OF_ITEMS[0] = 0
LIKED = np.float32([0, *np.linspace(0.4, 0.95, ITEMS)])


class ListUser:
  """What SARDINE does with counts and timers, in its order of events."""

  def __init__(self, mode, memory, window, threshold):
    self.mode, self.memory, self.window = mode, memory, window
    self.threshold = threshold
    self.time, self.likes, self.timers = 0, [], {}

  def boring(self, topic):
    if self.mode == "all":
      return bool(self.timers)
    return topic in self.timers

  def respond(self, topics, responses):
    for topic, response in zip(topics, responses, strict=True):
      if response:
        self.likes.append((int(topic), self.time))
    self.likes = self.likes[-self.memory :]
    self.time += 1
    recent = [t for t, at in self.likes if at >= self.time - self.window]
    self.timers = {t: n - 1 for t, n in self.timers.items() if n > 1}
    for topic in set(recent) - {0}:
      if recent.count(topic) >= self.threshold:
        self.timers.setdefault(topic, self.window)


def _env(boredom, **settings):
  config = SimulatorConfig(boredom=boredom, max_steps=STEPS, **settings)
  return user_simulator.UserSimulator(
    response_fn=lambda params, profile, history, items: params[items],
    slate_size=SLATE,
    no_repeat=False,
    max_steps=STEPS,
    reward=Reward(-0.1),
    leave=leave.Length(),
    dynamics=dynamics.of_config(config, TOPICS),
  )


def _params(biases=None):
  return user_simulator.EnvParams(
    jnp.asarray(LIKED),
    jnp.zeros((2, 1)),
    jnp.zeros((2, 3), jnp.int32),
    biases=biases,
    topics=jnp.asarray(OF_ITEMS, jnp.int32),
  )


@functools.partial(jax.jit, static_argnums=0)
def _session(env, params, slates, key):
  """Probabilities of all items before each step, [T, N + 1], and responses."""

  def step(state, inputs):
    time, slate = inputs
    chances = env.chances(state, jnp.arange(ITEMS + 1), params)
    room = env.dynamics.room(state.dynamics, state.steps)
    step_key = jax.random.fold_in(key, time)
    state, result = env.step(step_key, state, slate, params)
    return state, (chances, room, result.response)

  times = jnp.arange(len(slates))
  return jax.lax.scan(step, env.start(0, params), (times, slates))[1]


class BoredomTest(parameterized.TestCase):
  @parameterized.parameters(
    ("topic", 10, 5, 3), ("all", 10, 5, 4), ("all", 4, 2, 2), ("topic", 7, 1, 2)
  )
  def test_equals_a_user_of_lists(self, mode, memory, window, threshold):
    rule = TopicBoredom(TOPICS, mode == "all", memory, window, threshold)
    env = _env(mode)._replace(dynamics=rule)
    rng = np.random.default_rng(0)
    slates = np.stack(
      [rng.permutation(ITEMS)[:SLATE] + 1 for _ in range(STEPS)]
    )
    slates[rng.random(slates.shape) < 0.1] = 0  # Places that show nothing.
    chances, room, responses = map(
      np.asarray, _session(env, _params(), slates, jax.random.key(0))
    )
    user, bored = ListUser(mode, memory, window, threshold), []
    for time in range(STEPS):
      boring = np.array([user.boring(x) for x in range(TOPICS + 1)])
      bored.append(boring.any())
      np.testing.assert_allclose(
        chances[time], np.where(boring[OF_ITEMS], 0, LIKED), err_msg=str(time)
      )
      recent = [t for t, at in user.likes if at > time - window]
      for topic in range(1, TOPICS + 1):
        left = max(threshold - 1 - recent.count(topic), 0)
        self.assertEqual(room[time, topic], 0 if boring[topic] else left)
      if boring[0]:
        self.assertEqual(room[time, 0], 0)
      else:
        self.assertGreater(room[time, 0], ITEMS)
      user.respond(OF_ITEMS[slates[time]], responses[time])
    self.assertBetween(np.sum(bored), 10, STEPS - 5)
    shown = np.take_along_axis(chances, slates, 1)
    self.assertEqual(responses[(shown == 0) | (slates == 0)].sum(), 0)
    self.assertGreater(responses.sum(), 20)

  def test_by_hand(self):
    """Two likes of topic 1 in steps 0 and 1 bore in the steps 2 to 4."""
    rule = TopicBoredom(2, False, memory=10, window=3, threshold=2)
    one, likes = jnp.array([1, 2]), jnp.array([0.9, 0.9])
    state, seen = rule.start(), []
    for step in range(6):
      seen.append(rule.probabilities(state, one, likes, step).tolist())
      response = jnp.array([float(step < 2), 0.0])
      state = rule.after(state, one, response, jnp.int32(step))
    self.assertEqual([x[0] > 0 for x in seen], [1, 1, 0, 0, 0, 1])
    self.assertEqual([x[1] > 0 for x in seen], [1] * 6)

  def test_only_the_last_likes_are_remembered(self):
    """Three likes of topic 1, then two of topic 2: a memory of 4 has two."""
    for memory, bored in ((4, False), (5, True)):
      rule = TopicBoredom(2, False, memory=memory, window=5, threshold=3)
      state = rule.after(
        rule.start(), jnp.array([1, 1, 1, 2, 2]), jnp.ones(5), jnp.int32(0)
      )
      boring = rule.bores(state, jnp.int32(1))
      np.testing.assert_array_equal(boring, [False, bored, False])

  def test_a_new_user_is_not_bored(self):
    """Also where a bias is known of users; and a bias still counts."""
    env = _env("all", boredom_threshold=2)._replace(
      max_steps=1,
      response_fn=lambda params, profile, history, items, user: (
        params[items] + user
      ),
    )
    params = _params(jnp.array([0.5, 0.5]))._replace(response=jnp.zeros(31))
    state = env.start(0, params)
    items = jnp.arange(1, 6)
    np.testing.assert_allclose(env.chances(state, items, params), 0.5)
    bored = state._replace(
      dynamics=state.dynamics._replace(boring_until=jnp.full(5, 9))
    )
    np.testing.assert_allclose(env.chances(bored, items, params), 0)
    step = jax.jit(env.step_or_reset)
    state, result, _ = step(jax.random.key(0), bored, items, params)
    np.testing.assert_array_equal(result.response, 0)
    np.testing.assert_allclose(env.chances(state, items, params), 0.5)

  def test_by_default_users_do_not_change(self):
    config = SimulatorConfig()
    self.assertIsNone(dynamics.of_config(config, 3))
    self.assertFalse(config.uses_topics)
    env = user_simulator.make(config, 3)
    self.assertIsNone(env.dynamics)
    state = env.start(0, _params())
    self.assertEqual(state._fields, user_simulator.EnvState._fields)

  def test_settings_that_never_bore_are_refused(self):
    with self.assertRaisesRegex(ValueError, "boredom_threshold is 11; expect"):
      SimulatorConfig(boredom="all", boredom_threshold=11)
    SimulatorConfig(boredom_threshold=11)


if __name__ == "__main__":
  absltest.main()
