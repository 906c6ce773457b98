"""The simulator against sessions worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.sim import blend as blend_lib
from hsrl_jax.sim import click_model, leave, observed, user_simulator
from hsrl_jax.sim.leave import Patience
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Sessions

SLATE, HISTORY, USERS = 3, 5, 4
PROFILES = np.arange(USERS, dtype="f")[:, None] + 100.0
HISTORIES = np.asarray([[0] * (HISTORY - 1) + [u + 50] for u in range(USERS)])


def _constant(probability, profile, history, slate):
  del profile, history
  return jnp.full(slate.shape, probability)


def _table(probabilities, profile, history, slate):
  """Each item has a probability of its own."""
  del profile, history
  return probabilities[slate]


def _simulator(response_fn=_constant, patience=20.0, **settings):
  defaults = dict(
    slate_size=SLATE,
    no_repeat=False,
    max_steps=20,
    reward=Reward(-0.1),
    leave=Patience(patience),
  )
  return user_simulator.UserSimulator(response_fn, **(defaults | settings))


def _params(response):
  return user_simulator.EnvParams(
    response, jnp.asarray(PROFILES), jnp.asarray(HISTORIES)
  )


@functools.partial(jax.jit, static_argnames=("env", "steps"))
def _session(env, params, slates, key, steps):
  """`steps` steps of the pool's user 2, [steps, ...] of states and results."""

  def step(state, inputs):
    state, result = env.step(*inputs[:1], state, inputs[1], params)
    return state, (state, result)

  keys = jax.random.split(key, steps)
  return jax.lax.scan(step, env.start(2, params), (keys, slates))[1]


def _slates(steps, size=SLATE):
  return np.arange(1, steps * size + 1, dtype=np.int32).reshape(steps, size)


def _run(env, response, steps, seed=0):
  slates = _slates(steps, env.slate_size)
  return _session(env, _params(response), slates, jax.random.key(seed), steps)


