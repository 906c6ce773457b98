"""On-policy HSRL that goes on from the next item: what holds, what is free."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax.agents import next_item
from hsrl_jax.config import NextItemConfig
from hsrl_jax.errors import InputError
from hsrl_jax.sim import observed
from tests import toy
from tests.agents import checks

AGENTS = ("hsrl", "ppo")
BEAMS = 6
NONE = jnp.zeros(0)


@functools.cache
def _made(agent, **values):
  config = toy.config(agent, recipe="next_item,on_policy", **values)
  own = NextItemConfig(
    width=8, history=toy.HISTORY, hidden=8, beams=BEAMS, interactions=3
  )
  config = dataclasses.replace(config, next_item=own)
  made, users = toy.agent(config), toy.users()
  start = observed.start(users.profiles[3], users.histories[3], 8)
  params = checks.random_params(made, start, 1)
  params["supervised"]["response_weight"] = jnp.float32(1.5)
  policy = params["policy"]["params"]
  for name in {"user", "first_out", "lower_out"} & policy.keys():
    policy[name] = jax.tree.map(lambda x: x / 20, policy[name])
  return checks.Made(config, made, params, checks.catalogue(), start)


def _later(made):
  """What is seen after a slate."""
  slate, response = jnp.array([3, 4, 5]), jnp.array([1.0, 0.0, 1.0])
  return observed.after(made.observation, slate, response)


def _supervised(made):
  """Log pi of all items by the next item, and the click model's part."""
  policy = next_item.policy(made.config, toy.SLATE, toy.ITEMS)
  own, items = made.params["supervised"], jnp.arange(toy.ITEMS + 1)
  plain = made.observation._replace(shown=None)
  known = policy.catalogue(own, made.catalogue)
  state = policy.state(own, made.catalogue, plain)
  scores = policy.model.item_score(own["model"], known, state, items)
  response = policy.response(own, made.catalogue, plain, items)
  scores, response = np.asarray(scores, float), np.asarray(response, float)
  return scores - np.log(np.exp(scores[1:]).sum()), response


def _other(made):
  """The same policy of the next item, with another actor."""
  other = checks.random_params(made.agent, made.observation, 2)
  return made.params | {"policy": other["policy"]}


