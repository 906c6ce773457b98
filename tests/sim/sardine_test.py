"""SARDINE's worlds against the package itself, fed with the same draws."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import environments, files
from hsrl_jax.config import SimulatorConfig
from hsrl_jax.sim import sardine
from hsrl_jax.types import Sessions

gymnasium = pytest.importorskip("gymnasium")
package = pytest.importorskip("sardine.simulator")

TOPICS, HISTORY = 10, 12
# Draws stay so far from a probability, which float32 and float64 round apart.
MARGIN = 1e-4


@functools.cache
def vectors() -> np.ndarray:
  own = np.load(files.shipped("datasets") / "sardine" / "item_vectors.npy")
  return np.concatenate([np.zeros((1, TOPICS), np.float32), own])


class Draws:
  """In place of the package's generator: tells what it drew."""

  def __init__(self, seed: int):
    self.rng = np.random.default_rng(seed)
    self.uniform = self.rng.uniform
    self.places, self.slate = [], None

  def integers(self, low, high, size):
    self.slate = self.rng.integers(low, high, size)
    return self.slate

  def binomial(self, n, p):
    assert n == 1
    draws = self.rng.uniform(size=np.shape(p))
    close = np.abs(draws - p) < MARGIN
    draws = np.where(close, (draws + 0.5) % 1, draws)
    self.places.append(draws)
    return (draws < p).astype(int)


class WithVectors(package.Sardine):
  """The package's environment, with vectors; it tells the user's first one."""

  def _init_item_embeddings(self, env_embedds):
    assert env_embedds == "item_embeddings_focused_small.npy"
    self.item_embedd = vectors()[1:]

  def _reset_user_embedds(self):
    super()._reset_user_embedds()
    self.taste = self.user_embedd.copy()


class Session(NamedTuple):
  """A session of the package, T slates after the first."""

  taste: np.ndarray
  slates: np.ndarray  # [T + 1, K], items 1..N.
  draws: np.ndarray  # [T + 1, K]
  clicks: np.ndarray  # [T + 1, K]
  hidden: np.ndarray  # [T + 1, 3 topics]
  relevances: np.ndarray  # [T, K]
  rewards: np.ndarray  # [T]


def published(name: str, seed: int) -> Session:
  """A session: even seeds show random items, others ever more of the best."""
  spec = gymnasium.spec(f"sardine/{name}-v0")
  env, draws = WithVectors(**spec.kwargs), Draws(seed)
  env.np_random = draws
  _, first = env.reset()
  rng, share = np.random.default_rng([1, seed]), (seed % 4) / 3
  infos, rewards, over = [], [], False
  while not over:
    random = rng.integers(0, 1000, env.slate_size)
    best = rng.random(env.slate_size) < share
    _, reward, over, truncated, info = env.step(np.where(best, -1, random))
    assert not truncated
    infos.append(info)
    rewards.append(reward)
  return Session(
    env.taste,
    1 + np.stack([draws.slate, *(x["slate"] for x in infos)]),
    np.stack(draws.places),
    np.stack([first["clicks"], *(x["clicks"] for x in infos)]),
    np.stack([first["user_state"], *(x["user_state"] for x in infos)]),
    np.stack([x["relevances"] for x in infos]),
    np.array(rewards),
  )


def ours(name: str, made: Session):
  """The same slates and draws shown to our users.

  Returns:
    `hidden` and history after the first slate, then StepResult, `hidden` and
    relevances of the others, leaves [E, T, ...].
  """
  env = world(name)
  params = sardine.pool(vectors(), users(1))

  def session(taste, slates, draws):
    history = np.zeros(HISTORY, np.int32)
    state = env.begin(taste, history, slates[0], draws[0], params)

    def step(state, given):
      slate, draws = given
      relevance = env.chances(state, slate, params)
      state, result = env.step_by(draws, state, slate, params)
      return state, (result, env.hidden(state, params), relevance)

    first = env.hidden(state, params), state.observation.history
    return first, jax.lax.scan(step, state, (slates[1:], draws[1:]))[1]

  taste, draws = np.float32(made.taste), np.float32(made.draws)
  return jax.device_get(jax.jit(jax.vmap(session))(taste, made.slates, draws))