class StepTest(parameterized.TestCase):
  def test_all_positive(self):
    """Patience falls by 1 a step, from 20 to 0: the user leaves at step 20."""
    state, result = _run(_simulator(), 1.0, 20)
    np.testing.assert_array_equal(result.response, 1.0)
    np.testing.assert_allclose(result.reward, [1.0] * 20)
    np.testing.assert_allclose(state.leave, np.arange(19, -1, -1), atol=1e-4)
    np.testing.assert_array_equal(state.steps, np.arange(1, 21))
    # Both ends meet at step 20; leaving goes first.
    np.testing.assert_array_equal(result.terminated, [False] * 19 + [True])
    np.testing.assert_array_equal(result.truncated, [False] * 20)
    np.testing.assert_array_equal(
      result.observation.history[1], _slates(2).ravel()[-HISTORY:]
    )

  @parameterized.parameters(
    # K, patience after each step: it falls by 1.1 K + 1.
    (3, [15.7, 11.4, 7.1, 2.8, -1.5]),
    (10, [8.0, -4.0]),
  )
  def test_none_positive(self, slate_size, patience):
    steps = len(patience)
    state, result = _run(_simulator(slate_size=slate_size), 0.0, steps)
    np.testing.assert_array_equal(result.response, 0.0)
    np.testing.assert_allclose(result.reward, [-0.1] * steps, rtol=1e-5)
    np.testing.assert_allclose(state.leave, patience, atol=1e-4)
    np.testing.assert_array_equal(
      result.terminated, [False] * (steps - 1) + [True]
    )
    self.assertFalse(result.truncated.any())
    # Nothing was liked, so the history stays.
    np.testing.assert_array_equal(
      result.observation.history, [HISTORIES[2]] * steps
    )
    np.testing.assert_array_equal(result.observation.profile, [[102.0]] * steps)

  def test_step_limit_truncates(self):
    _, result = _run(_simulator(max_steps=2), 1.0, 2)
    np.testing.assert_array_equal(result.truncated, [False, True])
    np.testing.assert_array_equal(result.terminated, [False, False])

  def test_user_leaves_below_one_not_at_one(self):
    _, result = _run(_simulator(patience=3.0), 1.0, 3)
    np.testing.assert_array_equal(result.terminated, [False, False, True])

  @parameterized.parameters(9, 10)
  def test_rounding_does_not_make_a_user_leave(self, slate_size):
    """Patience of exactly 1, 20 - 8 - 10 * 1.1, is not below 1."""
    env = _simulator(_table, slate_size=slate_size)
    rng = np.random.default_rng(0)
    liked = np.ones((50, 8 * slate_size + 1), "f")
    for row in liked:
      row[1 + rng.choice(8 * slate_size, 10, replace=False)] = 0.0
    key, slates = jax.random.key(0), _slates(8, slate_size)
    _, result = jax.vmap(
      lambda table: _session(env, _params(table), slates, key, 8)
    )(liked)
    self.assertFalse(result.terminated.any())

  def test_mixed_slate(self):
    """Rewards (1 - 0.1 - 0.1) / 3, then (1 + 1 - 0.1) / 3."""
    liked = jnp.asarray([0.0, 0, 1, 0, 1, 0, 1])
    state, result = _run(_simulator(_table), liked, 2)
    np.testing.assert_array_equal(result.response, [[0, 1, 0], [1, 0, 1]])
    np.testing.assert_allclose(result.reward, [0.8 / 3, 1.9 / 3], rtol=1e-5)
    np.testing.assert_allclose(
      state.leave, [20 - 3.2, 20 - 3.2 - 2.1], rtol=1e-5
    )
    np.testing.assert_array_equal(
      result.observation.history, [[0, 0, 0, 52, 2], [0, 52, 2, 4, 6]]
    )
    np.testing.assert_array_equal(
      state.observation.history, result.observation.history
    )

  @parameterized.parameters(
    (1.0, 0.9, 1.3),  # 1 - |1 - 0.9|; patience falls by 0.1 * 3 + 1.
    (0.0, 0.0, 4.0),  # 1 - |-0.1 - 0.9|; by 1 * 3 + 1.
  )
  def test_sweet_point(self, probability, reward, fall):
    state, result = _run(_simulator(reward=Reward(-0.1, 0.9)), probability, 2)
    np.testing.assert_allclose(result.reward, [reward] * 2, atol=1e-6)
    np.testing.assert_allclose(
      state.leave, [20 - fall, 20 - 2 * fall], rtol=1e-5
    )

  def test_patience_law(self):
    """The user leaves where 20 - sum((1 - r) K + 1) < 1."""
    env, exits = _simulator(), set()
    for seed in range(10):
      state, result = _run(env, 0.7, 20, seed)
      response = np.asarray(result.response, np.float64)
      reward = np.where(response > 0, 1.0, -0.1).mean(1)
      patience = (20 - np.cumsum((1 - reward) * SLATE + 1)).round(6)
      np.testing.assert_allclose(state.leave, patience, atol=1e-4)
      np.testing.assert_array_equal(result.terminated, patience < 1)
      exits.add(int(np.argmax(patience < 1)))
    self.assertGreater(len(exits), 2)

  def test_ends_exclude_each_other(self):
    ends = np.zeros(2)
    for seed in range(10):
      _, result = _run(_simulator(max_steps=8), 0.6, 8, seed)
      self.assertFalse((result.terminated & result.truncated).any())
      self.assertFalse(result.truncated[:7].any())
      ends += [result.terminated[-1], result.truncated[-1]]
    self.assertGreater(ends.min(), 0)

  def test_response_frequency_is_the_probability(self):
    probability = jnp.asarray([0.0, 0.1, 0.5, 0.9])
    env, params = _simulator(_table), _params(probability)
    state = env.start(0, params)
    slate = jnp.asarray([3, 1, 2])
    keys = jax.random.split(jax.random.key(0), 4000)
    _, result = jax.jit(
      jax.vmap(lambda key: env.step(key, state, slate, params))
    )(keys)
    expected = np.asarray([0.9, 0.1, 0.5])
    error = np.sqrt(expected * (1 - expected) / 4000)
    found = np.asarray(result.response)
    self.assertLess((np.abs(found.mean(0) - expected) / error).max(), 4.0)
    self.assertLess(np.abs(np.corrcoef(found.T) - np.eye(3)).max(), 0.07)
    np.testing.assert_allclose(
      env.probabilities(state.observation, jnp.arange(4), params), probability
    )


