"""The planner: its losses by hand, and its plan against brute force."""

import functools
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from scipy import special
from sklearn import metrics

from hsrl_jax.agents import make_agent
from hsrl_jax.agents.baselines import outlook, planner
from hsrl_jax.engine import checkpoint, loop
from hsrl_jax.sim import observed
from tests import toy
from tests.agents import checks

_SHOWN = 12  # Items that are observed, more than were shown.
_after = jax.jit(observed.after)
_SLATES = (([1, 2, 3], [1.0, 0.0, 1.0]), ([9, 4, 7], [1.0, 1.0, 0.0]))


@functools.cache
def _case(slate_size: int = toy.SLATE):
  """The planner with made-up parameters, and a user who was shown slates."""
  config = toy.config("planner", dropout=0.0, layers=0)
  agent = make_agent(config, slate_size, toy.ITEMS)
  users = toy.users()
  observation = observed.start(users.profiles[3], users.histories[3], _SHOWN)
  for slate, response in _SLATES:
    observation = _after(observation, jnp.array(slate), jnp.array(response))
  params = checks.random_params(agent, observation, 1)
  params = jax.tree.map(lambda x: 0.6 * x, params)
  catalogue = checks.catalogue()
  params["scale"] = jnp.abs(catalogue.features).max(0)
  return checks.Made(config, agent, params, catalogue, observation)


def _parts(made) -> planner.Planner:
  return made.agent.act.__self__


@functools.partial(jax.jit, static_argnums=0)
def _values(parts, params, scale, catalogue, observation, tastes):
  """V of what is counted for a user; tastes None: the user's own."""
  learned = parts.outlook.bind(params["outlook"])
  kinds = catalogue.features / scale[None]
  if tastes is None:
    tastes = learned.tastes(catalogue.features, observation)
  counts = outlook.counts(outlook.lately(observation, kinds))
  return parts.horizon * learned.value(tastes, counts)


def _value(made, observation, tastes=None, params=None):
  params = made.params if params is None else params
  scale = made.params["scale"]
  where = (made.catalogue, observation, tastes)
  return float(_values(_parts(made), params, scale, *where))


@functools.partial(jax.jit, static_argnums=0)
def _known(parts, params, catalogue, observation):
  """The forecast, and gains and chances in the first place."""
  known = parts.forecast(params, catalogue, observation)
  nothing = planner.nothing_planned(known)
  return known, *parts.gains(params, known, 0, nothing)


@functools.partial(jax.jit, static_argnums=0)
def _parts_of_likes(parts, params, catalogue, observation):
  """The response head's logits, the effects, and the logits of looks."""
  learned = parts.outlook.bind(params["outlook"])
  kinds = planner.memberships(params, catalogue.features)
  user = learned.user(catalogue.features, observation)
  counts = outlook.counts(outlook.lately(observation, kinds))
  logits = learned.logits(user, catalogue.features)
  return logits, learned.effects(counts), learned.places(toy.SLATE), kinds


@jax.jit
def _counts(observation, kinds, added=None):
  return outlook.counts(outlook.lately(observation, kinds), added)


class LossTest(absltest.TestCase):
  def test_likes_leaves_and_values_by_hand(self):
    made = _case()
    other = checks.random_params(made.agent, made.observation, 2)
    other |= {"scale": made.params["scale"]}
    slate, response = jnp.array([5, 0, 8]), jnp.array([1.0, 0.0, 0.0])
    after = _after(made.observation, slate, response)
    known = _parts_of_likes(
      _parts(made), made.params, made.catalogue, made.observation
    )
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), known)
    logits, effects, looks, kinds = wide
    logits = logits + kinds @ effects.liking + effects.all_liking
    chance = special.expit(logits[slate]) * special.expit(looks)
    hazard = special.expit(kinds @ effects.leaving + effects.all_leaving[0] - 6)
    anyway = special.expit(effects.all_leaving[1] - 6)
    leaves = 1 - (1 - anyway) * (1 - hazard[5]) * (1 - hazard[8])
    value = _value(made, made.observation)
    loss = jax.jit(made.agent.loss)
    for left in (0.0, 1.0):
      step = checks.transition(
        made.observation,
        slate=slate,
        response=response,
        terminated=jnp.float32(left),
        next_history=after.history,
        next_shown=after.shown,
      )
      _, got = loss(made.params, other, made.catalogue, step, checks.KEY, 0.0)
      # An empty place is no loss.
      want = metrics.log_loss([1, 0], chance[[0, 2]], labels=[0, 1]) * 2 / 3
      np.testing.assert_allclose(got["behaviour_loss"], want, rtol=1e-3)
      want = metrics.log_loss([left], [leaves], labels=[0, 1])
      np.testing.assert_allclose(got["leave_loss"], want, rtol=1e-3)
      y = 0.6 + (1 - left) * 0.9 * _value(made, after, params=other)
      np.testing.assert_allclose(got["target"], y, rtol=1e-3)
      want = ((value - y) / 10) ** 2  # At a discount of 0.9.
      np.testing.assert_allclose(got["critic_loss"], want, rtol=1e-2)