class SupervisedTest(parameterized.TestCase):
  @parameterized.parameters(*AGENTS)
  @pytest.mark.slow
  def test_in_logged_states_it_is_the_policy_of_the_next_item(self, agent):
    made = _made(agent)
    log_pi, response = _supervised(made)
    banned = [int(np.argmax(log_pi[1:])) + 1, 7]
    left = [i for i in range(1, toy.ITEMS + 1) if i not in banned]
    found = sorted(left, key=lambda i: -log_pi[i])[:BEAMS]
    best = sorted(found, key=lambda i: -(log_pi + response)[i])[: toy.SLATE]
    act, scores = jax.jit(made.agent.act), jax.jit(made.agent.scores)
    for params in (made.params, _other(made)):
      given = (params, made.catalogue, made.observation)
      if agent == "ppo":
        action = act(*given, jnp.array(banned), None, 1.0)
        self.assertEqual(action.slate.tolist(), best)
      # A greedy token leads to what weighs most together; probabilities agree.
      acted = checks.sample(made._replace(params=params), banned)
      self._check_first(acted, found, np.exp(log_pi + response)[found])
      np.testing.assert_allclose(
        scores(*given)[1:], (log_pi + response)[1:], rtol=1e-4, atol=1e-4
      )

  def _check_first(self, acted, items, weights):
    chance = np.zeros(toy.ITEMS + 1)
    chance[items] = weights / weights.sum()
    count = np.bincount(acted.slate[:, 0], minlength=toy.ITEMS + 1)
    error = np.sqrt(chance * (1 - chance) / checks.DRAWS) + 1e-4
    self.assertLess(
      np.abs(count / checks.DRAWS - chance).max(), 5 * error.max()
    )

  @parameterized.parameters(*AGENTS)
  @pytest.mark.slow
  def test_later_rl_is_free_and_begins_with_log_pi(self, agent):
    made = _made(agent)
    seen, nothing = _later(made), jnp.zeros(0, jnp.int32)
    act = jax.jit(made.agent.act)
    slates = [
      act(x, made.catalogue, seen, nothing, None, 1.0).slate.tolist()
      for x in (made.params, _other(made))
    ]
    self.assertNotEqual(*slates)
    # Without RL's part and estimate log pi alone decides.
    zeros = jax.tree.map(jnp.zeros_like, made.params["policy"])
    made = made._replace(
      params=made.params | {"policy": zeros}, observation=seen
    )
    log_pi, _ = _supervised(made)
    action = act(made.params, made.catalogue, seen, nothing, None, 1.0)
    want = 1 + np.argsort(-log_pi[1:])[: toy.SLATE]
    if agent == "ppo":
      self.assertEqual(action.slate.tolist(), want.tolist())
    items = np.arange(1, toy.ITEMS + 1)
    self._check_first(checks.sample(made, []), items, np.exp(log_pi[items]))

  @pytest.mark.slow
  def test_the_first_slot_alone_is_held(self):
    made = [_made("hsrl", hold_logged=x) for x in ("slot", "slate")]
    log_pi, response = _supervised(made[0])
    found = (np.argsort(-log_pi[1:])[:BEAMS] + 1).tolist()
    slot, slate = (checks.sample(x, []) for x in made)
    self._check_first(slot, found, np.exp(log_pi + response)[found])
    self.assertContainsSubset(slate.slate[:, 1].tolist(), found)
    # RL is free in the second place, and what it learns counts there alone.
    self.assertNotEmpty(set(slot.slate[:, 1].tolist()) - set(found))
    own = made[0].params["policy"]["params"]
    learned = jax.tree.map(lambda x: 20 * x, own["first_out"])
    policy = {"params": own | {"first_out": learned}}
    other = made[0]._replace(params=made[0].params | {"policy": policy})
    after = checks.sample(other, []).slate
    np.testing.assert_array_equal(after[:, 0], slot.slate[:, 0])
    self.assertGreater((after[:, 1] != slot.slate[:, 1]).mean(), 0.05)

  def test_the_flat_agent_keeps_one_beginning(self):
    with self.assertRaisesRegex(InputError, "hold_logged is 'slot'; expected"):
      _made("ppo", hold_logged="slot")

  @parameterized.parameters(
    *(("hsrl", x) for x in ("slate", "slot", "none")),
    *(("ppo", x) for x in ("slate", "none")),
  )
  @pytest.mark.slow
  def test_learning_sees_what_acting_did(self, agent, hold):
    made = _made(agent, hold_logged=hold)
    key = jax.random.key(5)
    nothing = jnp.zeros(0, jnp.int32)
    for seen in (made.observation, _later(made)):
      given = (made.params, made.catalogue, seen)
      acted = jax.jit(made.agent.act)(*given, nothing, key, 1.0)
      one = checks.transition(
        seen,
        slate=acted.slate,
        response=jnp.ones(toy.SLATE),
        hidden=NONE,
        notes=acted.notes,
      )
      choices = jax.jit(made.agent.on_policy.choices)(
        made.params, made.catalogue, one, None
      )
      np.testing.assert_allclose(
        choices.log_probs.sum(-1), acted.log_prob, rtol=1e-3, atol=1e-4
      )

  @parameterized.parameters(*AGENTS)
  def test_what_is_held_has_no_divergence(self, agent):
    made, nothing = _made(agent, anchor_weight=0.5), jnp.zeros(0, jnp.int32)

    @jax.jit
    def divergence(seen):
      given = (made.params, made.catalogue)
      acted = made.agent.act(*given, seen, nothing, None, 1.0)
      one = checks.transition(
        seen,
        slate=acted.slate,
        response=jnp.ones(toy.SLATE),
        hidden=NONE,
        notes=acted.notes,
      )
      choices = made.agent.on_policy.choices(*given, one, None)
      return choices.metrics["divergence"]

    np.testing.assert_allclose(divergence(made.observation), 0.0, atol=1e-6)
    self.assertGreater(divergence(_later(made)), 1e-4)


if __name__ == "__main__":
  absltest.main()
