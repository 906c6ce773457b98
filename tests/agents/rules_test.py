"""Rules against their definitions, in plain NumPy or by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.agents.rules import capped, knowledge
from hsrl_jax.sid.categories import categories, rarest
from hsrl_jax.sim import leave, observed
from hsrl_jax.types import Observation, Shown
from tests import toy
from tests.agents import checks

RNG = np.random.default_rng(4)
# Of each item one to three of five categories.
CATEGORIES = RNG.random((toy.ITEMS + 1, 5)) < 0.3
CATEGORIES[np.arange(toy.ITEMS + 1), np.arange(toy.ITEMS + 1) % 5] = True
CATEGORIES[0] = False
WORTH = RNG.random(toy.ITEMS + 1).astype(np.float32)


def _shown(items, response=None, places=None):
  """What was shown, one item a step, the last two places unused before."""
  count = len(items)
  response = np.zeros(count) if response is None else np.asarray(response)
  places = np.zeros(count, int) if places is None else np.asarray(places)
  pad = [(2, 0)]
  return Shown(
    jnp.asarray(np.pad(items, pad), jnp.int32),
    jnp.asarray(np.pad(response, pad), jnp.float32),
    jnp.asarray(np.pad(places, pad), jnp.int32),
    jnp.asarray(np.pad(np.arange(count, 0, -1), pad), jnp.int32),
    jnp.int32(count),
  )


def _slate(name, shown=None, excluded=(0,), **values):
  """The greedy slate of a rule that knows WORTH and CATEGORIES."""
  made = checks.made(name, **values)
  catalogue = made.catalogue._replace(categories=jnp.asarray(CATEGORIES))
  params = made.agent.init(checks.KEY, catalogue, made.observation)
  params |= {"worth": jnp.asarray(WORTH)}
  observation = made.observation._replace(shown=shown)
  act = jax.jit(made.agent.act)
  return act(
    params, catalogue, observation, jnp.asarray(excluded), None, 1.0
  ).slate.tolist()


def _best(scores, count):
  return (1 + np.argsort(-scores[1:], kind="stable"))[:count].tolist()


class KnowledgeTest(absltest.TestCase):
  def test_the_rarest_category_by_brute_force(self):
    kinds = np.asarray(rarest(jnp.float32(CATEGORIES)))
    items_of = CATEGORIES.sum(0)
    for own, kind in zip(CATEGORIES[1:], kinds[1:], strict=True):
      expected = min(np.flatnonzero(own), key=lambda c: (items_of[c], c))
      self.assertEqual(np.flatnonzero(kind).tolist(), [expected])
    self.assertEqual(kinds[0].sum(), 0)

  def test_first_tokens_stand_for_categories(self):
    catalogue = checks.catalogue()
    found = np.asarray(categories(catalogue))
    tokens = catalogue.index.sids[1:, 0]
    np.testing.assert_array_equal(found[1:].argmax(1), tokens)
    np.testing.assert_array_equal(found.sum(1), [0] + [1] * toy.ITEMS)

  def test_means_of_the_logs(self):
    catalogue = checks.catalogue()
    likes = np.asarray(catalogue.popularity)
    shown = likes + np.arange(len(likes))
    mean = likes.sum() / shown.sum()
    np.testing.assert_allclose(
      knowledge.logged_mean(catalogue._replace(exposures=jnp.asarray(shown))),
      (likes + 5 * mean) / (shown + 5),
      rtol=1e-5,
    )

  def test_a_mean_over_users_is_that_of_their_chances(self):
    users = toy.users()
    found = knowledge.simulated_mean(toy.env(), users, toy.ITEMS, checks.KEY)
    # Each group is liked by a quarter of the users, 0.95, others by 0.1.
    np.testing.assert_allclose(found[1:], 0.25 * 0.95 + 0.75 * 0.1, rtol=1e-5)


class SpacedTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3)
  def test_each_place_by_brute_force(self, count):
    before = [3, 8, 11, 20, 5, 7]
    found = _slate("spaced", _shown(before), rule_memory=5, rule_cap=count)
    last = list(before)
    for item in found:
      often = CATEGORIES[last[-5:]].sum(0) >= count
      tired = (CATEGORIES & often).any(1)
      fresh = [x for x in range(1, toy.ITEMS + 1) if x not in last[6:]]
      free = [x for x in fresh if not tired[x]]
      self.assertEqual(
        item,
        max(
          free or fresh,
          key=lambda x: (-(CATEGORIES[x] & often).sum(), WORTH[x]),
        ),
      )
      last.append(item)

  def test_without_anything_shown_it_is_the_mean(self):
    found = _slate("spaced", rule_cap=9)
    self.assertEqual(found, _best(WORTH, toy.SLATE))


class DiverseTest(absltest.TestCase):
  def test_no_weight_is_the_best_of_each_kind(self):
    kinds = np.asarray(rarest(jnp.float32(CATEGORIES))).argmax(1)
    want, used = [], set()
    for item in _best(WORTH, toy.ITEMS):
      if kinds[item] not in used:
        want.append(item)
        used.add(kinds[item])
    found = _slate("diverse", similarity_weight=0.0, rule_cap=1)
    self.assertEqual(found, want[: toy.SLATE])

  def test_mmr_by_brute_force(self):
    features = np.asarray(checks.catalogue().features, np.float64)
    units = features[1:] / np.linalg.norm(features[1:], axis=1)[:, None]
    units = np.concatenate([np.zeros((1, units.shape[1])), units])
    before = [23, 31, 4, 9, 17, 2, 12, 28, 35, 8, 20, 3]
    found = _slate(
      "diverse",
      _shown(before),
      similarity_weight=0.7,
      rule_cap=9,
    )
    chosen = before[-10:]
    for item in found:
      scores = WORTH - 0.7 * (units @ units[chosen].T).max(1)
      scores[chosen[10:]] = -9
      self.assertEqual([item], _best(scores, 1))
      chosen.append(item)


class CappedTest(absltest.TestCase):
  def test_the_user_is_clicked_over_shown(self):
    features = np.asarray(checks.catalogue().features, np.float64)
    history = np.array([0, 0, 2, 7])
    items, response, places = [2, 7, 9], [1, 1, 0], [0, 1, 2]
    want = features[[2, 7]].sum(0) / (
      (0.85 ** np.array(places)) @ np.abs(features[items]) + 2.0
    )
    want += 0.02 * features[[2, 7]].sum(0)
    found = capped.taste(
      jnp.float32(features),
      Observation(
        jnp.zeros(0), jnp.asarray(history), _shown(items, response, places)
      ),
    )
    np.testing.assert_allclose(found, want / np.linalg.norm(want), rtol=1e-4)

  def test_likes_of_each_kind_among_the_last_ones(self):
    kinds = rarest(jnp.float32(CATEGORIES))
    items, response = [3, 8, 11, 20, 5], [1, 1, 0, 1, 0]
    observation = Observation(
      jnp.zeros(0), jnp.zeros(4, jnp.int32), _shown(items, response)
    )
    for memory, liked in ((1, [20]), (2, [8, 20]), (5, [3, 8, 20])):
      np.testing.assert_array_equal(
        capped.likes(kinds, observation, memory),
        np.asarray(kinds)[liked].sum(0),
      )

  def test_no_kind_has_more_places_than_its_room(self):
    kinds = np.asarray(rarest(jnp.float32(CATEGORIES)))
    liked = _best(-WORTH, 2)
    room = 1 - np.minimum(kinds[liked].sum(0), 1)
    found = _slate("capped", _shown(liked, [1, 1]), rule_cap=1, rule_memory=8)
    self.assertTrue((kinds[found].sum(0) <= room).all())
    # A cap that nobody reaches changes nothing: the best scores are the slate.
    made = checks.made("capped", worth_weight=2.0)
    params = made.agent.init(checks.KEY, made.catalogue, made.observation)
    params |= {"worth": jnp.asarray(WORTH)}
    scores = made.agent.scores(params, made.catalogue, made.observation)
    found = _slate("capped", rule_cap=9, worth_weight=2.0)
    self.assertEqual(found, _best(np.asarray(scores), toy.SLATE))


class PlaylistTest(absltest.TestCase):
  def _fit(self, env, **values):
    made = checks.made("best_playlist", **values)
    catalogue = made.catalogue._replace(categories=jnp.asarray(CATEGORIES))
    params = made.agent.init(checks.KEY, catalogue, made.observation)
    fit = jax.jit(made.agent.fit, static_argnums=1)
    return made, fit(params, env, toy.users(), catalogue, checks.KEY)

  def test_a_slate_nobody_leaves_for_comes_first(self):
    @dataclasses.dataclass(frozen=True)
    class Odd(leave.Length):
      """Users leave at an item of odd number."""

      def step(self, state, slate, response, reward, draw):
        return state, (slate % 2 == 1).any()

    env = toy.env(no_repeat=True)._replace(
      leave=Odd(), observed_items=9, max_steps=6
    )
    made, params = self._fit(env)
    slates = np.asarray(params["slates"])
    self.assertEqual(slates.shape, (6, toy.SLATE))
    self.assertLen(np.unique(slates), slates.size)
    self.assertTrue((slates % 2 == 0).all())
    # It is shown in order.
    user = observed.start(*made.observation[:2], 9)
    act = jax.jit(made.agent.act)
    for slate in slates:
      own = (params, made.catalogue, user, checks.NOTHING, None, 1.0)
      found = act(*own).slate
      self.assertCountEqual(found.tolist(), slate.tolist())
      user = observed.after(user, found, jnp.zeros(toy.SLATE))

  def test_it_holds_what_its_users_like_most(self):
    # The users that like group 1 are twice as many as those of each other.
    users = toy.users()
    profiles = jnp.eye(toy.GROUPS)[jnp.array([0, 1, 1, 2, 3] * 8)]
    users = users._replace(
      profiles=profiles, histories=users.histories[:1].repeat(40, 0)
    )
    made = checks.made("best_playlist", stay_weight=0.0)
    params = made.agent.init(checks.KEY, made.catalogue, made.observation)
    fit = jax.jit(made.agent.fit, static_argnums=1)
    env = toy.env()._replace(leave=leave.Length())
    params = fit(params, env, users, made.catalogue, checks.KEY)
    groups = (np.asarray(params["slates"]) - 1) % toy.GROUPS
    self.assertTrue((groups == 1).all())


if __name__ == "__main__":
  absltest.main()