def world(name: str) -> sardine.Sardine:
  made = sardine.make(SimulatorConfig(world=name), TOPICS)
  return made._replace(observed_items=HISTORY)


def users(count: int) -> Sessions:
  rng = np.random.default_rng(0)
  return Sessions(
    np.arange(1, count + 1),
    np.float32([sardine.taste(rng) for _ in range(count)]),
    np.zeros((count, HISTORY), np.int32),
    np.zeros((count, 0), np.int32),
    np.zeros((count, 0), np.float32),
  )


class PackageTest(parameterized.TestCase):
  def test_sessions_equal_the_packages_step_by_step(self):
    self._check("SlateTopK-BoredInf", 4)

  @parameterized.parameters(*sardine.WORLDS)
  @pytest.mark.slow
  def test_sessions_of_all_worlds_do(self, name):
    self._check(name, 18)

  def _check(self, name, count):
    made = [published(name, seed) for seed in range(count)]
    made = Session(*(np.stack(x) for x in zip(*made, strict=True)))
    (hidden, history), (result, later, relevance) = ours(name, made)
    self.assertEqual(made.rewards.shape[1], 100)
    np.testing.assert_array_equal(result.response, made.clicks[:, 1:])
    np.testing.assert_array_equal(result.reward, made.rewards)
    np.testing.assert_allclose(relevance, made.relevances, atol=1e-5)
    np.testing.assert_allclose(hidden, made.hidden[:, 0], atol=1e-5)
    np.testing.assert_allclose(later, made.hidden[:, 1:], atol=1e-5)
    # Sessions end with slate 100, and no earlier.
    ends = np.arange(1, 101) == 100
    np.testing.assert_array_equal(result.truncated, np.tile(ends, (count, 1)))
    self.assertFalse(result.terminated.any())
    for e in range(count):
      self._check_observed(made, e, result)
      # The package's law of users, out of the same generator.
      own = sardine.taste(np.random.default_rng(e))
      np.testing.assert_allclose(own, made.taste[e])
    first = made.slates[:, 0] * (made.clicks[:, 0] > 0)
    np.testing.assert_array_equal(history.sum(1), first.sum(1))
    # Had nothing bored, nothing of boredom would have been compared.
    bored = (made.hidden[:, :, :TOPICS] == 0).all(-1)
    self.assertEqual(bored.any(), "Bored" in name or "TopK" in name)
    self.assertGreater(made.rewards.sum(), 100)

  def _check_observed(self, made, e, result):
    """What the agent sees in the end: the newest clicks and items."""
    clicked = made.slates[e][made.clicks[e] > 0]
    kept = np.concatenate([np.zeros(HISTORY, int), clicked])[-HISTORY:]
    np.testing.assert_array_equal(result.observation.history[e, -1], kept)
    shown = jax.tree.map(lambda x: x[e, -1], result.observation.shown)
    items, clicks = made.slates[e].ravel(), made.clicks[e].ravel()
    np.testing.assert_array_equal(shown.items, items[-HISTORY:])
    np.testing.assert_array_equal(shown.response, clicks[-HISTORY:])
    self.assertEqual(shown.step, 101)  # With the random slate.


class NeverBoredTest(absltest.TestCase):
  def test_who_never_bores_keeps_the_own_taste(self):
    """As the farsighted bound asks for users who are not bored."""
    env, pool = environments.sardine("SlateTopK-Bored", users=2)
    state = env.start(0, pool)
    boring = state.dynamics._replace(
      boring_until=state.dynamics.boring_until * 0 + 99
    )
    state = state._replace(dynamics=boring)
    np.testing.assert_array_equal(env.current(state), 0)
    fresh = env._replace(dynamics=None)
    np.testing.assert_array_equal(fresh.current(state), state.taste)
    self.assertGreater(float(state.taste.max()), 0)


if __name__ == "__main__":
  absltest.main()
