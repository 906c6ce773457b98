"""Users who tire, against the formula in plain loops, and who says how."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.config import SimulatorConfig
from hsrl_jax.engine import checkpoint
from hsrl_jax.sim import dynamics, fatigue, leave, user_simulator
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Sessions
from tests import toy

ITEMS, STEPS, SLATE, POWER, SCALE = 12, 9, 2, 1.5, 3.0
_RNG = np.random.default_rng(0)
CHANCES = np.float32([0, *_RNG.uniform(0.2, 0.9, ITEMS)])
VECTORS = _RNG.normal(size=(ITEMS + 1, 3)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
VECTORS[0] = 0
# The second binges.
PEOPLE = np.float32([[2.0, 0.7], [-0.5, 0.97], [0.3, 0.9]])
_CONFIG = SimulatorConfig(
  boredom="fatigue",
  fatigue_power=POWER,
  fatigue_scale=SCALE,
  leave="disappointment",
)


def _env():
  return user_simulator.UserSimulator(
    response_fn=lambda params, profile, history, items: params[items],
    slate_size=SLATE,
    no_repeat=True,
    max_steps=STEPS,
    reward=Reward(0.0),
    leave=leave.of_config(_CONFIG),
    dynamics=dynamics.of_config(_CONFIG, 0),
  )


def _params():
  return user_simulator.EnvParams(
    jnp.asarray(CHANCES),
    jnp.zeros((3, 1)),
    jnp.zeros((3, 3), jnp.int32),
    kernel=jnp.asarray(VECTORS),
    people=jnp.asarray(PEOPLE),
  )


def _sessions(slates):
  """Of each user: chances of all items before, response, d, and hidden."""
  env, params = _env(), _params()

  def session(row):
    def step(state, inputs):
      at, slate = inputs
      chances = env.chances(state, jnp.arange(ITEMS + 1), params)
      key = jax.random.fold_in(jax.random.key(1), 10 * row + at)
      hidden = env.hidden(state, params)
      state, result = env.step(key, state, slate, params)
      return state, (chances, result.response, state.leave, hidden)

    inputs = jnp.arange(STEPS), jnp.asarray(slates)
    return jax.lax.scan(step, env.start(row, params), inputs)[1]

  return map(np.asarray, jax.jit(jax.vmap(session))(jnp.arange(3)))


class FatigueTest(parameterized.TestCase):
  def test_chances_and_disappointment_equal_loops(self):
    slates = _RNG.integers(0, ITEMS + 1, (STEPS, SLATE))
    slates[3] = [0, 5]  # A place that shows nothing.
    chances, responses, disappointed, hidden = _sessions(slates)
    for row, (a, rho) in enumerate(PEOPLE.astype(float)):
      sad = 0.0
      for now in range(STEPS):
        for i in range(1, ITEMS + 1):
          load, recent = 0.0, np.zeros(3)
          for at in range(now):
            for j in slates[at]:
              cosine = float(VECTORS[i] @ VECTORS[j])
              load += max(cosine, 0.0) ** POWER * rho ** (now - at)
              recent += VECTORS[j] * rho ** (now - at)
          logit = np.log(CHANCES[i] / (1 - CHANCES[i])) - SCALE * a * load
          self.assertAlmostEqual(
            chances[row, now, i], 1 / (1 + np.exp(-logit)), places=4
          )
        # The step, d, the user, and what was shown.
        expected = [now / STEPS, sad, a, rho, *recent / 5.0]
        np.testing.assert_allclose(
          hidden[row, now], expected, rtol=1e-4, atol=1e-5
        )
        likes, shown = responses[row, now].sum(), (slates[now] > 0).sum()
        sad = 0.7 * sad + 0.3 * (1 - likes / max(shown, 1))
        self.assertAlmostEqual(disappointed[row, now], sad, places=5)
    binges = chances[1, -1, 1:] >= CHANCES[1:] - 1e-6
    self.assertTrue(binges.all())
    self.assertTrue((chances[0, -1, 1:] < CHANCES[1:] - 0.1).any())

  def test_the_disappointed_leave_by_chance(self):
    rule, state, sad = leave.Disappointment(), jnp.float32(0), 0.0
    for like in (0.0, 0.0, 1.0, 0.0, 0.0, 0.0):
      sad = 0.7 * sad + 0.3 * (1 - like)
      hazard = 0.5 / (1 + np.exp(-10 * (sad - 0.55)))
      for draw, leaves in ((hazard - 1e-4, True), (hazard + 1e-4, False)):
        after, left = rule.step(
          state, jnp.array([3]), jnp.array([like]), jnp.float32(0), draw
        )
        self.assertEqual(bool(left), leaves)
      state = after
    self.assertAlmostEqual(float(state), sad, places=5)

  def test_a_session_goes_on_from_a_checkpoint(self):
    env, params = _env(), _params()
    state = env.start(0, params)
    step = jax.jit(env.step)
    state, _ = step(jax.random.key(0), state, jnp.array([3, 4]), params)
    folder = pathlib.Path(self.create_tempdir()) / "checkpoints"
    with checkpoint.open_directory(folder) as kept:
      checkpoint.save(kept, 1, state)
    with checkpoint.open_directory(folder) as kept:
      found = checkpoint.restore_latest(kept, env.start(1, params))
    given = jax.random.key(1), jnp.array([5, 6]), params
    chex.assert_trees_all_equal(
      step(given[0], state, *given[1:]), step(given[0], found, *given[1:])
    )

  def test_who_the_users_are(self):
    """By the law, and the same again, whoever else is in the pool."""
    ids = 7 * np.arange(4_000)
    people = np.asarray(fatigue.people(ids))
    np.testing.assert_array_equal(fatigue.people(ids[:9]), people[:9])
    binges = people[:, 0] < 0
    np.testing.assert_array_equal(people[binges, 0], -0.5)
    self.assertBetween(binges.mean(), 0.18, 0.22)
    cost = people[~binges, 0]
    self.assertBetween(cost.mean(), 0.94, 1.06)
    self.assertBetween((cost > 1).mean(), np.exp(-1) - 0.03, np.exp(-1) + 0.03)
    for pace in (0.7, 0.9, 0.97):
      share = np.isclose(people[:, 1], pace).mean()
      self.assertBetween(share, 0.31, 0.36)
    of_one = np.asarray(fatigue.people(np.full(9, 7)))
    self.assertGreater(len({*of_one[:, 0].tolist()}), 5)


def _logs(change=None):
  """Likes of 20 users; `change` has other ones."""
  rng = np.random.default_rng(3)
  likes = rng.random((20, 30)) < 0.3
  likes[:, -1] = False  # An item that nobody likes.
  if change is not None:
    likes[change] = np.roll(likes[change, :-1], 5).tolist() + [False]
  shown = np.tile(np.arange(1, 31), (20, 1))
  return Sessions(
    np.arange(100, 120),
    np.zeros((20, 1), np.float32),
    np.zeros((20, 3), np.int32),
    shown,
    likes.astype(np.float32),
  )


class KernelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.features = np.random.default_rng(4).normal(size=(31, 4))
    self.features[0] = 0

  def test_each_user_says_what_is_alike_or_is_seen(self):
    """Never both, so that agents do not see what decides."""
    kernel = fatigue.kernel(_logs(), self.features)
    seen = fatigue.seen(_logs(), 30)
    hidden = 0
    for user in range(20):
      logs = _logs(change=user)
      decides = not np.allclose(
        fatigue.kernel(logs, self.features), kernel, atol=1e-4
      )
      shows = not np.allclose(fatigue.seen(logs, 30), seen, atol=1e-4)
      self.assertNotEqual(decides, shows)
      hidden += decides
    self.assertEqual(hidden, 10)

  def test_lengths_and_what_nobody_liked(self):
    kernel = fatigue.kernel(_logs(), self.features)
    np.testing.assert_array_equal(kernel[0], 0)
    np.testing.assert_allclose(np.linalg.norm(kernel[1:], axis=1), 1, atol=1e-5)
    seen = fatigue.seen(_logs(), 30)
    np.testing.assert_array_equal(seen[[0, -1]], 0)
    # What a linear map says of the features that only that item has so.
    other = self.features.copy()
    other[-1] += 1.0
    changed = fatigue.kernel(_logs(), other)
    np.testing.assert_allclose(changed[:-1], kernel[:-1], atol=1e-5)
    self.assertGreater(np.abs(changed[-1] - kernel[-1]).max(), 0.01)

  def test_fine_categories_say_nothing(self):
    """Each category has as many items; means of their vectors are near 0."""
    logs = _logs()
    groups = np.arange(30) % 3
    logs = logs._replace(
      response=(groups == np.arange(20)[:, None] % 3).astype(np.float32)
      * (np.random.default_rng(5).random((20, 30)) < 0.7)
    )
    categories = np.pad(np.eye(3, dtype=bool)[groups], ((1, 0), (0, 0)))
    coarse = fatigue.kernel(logs, self.features)[1:]
    fine = fatigue.kernel(logs, self.features, categories)[1:]
    same = groups[:, None] == groups[None]
    off = ~np.eye(30, dtype=bool)
    for vectors, least, most in ((coarse, 0.6, 1.0), (fine, -0.2, 0.2)):
      cosine = vectors @ vectors.T
      gap = cosine[same & off].mean() - cosine[~same].mean()
      self.assertBetween(gap, least, most)

  def test_pools_know_it(self):
    users, logs = toy.users(), _logs()
    rows = logs._replace(profile=users.profiles[:20])
    response = user_simulator.click_model.ResponseParams(
      None, jnp.zeros((31, 4))
    )
    kernel = fatigue.kernel(logs, self.features)
    pool = user_simulator.pool(response, rows, kernel=kernel)
    np.testing.assert_array_equal(pool.kernel, kernel)
    np.testing.assert_array_equal(pool.people, fatigue.people(rows.user_id))
    plain = user_simulator.pool(response, rows)
    self.assertIsNone(plain.kernel)
    self.assertIsNone(plain.people)


if __name__ == "__main__":
  absltest.main()