class PlanTest(absltest.TestCase):
  def test_one_item_against_brute_force(self):
    """Items of one kind each, so that nothing is approximate."""
    made, count = _case(1), toy.ITEMS
    rng = np.random.default_rng(0)
    kinds = np.eye(7)[rng.integers(7, size=count + 1)]
    kinds[0] = 0
    features = jnp.asarray(
      kinds * np.asarray(made.params["scale"]), jnp.float32
    )
    catalogue = made.catalogue._replace(features=features)
    made = made._replace(catalogue=catalogue)
    start = made.observation
    known, gain, chance = _known(_parts(made), made.params, catalogue, start)

    def value(item, liked):
      """V after an item; likes that join the history change no plan."""
      after = _after(start, jnp.array([item]), jnp.array([liked]))
      after = after._replace(history=start.history)
      return _value(made, after, known.tastes)

    worth = []
    for item in range(1, count + 1):
      p, leaves = float(chance[item]), float(known.leaves[item])
      later = p * value(item, 1.0) + (1 - p) * value(item, 0.0)
      stays = 0.9 * float(known.stays) * (1 - leaves)
      worth.append(p - 0.1 * (1 - p) + stays * later)
    base = 0.9 * float(known.stays) * value(0, 0.0)
    np.testing.assert_allclose(gain[1:] + base, worth, rtol=1e-3, atol=1e-3)
    action = jax.jit(made.agent.act, static_argnums=4)(
      made.params, catalogue, start, checks.NOTHING, None, 1.0
    )
    self.assertEqual(int(action.slate[0]), 1 + int(np.argmax(worth)))

  def test_later_items_know_the_ones_before(self):
    made = _case()
    parts = _parts(made)
    known, *_ = _known(parts, made.params, made.catalogue, made.observation)
    gains = jax.jit(parts.gains)
    so_far, taken, likes = planner.nothing_planned(known), [], []
    kinds = np.asarray(known.kinds)
    for place in range(toy.SLATE):
      gain, chance = gains(made.params, known, place, so_far)
      gain = np.array(gain)
      gain[[0, *taken]] = -np.inf
      taken.append(int(gain.argmax()))
      likes.append(float(chance[taken[-1]]))
      shown = kinds[taken]
      so_far = planner.Planned(
        outlook.Added(
          jnp.asarray(shown.sum(0)),
          jnp.asarray(np.array(likes) @ shown, jnp.float32),
          jnp.float32(sum(likes)),
        ),
        known.stays * jnp.prod(1 - known.leaves[jnp.array(taken)]),
      )
    action = jax.jit(made.agent.act, static_argnums=4)(
      made.params,
      made.catalogue,
      made.observation,
      checks.NOTHING,
      None,
      1.0,
    )
    self.assertEqual(action.slate.tolist(), taken)


