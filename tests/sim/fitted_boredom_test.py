"""Boredom that is fitted to sessions, against counts by hand and a rule."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from scipy import special

from hsrl_jax.sim import boredom_fit as fitting
from hsrl_jax.sim import fitted_boredom as dynamics
from hsrl_jax.sim.dynamics import TopicBoredom
from hsrl_jax.sim.fitted_boredom import LIKES, STEPS, FittedBoredom

TOPICS, SLATE, CHANCE = 3, 4, 0.6
RULE = TopicBoredom(TOPICS, True, memory=10, window=3, threshold=4)


@functools.partial(jax.jit, static_argnames=("count", "steps"))
def _sessions(key, count, steps):
  """Sessions in which RULE bores: topics, responses, whether all is boring."""

  def session(key):
    def step(state, key):
      keys = jax.random.split(key)
      topics = jax.random.randint(keys[0], (SLATE,), 0, TOPICS + 1)
      at = state[1]
      p = RULE.probabilities(state[0], topics, jnp.full(SLATE, CHANCE), at)
      likes = jax.random.bernoulli(keys[1], p).astype(jnp.float32)
      after = RULE.after(state[0], topics, likes, at)
      return (after, at + 1), (topics, likes, RULE.bores(*state).any())

    start = (RULE.start(), jnp.int32(0))
    return jax.lax.scan(step, start, jax.random.split(key, steps))[1]

  return jax.vmap(session)(jax.random.split(key, count))


class CountsTest(absltest.TestCase):
  def test_what_was_shown_and_liked_is_counted_by_step(self):
    sessions = _sessions(jax.random.key(0), 1, STEPS + 3)
    topics, response, _ = (np.asarray(x[0]) for x in sessions)
    own = FittedBoredom(TOPICS)
    state, after = own.start(), jax.jit(own.after)
    for now in range(len(topics)):
      state = after(state, topics[now], response[now], now)
      shown, liked = np.zeros((2, STEPS, TOPICS + 1))
      every = []
      for step in range(now + 1):
        for topic, like in zip(topics[step], response[step], strict=True):
          ago = now - step
          if ago < STEPS:
            shown[ago, topic] += 1
            liked[ago, topic] += like
          if like:
            every.append((topic, ago))
      newest = np.zeros((STEPS, TOPICS + 1))
      for topic, ago in every[-LIKES:]:
        if ago < STEPS:
          newest[ago, topic] += 1
      chex.assert_trees_all_close((state.shown, state.liked), (shown, liked))
      np.testing.assert_allclose(own._newest(state), newest)
      np.testing.assert_allclose(
        own.hidden(state, now),
        np.concatenate([newest.sum(0), liked.sum(1)]) / dynamics._SCALE,
      )

  def test_before_a_fit_nothing_bores(self):
    own = FittedBoredom(TOPICS)
    state = own.after(own.start(), np.ones(SLATE, int), np.ones(SLATE), 0)
    p = np.float32([0.1, 0.5, 0.9])
    same = own.probabilities(
      state, np.arange(3), p, 1, own.init(jax.random.key(0))
    )
    np.testing.assert_allclose(same, p, rtol=1e-5)


class FitTest(absltest.TestCase):
  def test_slates_know_those_of_their_session_before_them(self):
    """As in the simulator, which goes from state to state."""
    lengths = (STEPS + 4, 1, 3)
    topics, response, _ = (
      np.concatenate([x[i, :n] for i, n in enumerate(lengths)])
      for x in map(np.asarray, _sessions(jax.random.key(1), 3, STEPS + 4))
    )
    own, rng = FittedBoredom(TOPICS), np.random.default_rng(0)
    fitted = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32),
      own.init(jax.random.key(0)),
    )
    place = np.concatenate([np.arange(n) for n in lengths])
    logits = rng.normal(size=topics.shape).astype(np.float32)
    slates = fitting.Slates(topics, logits, response, place)
    state, want = None, []
    for now, at in enumerate(place):
      state = state if at else own.start()
      want.append(own.logits(fitted, state, topics[now], logits[now]))
      state = own.after(state, topics[now], response[now], at)
    self.assertGreater(response[:STEPS].sum(), LIKES)
    np.testing.assert_allclose(
      fitting.predicted(own, fitted, slates), want, rtol=1e-4, atol=1e-5
    )

  @pytest.mark.slow
  def test_a_rule_is_found(self):
    sides, bored = [], None
    for number, count in enumerate((1_600, 100)):
      drawn = _sessions(jax.random.key(number), count, 8)
      topics, response, bored = (
        np.asarray(x).reshape(-1, *x.shape[2:]) for x in drawn
      )
      logits = np.full(topics.shape, special.logit(0.5), np.float32)
      place = np.tile(np.arange(8), count)
      sides.append(fitting.Slates(topics, logits, response, place))
    told, own = [], FittedBoredom(TOPICS)
    fitted = fitting.fit(own, *sides, epochs=20, tell=lambda *x: told.append(x))
    self.assertEqual([x for x, _ in told], list(range(1, 21)))
    p = special.expit(np.asarray(fitting.predicted(own, fitted, sides[1])))
    # By the rule itself each like has a chance of CHANCE or none.
    self.assertGreater(bored.mean(), 0.1)
    self.assertLess(p[bored].mean(), 0.1)
    np.testing.assert_allclose(p[~bored].mean(), CHANCE, atol=0.03)


if __name__ == "__main__":
  absltest.main()