class SessionTest(parameterized.TestCase):
  def test_seen_holds_what_was_shown(self):
    env = _simulator(no_repeat=True, max_steps=4)
    start = env.start(0, _params(1.0))
    np.testing.assert_array_equal(start.seen, np.zeros(12))
    state, _ = _run(env, 1.0, 4)
    for step in range(4):
      shown = 3 * (step + 1)
      expected = [*range(1, shown + 1), *[0] * (12 - shown)]
      np.testing.assert_array_equal(state.seen[step], expected)

  def test_seen_is_empty_in_the_paper_protocol(self):
    env = _simulator()
    self.assertEqual(env.start(0, _params(1.0)).seen.shape, (0,))
    state, _ = _run(env, 1.0, 20)
    self.assertEqual(state.seen.shape, (20, 0))

  def test_start_and_reset(self):
    env, params = _simulator(), _params(1.0)
    state = env.start(3, params)
    np.testing.assert_array_equal(state.observation.profile, PROFILES[3])
    np.testing.assert_array_equal(state.observation.history, HISTORIES[3])
    self.assertEqual((state.leave, state.steps), (20.0, 0))
    keys = jax.random.split(jax.random.key(0), 400)
    states = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    users = np.asarray(states.observation.profile[:, 0] - 100, int)
    np.testing.assert_array_equal(states.observation.history, HISTORIES[users])
    self.assertGreater(np.bincount(users, minlength=USERS).min(), 60)

  @parameterized.parameters(
    (1.0, 3, False, True),  # The step limit.
    (0.0, 20, True, False),  # Patience of 6 is spent in the second step.
  )
  def test_auto_reset(self, probability, max_steps, terminated, truncated):
    env = _simulator(no_repeat=True, max_steps=max_steps, patience=6.0)
    params = _params(probability)
    over_at = max_steps if truncated else 2

    @jax.jit
    @jax.vmap
    def session(key):
      state, trace = env.start(2, params), []
      for step, slate in enumerate(_slates(over_at)):
        state, result, _ = env.step_or_reset(
          jax.random.fold_in(key, step), state, slate, params
        )
        trace.append((state, result))
      return jax.tree.map(lambda *x: jnp.stack(x), *trace)

    state, result = session(jax.random.split(jax.random.key(0), 64))
    # Before the end nothing is new.
    np.testing.assert_array_equal(
      state.steps[:, :-1], [[*range(1, over_at)]] * 64
    )
    np.testing.assert_array_equal(state.observation.profile[:, :-1], 102.0)
    self.assertFalse(result.terminated[:, :-1].any())
    self.assertFalse(result.truncated[:, :-1].any())
    # At the end the result is of the old user ...
    np.testing.assert_array_equal(result.terminated[:, -1], terminated)
    np.testing.assert_array_equal(result.truncated[:, -1], truncated)
    np.testing.assert_array_equal(result.observation.profile, 102.0)
    last = [52, *_slates(over_at).ravel()][-HISTORY:] if truncated else [52]
    last = [0] * (HISTORY - len(last)) + last
    np.testing.assert_array_equal(
      result.observation.history[:, -1], [last] * 64
    )
    # ... and the state of a new one.
    users = np.asarray(state.observation.profile[:, -1, 0] - 100, int)
    self.assertLen(set(users.tolist()), USERS)
    np.testing.assert_array_equal(
      state.observation.history[:, -1], HISTORIES[users]
    )
    np.testing.assert_array_equal(state.leave[:, -1], 6.0)
    np.testing.assert_array_equal(state.steps[:, -1], 0)
    np.testing.assert_array_equal(state.seen[:, -1], 0)