class CountsTest(parameterized.TestCase):
  @parameterized.parameters(4, 12)
  def test_a_planned_slate_counts_as_the_one_that_was_shown(self, before):
    """Where its likes are known, the counts are those of after it."""
    rng = np.random.default_rng(before)
    kinds = np.concatenate([np.zeros((1, 3)), rng.normal(size=(40, 3))])
    kinds = jnp.asarray(kinds, jnp.float32)
    user = observed.start(jnp.zeros(0), jnp.arange(4), 24)
    for _ in range(before):
      slate, response = rng.permutation(40)[:4] + 1, rng.integers(2, size=4)
      user = _after(user, jnp.array(slate), 1.0 * response)
    slate, response = np.array([3, 1, 20, 7]), np.array([1.0, 0.0, 1.0, 1.0])
    added = outlook.Added(
      kinds[slate].sum(0), response @ kinds[slate], jnp.float32(3)
    )
    after = _after(user, jnp.array(slate), jnp.array(response))
    after = after._replace(history=user.history)
    want = np.array(_counts(after, kinds))
    got = _counts(user, kinds, added)
    if before == 12:  # The slate has pushed out what is six steps old.
      steps = np.r_[6:10, 16:20, 26:30]
      got = np.delete(got, steps, 1)
      want = np.delete(want, steps, 1)
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_counts_by_a_loop(self):
    kinds = jnp.asarray(np.eye(4)[:, 1:], jnp.float32)  # Items 1, 2 and 3.
    user = observed.start(jnp.zeros(0), jnp.array([0, 2]), 60)
    liked = []
    rows = np.zeros((3, 3, outlook.STEPS))
    rng = np.random.default_rng(0)
    shown = [
      (1 + rng.integers(3, size=4), rng.integers(2, size=4)) for _ in range(13)
    ]
    for slate, response in shown:
      user = _after(user, jnp.array(slate), 1.0 * response)
    for ago, (slate, response) in enumerate(reversed(shown)):
      for item, like in reversed(list(zip(slate, response, strict=True))):
        if ago < outlook.STEPS:
          rows[item - 1, 0, ago] += 1
          rows[item - 1, 1, ago] += like
          rows[item - 1, 2, ago] += like and len(liked) < outlook.NEWEST
        if like:
          liked.append(item)
    last = [x for x in reversed(liked[:2])]
    weights = {last[1]: 1.0}
    weights[last[0]] = weights.get(last[0], 0.0) + 0.9
    counts = _counts(user, kinds)
    want = rows.reshape(3, -1) / 4
    np.testing.assert_allclose(counts[:, : want.shape[1]], want, atol=1e-6)
    history = [weights.get(item, 0.0) / 4 for item in (1, 2, 3)]
    np.testing.assert_allclose(counts[:, -2], history, rtol=1e-5)

  def test_values_of_changes_one_by_one(self):
    made = _case()
    rng, features = np.random.default_rng(0), made.catalogue.features
    learned = _parts(made).outlook.bind(made.params["outlook"])
    counts = jnp.asarray(rng.normal(size=(7, outlook.COUNTS)), jnp.float32)
    changes = jnp.asarray(rng.normal(size=(2, outlook.COUNTS)), jnp.float32)
    tastes = jax.jit(learned.tastes)(features, made.observation)
    now, changed = jax.jit(learned.values)(tastes, counts, changes)
    value = jax.jit(learned.value)
    want = [
      [value(tastes, counts.at[kind].add(x)) for kind in range(7)]
      for x in changes
    ]
    np.testing.assert_allclose(changed, want, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(now, value(tastes, counts), rtol=1e-4)


@pytest.mark.slow  # A loop is compiled.
class RestartTest(absltest.TestCase):
  def test_a_restart_gives_the_same_bits(self):
    config = toy.config("planner", seeds=(0,))
    env = toy.env()._replace(observed_items=12)
    agent = make_agent(config, toy.SLATE, toy.ITEMS)
    engine, inputs = loop.make(agent, env, config.train), toy.inputs()
    run = jax.jit(engine.run)
    start = jax.jit(engine.init)(0, inputs)
    state, states = start, []
    for _ in range(3):
      *state, _ = run(*state, inputs)
      states.append(tuple(state))
    with tempfile.TemporaryDirectory() as folder:
      with checkpoint.open_directory(pathlib.Path(folder)) as checkpointer:
        checkpoint.save(checkpointer, 4, states[0])
      with checkpoint.open_directory(pathlib.Path(folder)) as checkpointer:
        state = checkpoint.restore_latest(checkpointer, start)
    for _ in range(2):
      *state, _ = run(*state, inputs)
    chex.assert_trees_all_equal(tuple(state), states[-1])
    before = start[0].params["outlook"]["params"]["item"]["kernel"]
    after = state[0].params["outlook"]["params"]["item"]["kernel"]
    self.assertGreater(float(jnp.abs(before - after).max()), 0)
    chex.assert_trees_all_equal(
      start[0].params["scale"], state[0].params["scale"]
    )


if __name__ == "__main__":
  absltest.main()
