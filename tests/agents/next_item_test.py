"""Policies of the next item: exact orders, and what the click model adds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import agents, sid
from hsrl_jax.agents import next_item
from hsrl_jax.config import NextItemConfig, SimulatorConfig
from hsrl_jax.errors import InputError
from hsrl_jax.types import Observation
from tests import toy
from tests.agents import checks

CHANCE = jnp.linspace(0.02, 0.9, toy.ITEMS + 1)[::-1]


def _config(name, **values):
  base = toy.config(name)
  return dataclasses.replace(
    base,
    train=dataclasses.replace(base.train, recipe="next_item"),
    simulator=SimulatorConfig(features=4, hidden=4),
    next_item=NextItemConfig(
      width=8,
      dropout=0.0,
      history=6,
      hidden=8,
      beams=toy.ITEMS,
      **values,
    ),
  )


@functools.cache
def _setting(name, **values):
  """Policy, random parameters and a user.

  Users like item i with the chance CHANCE[i], whoever they are.
  """
  config = _config(name, **values)
  agent = agents.make_agent(config, toy.SLATE, toy.ITEMS)
  users = toy.users()
  user = Observation(users.profiles[3], users.histories[3])
  params = checks.random_params(agent, user, 1)
  params["response_weight"] = jnp.float32(1.5)
  policy = next_item.policy(config, toy.SLATE, toy.ITEMS)
  policy = policy._replace(respond=lambda *arguments: CHANCE[arguments[-1]])
  return policy, params, user


class PolicyTest(parameterized.TestCase):
  @parameterized.parameters(*agents.trained_by("next_item"))
  def test_slates_are_the_exact_top_of_what_may_be_shown(self, name):
    """Of hsrl too, whose beams are as many as the items."""
    policy, params, user = _setting(name)
    catalogue = checks.catalogue()
    everything = jnp.arange(toy.ITEMS + 1)
    scores = jax.jit(policy.score)(params, catalogue, user, everything)
    order = (1 + np.argsort(-np.asarray(scores)[1:])).tolist()
    removed = order.pop(0)
    catalogue = catalogue._replace(
      index=sid.remove_items(catalogue.index, [removed])
    )
    if name == "hsrl":  # Probabilities are of the items that are left.
      scores = jax.jit(policy.score)(params, catalogue, user, everything)
      order = (1 + np.argsort(-np.asarray(scores)[1:])).tolist()
      self.assertEqual(order.pop(), removed)
    act = jax.jit(
      lambda banned: policy.act(params, catalogue, user, banned, None, 1.0)
    )
    for banned, want in (
      ([0, 0, 0], order[: toy.SLATE]),
      ([order[0], 0, order[2]], [order[1], *order[3 : toy.SLATE + 2]]),
    ):
      action = act(jnp.asarray(banned))
      self.assertEqual(action.slate.tolist(), want)
      np.testing.assert_allclose(
        action.log_prob, np.asarray(scores)[np.asarray(want)], rtol=1e-4
      )

  @pytest.mark.slow
  def test_one_order_for_slates_of_any_size(self):
    policy, params, user = _setting("hsrl")
    banned = jnp.asarray([4, 9])
    found = []
    for size in (2, 5, 16, toy.ITEMS):
      own = policy._replace(beams=3, slate_size=size)
      action = jax.jit(own.act)(
        params, checks.catalogue(), user, banned, None, 1.0
      )
      found.append(np.asarray(action.slate))
      scores = policy.score(params, checks.catalogue(), user, action.slate)
      there = found[-1] > 0
      self.assertEqual(there.sum(), min(size, toy.ITEMS - 2))
      self.assertLen(set(found[-1][there].tolist()), there.sum())
      np.testing.assert_allclose(
        np.asarray(action.log_prob)[there],
        np.asarray(scores)[there],
        rtol=1e-4,
      )
    for shorter in found:
      self.assertEqual(shorter.tolist(), found[-1][: len(shorter)].tolist())
    self.assertNoCommonElements(found[-1].tolist(), [4, 9])
    # The best of the first beams come first, whatever comes later.
    first = np.asarray(scores)[:3]
    self.assertTrue((np.diff(first) <= 0).all())

  @parameterized.parameters(*agents.trained_by("next_item"))
  def test_sampled_slates_are_distinct_and_permitted(self, name):
    policy, params, user = _setting(name)
    left = np.array([9, 20, 21, 30, 40])
    banned = jnp.asarray(np.setdiff1d(np.arange(toy.ITEMS + 1), left))
    slates = jax.jit(
      jax.vmap(
        lambda key: (
          policy.act(params, checks.catalogue(), user, banned, key, 9.0).slate
        )
      )
    )(jax.random.split(checks.KEY, 200))
    self.assertTrue(np.isin(slates, left).all())
    self.assertTrue(all(len(set(x)) == toy.SLATE for x in slates.tolist()))
    self.assertGreater(len(set(map(tuple, slates.tolist()))), 10)

  def test_the_logit_of_a_response_is_added(self):
    policy, params, user = _setting("sasrec")
    items = jnp.arange(1, toy.ITEMS + 1)
    arguments = (checks.catalogue(), user, items)
    both = policy.score(params, *arguments)
    alone = policy.score(params | {"response_weight": 0.0}, *arguments)
    chance = np.asarray(CHANCE, np.float64)[1:]
    np.testing.assert_allclose(
      both - alone, 1.5 * np.log(chance / (1 - chance)), atol=1e-4
    )
    self.assertFalse(np.argmax(both) == np.argmax(alone))

  def test_a_certain_response_is_finite(self):
    policy, params, user = _setting("sasrec")
    policy = policy._replace(respond=lambda *arguments: jnp.asarray([0.0, 1.0]))
    found = policy.response(
      params, checks.catalogue(), user, jnp.asarray([1, 2])
    )
    self.assertTrue(np.isfinite(found).all())
    self.assertAlmostEqual(float(found.sum()), 0.0, delta=1.0)

  @parameterized.parameters(*agents.trained_by("next_item"))
  def test_later_items_are_known_by_features_and_tokens(self, name):
    policy, params, user = _setting(name)
    catalogue = checks.catalogue()
    index = catalogue.index
    later = toy.ITEMS + 1
    tokens = np.concatenate([index.sids[1:], [[7, 7]]])
    known = catalogue._replace(
      index=sid.build_index(tokens, 8),
      features=jnp.concatenate([catalogue.features, catalogue.features[5:6]]),
    )
    del user
    rows = params["model"]["rows"]["params"]
    without = {"params": rows | {"id": jnp.zeros_like(rows["id"])}}
    score = jax.jit(
      lambda rows: policy.model.item_score(
        params["model"] | {"rows": rows},
        known,
        jnp.ones(8),
        jnp.asarray([later, 5]),
      )
    )
    with_ids, without_ids = score({"params": rows}), score(without)
    self.assertEqual(float(with_ids[0]), float(without_ids[0]))
    self.assertNotEqual(float(with_ids[1]), float(without_ids[1]))
    if name == "sasrec":  # The same features, and no tokens.
      self.assertAlmostEqual(
        float(without_ids[0]), float(without_ids[1]), places=4
      )

  def test_vectors_of_likes_stand_beside_the_features(self):
    policy, params, _ = _setting("sasrec")
    catalogue = checks.catalogue()
    liked = jnp.arange(2.0 * toy.ITEMS).reshape(toy.ITEMS, 2)  # Of one less.
    known = policy.catalogue(params | {"interactions": liked}, catalogue)
    np.testing.assert_array_equal(known.features[:, :7], catalogue.features)
    np.testing.assert_array_equal(known.features[:-1, 7:], liked)
    # An item that came later was liked by nobody.
    np.testing.assert_array_equal(known.features[-1, 7:], 0)


class MakeTest(absltest.TestCase):
  def test_an_agent_without_the_task(self):
    with self.assertRaisesRegex(
      InputError,
      "^recipe is 'next_item' with ddpg; expected replay or logs, or",
    ):
      agents.make_agent(_config("ddpg"), toy.SLATE, toy.ITEMS)


if __name__ == "__main__":
  absltest.main()
