"""Simulated users in the shapes of gymnasium and gymnax."""

import functools
import pathlib
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import environments
from hsrl_jax.environments.worlds import Simulated
from hsrl_jax.errors import InputError
from tests import toy
from tests.command import run

gymnasium = pytest.importorskip("gymnasium")


@functools.cache
def world() -> Simulated:
  return environments.sardine("SingleItem-BoredInf", users=5, observed_items=4)


def of_toy() -> Simulated:
  users = toy.users()._replace(num_items=jnp.int32(toy.ITEMS))
  return Simulated(toy.env(), users)


class GymnaxTest(absltest.TestCase):
  @pytest.mark.slow
  def test_sessions_are_those_of_the_simulator(self):
    """To the end of the first, where another user comes."""
    env = environments.Environment(world())
    space, simulator = env.action_space(), world().simulator

    def step(carry, key):
      state, own = carry
      slate = space.sample(jax.random.fold_in(key, 1))
      own, expected = simulator.step(key, own, slate, world().users)
      obs, state, reward, done, info = env.step(key, state, slate)
      return (state, own), (obs, reward, done, info, expected)

    key, *keys = jax.random.split(jax.random.key(0), 103)
    first, state = env.reset(key)
    self.assertEqual(first.shown.step, 1)  # The random slate.
    _, (obs, reward, done, info, expected) = jax.jit(
      lambda x: jax.lax.scan(step, (state, state), x)
    )(jnp.stack(keys))
    self.assertEqual(np.flatnonzero(done).tolist(), [99])
    np.testing.assert_array_equal(reward[:100], expected.reward[:100])
    np.testing.assert_array_equal(
      info["final_observation"].history[:100],
      expected.observation.history[:100],
    )
    self.assertEqual(obs.shown.step.tolist()[-4:], [100, 1, 2, 3])

  @pytest.mark.slow
  def test_spaces(self):
    env = environments.Environment(world())
    obs, _ = env.reset(jax.random.key(1))
    jax.tree.map(
      lambda x, low, high: self.assertBetween(
        float(jnp.max(x, initial=0)), low, high
      ),
      obs._replace(profile=None),
      *(
        jax.tree.map(
          lambda box, end=end: getattr(box, end),
          env.observation_space()._replace(profile=None),
          is_leaf=lambda x: hasattr(x, "low"),
        )
        for end in ("low", "high")
      ),
    )
    space = environments.Environment(of_toy()).action_space()
    slates = jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 500))
    self.assertTrue(jax.vmap(space.contains)(slates).all())
    shown = np.bincount(np.ravel(slates), minlength=toy.ITEMS + 1)
    self.assertEqual(shown[0], 0)
    self.assertGreater(shown[1:].min(), 0)
    for bad in ([1, 1, 2], [0, 1, 2], [1, 2, toy.ITEMS + 1], [1, 2]):
      self.assertFalse(space.contains(jnp.array(bad)))


class GymnasiumTest(parameterized.TestCase):
  @parameterized.parameters(world, of_toy)
  def test_gymnasium_accepts_it(self, made):
    from gymnasium.utils import env_checker

    from hsrl_jax.environments.gymnasium_like import GymnasiumEnv

    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Of profiles without bounds.
      env_checker.check_env(GymnasiumEnv(made()), skip_render_check=True)

  def test_an_episode_by_hand(self):
    from hsrl_jax.environments.gymnasium_like import GymnasiumEnv

    env = GymnasiumEnv(of_toy())
    with self.assertRaisesRegex(ValueError, "expected reset"):
      env.step(np.array([1, 2, 3]))
    obs, _ = env.reset(seed=0)
    group = int(np.argmax(obs["profile"]))
    liked = 1 + group + toy.GROUPS * np.arange(toy.SLATE)
    history, total, steps = obs["history"].tolist(), 0.0, 0
    over = False
    while not over:
      obs, reward, terminated, truncated, info = env.step(liked)
      history += liked[info["response"] > 0].tolist()
      total += reward
      steps += 1
      over = terminated or truncated
      self.assertAlmostEqual(
        reward, np.where(info["response"] > 0, 1.0, -0.1).mean(), places=6
      )
      self.assertEqual(obs["history"].tolist(), history[-toy.HISTORY :])
    # Liked items tire patience least: 1 of 8 a slate, so six steps are made.
    self.assertGreater(total, 0.7 * steps)
    with self.assertRaisesRegex(ValueError, "3 items of 1..40"):
      env.step(np.array([0, 1, 2]))


class WorldsTest(absltest.TestCase):
  def test_bad_input(self):
    for wrong in ({"name": "x"}, {"users": 0}, {"observed_items": -1}):
      with self.assertRaisesRegex(InputError, next(iter(wrong))):
        environments.sardine(**wrong)
    with self.assertRaisesRegex(InputError, "expected the workdir of a run"):
      environments.of_run("nowhere")

  @pytest.mark.slow
  def test_of_a_run(self):
    """The users of a split of the dataset, and none else."""
    workdir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    for mode in ("data", "quantize", "simulator"):
      status, _, err = run(
        "--dataset=sardine",
        "--simulator_world=SlateTopK-Bored",
        "--sid_vocab_size=16",
        f"--workdir={workdir}",
        f"--mode={mode}",
      )
      self.assertEqual(status, 0, err)
    made = environments.of_run(workdir, "val")
    self.assertEqual(made.users.profiles.shape, (500, 10))
    self.assertEqual(made.num_items, 1000)
    env = environments.Environment(made)
    obs, _ = jax.jit(env.reset)(jax.random.key(0))
    self.assertEqual(obs.profile.shape, (0,))


if __name__ == "__main__":
  absltest.main()