class SmallCatalogueTest(parameterized.TestCase):
  """A catalogue of fewer items than a session shows, K x steps."""

  STEPS = 6

  def _shown(self, items, env):
    """Slates of random sessions, 0 after the end, and the sessions."""
    sessions = simulate.simulate(
      bounds.random_policy(SLATE),
      env,
      jnp.arange(items + 1) > 0,
      _params(1.0)._replace(num_items=jnp.int32(items)),
      jax.random.key(0),
      episodes=20,
    )
    slates = [
      slates[: int(depth)]
      for slates, depth in zip(
        np.asarray(sessions.slates), sessions.depth, strict=True
      )
    ]
    self.assertTrue(all((x > 0).all() for x in slates))
    return slates, sessions

  @parameterized.parameters(3, 4, 8, 9, 17, 18, 40)
  def test_no_repeat_ends_before_an_item_comes_twice(self, items):
    env = _simulator(no_repeat=True, max_steps=self.STEPS, patience=100.0)
    slates, sessions = self._shown(items, env)
    # By brute force: slates are taken off the items while one is left.
    steps, left = 0, items
    while left >= SLATE and steps < self.STEPS:
      steps, left = steps + 1, left - SLATE
    for x in slates:
      self.assertLen(x, steps)
      self.assertLen(np.unique(x), steps * SLATE)
    np.testing.assert_allclose(sessions.total_reward, steps)
    np.testing.assert_array_equal(sessions.positives, steps * SLATE)

  def test_the_end_is_a_truncation(self):
    env = _simulator(no_repeat=True, patience=100.0)
    params = _params(1.0)._replace(num_items=jnp.int32(8))
    _, result = _session(env, params, _slates(2), jax.random.key(0), 2)
    np.testing.assert_array_equal(result.truncated, [False, True])
    np.testing.assert_array_equal(result.terminated, [False, False])

  @parameterized.parameters(3, 4, 8, 17, 40)
  def test_exploring_forgets_where_the_protocol_allows_repeats(self, items):
    env = _simulator(max_steps=self.STEPS, patience=100.0).exploring()
    slates, _ = self._shown(items, env)
    for x in slates:
      self.assertLen(x, self.STEPS)  # No session is cut short ...
      seen = set()
      for slate in x.tolist():
        if items - len(seen) < SLATE:
          seen = set()  # ... but all may be shown again.
        self.assertLen({*slate} - seen, SLATE)
        seen |= {*slate}

  def test_exploring_keeps_the_protocol_no_repeat(self):
    env = _simulator(no_repeat=True)
    self.assertEqual(env.exploring(), env)

  def test_padding_is_never_liked_and_earns_nothing(self):
    """Whatever the click model says of id 0, and whatever a miss earns."""
    for reward in (Reward(-0.1), Reward(0.5)):
      env = _simulator(reward=reward)
      state = env.start(2, _params(1.0))
      state, result = env.step(
        jax.random.key(0), state, jnp.array([0, 7, 0]), _params(1.0)
      )
      np.testing.assert_array_equal(result.response, [0, 1, 0])
      self.assertAlmostEqual(float(result.reward), 1 / 3, places=6)
      np.testing.assert_array_equal(state.observation.history, [0, 0, 0, 52, 7])


class AppendPositivesTest(parameterized.TestCase):
  @parameterized.parameters((5, 3), (3, 5), (1, 1))
  def test_equals_a_list(self, length, slate_size):
    rng = np.random.default_rng(0)
    cases = 200
    history = np.zeros((cases, length), int)
    slates = rng.integers(1, 100, (cases, slate_size))
    response = rng.integers(0, 2, (cases, slate_size)).astype("f")
    expected = []
    for case in range(cases):
      past = rng.integers(1, 100, rng.integers(0, length + 1)).tolist()
      history[case, length - len(past) :] = past
      liked = [
        i for i, r in zip(slates[case], response[case], strict=True) if r
      ]
      kept = (past + liked)[-length:]
      expected.append([0] * (length - len(kept)) + kept)
    found = jax.jit(jax.vmap(observed.append_positives))(
      history, slates, response
    )
    np.testing.assert_array_equal(found, expected)


class KnownUserTest(absltest.TestCase):
  def test_a_user_of_the_training_logs_responds_by_a_bias(self):
    """Users 5 and 8 were there, user 6 was not; the bias decides all."""
    logs = Sessions(
      np.array([8, 6, 5]),
      np.zeros((3, 1), np.float32),
      np.zeros((3, 4), np.int32),
      np.ones((3, 2), np.int32),
      np.ones((3, 2), np.float32),
    )
    blend = blend_lib.Blend(
      None, None, np.array([5, 8]), np.float32([-30, 30]), None
    )
    params = click_model.ResponseParams(None, np.zeros((9, 1)), blend)
    users = user_simulator.pool(params, logs)
    np.testing.assert_array_equal(users.biases, [30, 0, -30])

    def respond(params, profile, history, slate, user=0.0):
      del params, profile, history
      return jax.nn.sigmoid(jnp.full(len(slate), user))

    env = _simulator(respond, slate_size=2)
    slate = jnp.array([1, 2])
    for row, expected in ((0, 1.0), (2, 0.0)):
      state = env.start(row, users)
      state, result = env.step(jax.random.key(row), state, slate, users)
      np.testing.assert_array_equal(result.response, expected)
      # The bias lasts, and the next user brings another one.
      np.testing.assert_allclose(
        env.chances(state, slate, users), expected, atol=1e-6
      )
    np.testing.assert_allclose(
      env.probabilities(state.observation, slate, users), 0.5
    )
    ended = state._replace(leave=jnp.float32(1))
    biases = {
      float(env.step_or_reset(jax.random.key(i), ended, slate, users)[0].bias)
      for i in range(12)
    }
    self.assertEqual(biases, {-30.0, 0.0, 30.0})


class HiddenTest(absltest.TestCase):
  def test_step_and_the_state_of_the_leave_rule(self):
    """What drives a user away is counted among the last items alone."""
    rule = leave.BoredomRule(window=3, threshold=1)
    categories = np.zeros((7, 2), bool)
    categories[[1, 2, 3], 0] = categories[[3, 4], 1] = True
    env = _simulator(slate_size=1, max_steps=10, leave=rule)
    params = _params(0.0)._replace(categories=jnp.asarray(categories))
    state, shown = env.start(0, params), []
    for item in (1, 3, 3, 4, 6):
      counts = categories[shown[-3:]].sum(0)
      np.testing.assert_allclose(
        env.hidden(state, params), [len(shown) / 10, *counts / 2]
      )
      slate = jnp.array([item])
      state, _ = env.step(jax.random.key(item), state, slate, params)
      shown.append(item)
    patient = _simulator(max_steps=10, patience=8.0)
    state = patient.start(0, params)
    state, _ = patient.step(jax.random.key(0), state, jnp.arange(3), params)
    # Items 1 and 2 get no like, place 0 shows nothing: the reward is -0.2 / 3.
    left = 8 - (3 + 0.2) - 1
    np.testing.assert_allclose(
      patient.hidden(state, params), [0.1, left / 8], rtol=1e-6
    )


if __name__ == "__main__":
  absltest.main()
