"""What holds of every agent of the registry, whatever it is."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import agents, sid
from hsrl_jax.agents.baselines import hac
from hsrl_jax.agents.hsrl import agent as hsrl
from tests import toy
from tests.agents import checks
from tests.agents.baselines import latent_cases as latent
from tests.agents.hsrl import reference

# Cases beside each agent at its defaults: its name, the items in training, and
# settings.
VARIANTS = {
  "a2c_free": ("a2c", toy.ITEMS, {"item_logits": "free"}),
  # With as many beams as items the search is exhaustive.
  "hsrl_search": ("hsrl", hsrl.SEARCH_FROM, {}),
}
CASES = {name: (name, toy.ITEMS, {}) for name in agents.AGENTS} | VARIANTS
LEARNERS = [
  name for name in agents.AGENTS if checks.made(name).agent.loss is not None
]
ON_POLICY = ("ppo", "ppo_categories", "a2c_sequential")
LATENT = ("ddpg", "td3", "hac", "wolpertinger")
# By agent, the parts of the parameters that each weight's loss moves.
_LATENT_MOVES = {
  "critic_weight": {"encoder", "critic"},
  "actor_weight": {"encoder", "actor"},
  "behaviour_weight": {"encoder", "actor", "item", "response_bias"},
}
MOVES = dict.fromkeys(LATENT, _LATENT_MOVES) | {
  "a2c": {
    "critic_weight": {"encoder", "critic"},
    "actor_weight": {"encoder", "items"},
    "behaviour_weight": {"encoder", "items"},
  },
  "pgra": {
    "critic_weight": {"encoder", "critic"},
    "actor_weight": {"encoder", "actor"},
    "behaviour_weight": {"encoder", "guess", "items"},
  },
  "hsrl": {
    "critic_weight": {"critic"},
    "actor_weight": {"encoder", "policy"},
    "behaviour_weight": {"encoder", "policy"},
  },
  "planner": {
    "critic_weight": {"outlook"},
    "behaviour_weight": {"outlook"},
  },
}


def _made(case):
  name, items, values = CASES[case]
  return checks.made(name, items, **values)


def _scores(made):
  """The score of each item by which a greedy slate ranks them; or None."""
  agent, (_, _, params, catalogue, observation) = made.config.agent, made
  if agent == "popularity":
    return np.asarray(catalogue.popularity)
  if agent == "hsrl":
    return reference.log_pi(made)
  if agent in ("ddpg", "td3", "hac"):
    state = latent.state(params, catalogue, observation)
    embedded = latent.embeddings(params, catalogue)
    return embedded @ latent.action(params, state)
  if agent in (
    "random",
    "wolpertinger",
    "cql",
    "planner",
    *ON_POLICY,
    *agents.RULES,
  ):
    return None
  state = checks.state(params, catalogue, observation)
  if agent == "pgra":
    actor = params["actor"]["params"]["Dense_0"]
    state = np.tanh(state @ actor["kernel"] + actor["bias"])
  return checks.item_logits(params, catalogue, state)


class ActTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_a_greedy_slate_is_the_exact_top(self, case):
    made = _made(case)
    scores = _scores(made)
    if scores is None:
      self.skipTest("its slates follow no one score: see its own tests")
    order = (1 + np.argsort(-scores[1:], kind="stable")).tolist()
    removed = order.pop(0)
    index = sid.remove_items(made.catalogue.index, [removed])
    act = jax.jit(
      lambda index, banned: made.agent.act(
        made.params,
        made.catalogue._replace(index=index),
        made.observation,
        banned,
        None,
        1.0,
      )
    )
    for banned, want in (
      ([0, 0, 0], order[: toy.SLATE]),
      ([order[0], 0, order[2]], [order[1], *order[3 : toy.SLATE + 2]]),
    ):
      action = act(index, jnp.array(banned))
      self.assertEqual(action.slate.tolist(), want)
      if case.startswith("hsrl") or case in LATENT:
        np.testing.assert_allclose(action.log_prob, scores[want], rtol=1e-4)

  @parameterized.parameters(*CASES)
  def test_sampled_slates_are_distinct_permitted_and_vary(self, case):
    made = _made(case)
    fewer = made.catalogue._replace(
      index=sid.remove_items(made.catalogue.index, [12])
    )
    # All but five are banned in the end.
    for left in (np.arange(6, toy.ITEMS + 1), np.array([9, 20, 21, 30, 40])):
      banned = np.setdiff1d(np.arange(toy.ITEMS + 1), left)
      # Values of a whole future are far apart at temperature 1.
      widths = {"cql": 10.0, "planner": 1e4} | dict.fromkeys(ON_POLICY, 60.0)
      exploration = widths.get(case, 1.0)
      acted = checks.sample(made._replace(catalogue=fewer), banned, exploration)
      slates = np.asarray(acted.slate)[:500]
      self.assertTrue(np.isin(slates, np.setdiff1d(left, [12])).all())
      self.assertTrue(all(len(set(x)) == toy.SLATE for x in slates.tolist()))
      if len(left) > 5:
        kinds = len(set(map(tuple, slates.tolist())))
        if case == "popularity":
          self.assertEqual(kinds, 1)
        else:
          self.assertGreater(kinds, 20)


class LossTest(parameterized.TestCase):
  @parameterized.parameters(*LEARNERS)
  @mock.patch.object(hac, "ALIGNMENT_WEIGHT", 0.0)
  def test_what_learns(self, case):
    made = _made(case)
    config, _, params, catalogue, observation = made
    width = config.network.width if case in (*LATENT, "pgra") else 0
    step = checks.transition(observation, latent=jnp.ones(width))
    moves = MOVES.get(config.agent, {})

    @jax.jit
    def gradients(weights, terminated):
      """Of the loss at weights that are no constants: one compilation."""
      settings = dataclasses.replace(config.settings, **weights)
      agent = agents.make_agent(
        dataclasses.replace(config, settings=settings), toy.SLATE, toy.ITEMS
      )

      def loss(params, target):
        shown = step._replace(terminated=terminated)
        return agent.loss(params, target, catalogue, shown, checks.KEY, 0.0)

      return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, params)

    everything = {"encoder", "items"} | ({"future"} if case == "cql" else set())
    for moving, moved in moves.items() or [(None, everything)]:
      weights = {name: float(name == moving) for name in moves}
      (own, target), metrics = gradients(weights, jnp.float32(1.0))
      self.assertEqual(_moved(own), moved, moving)
      # Target networks are held, and there is no future where a user left.
      self.assertEqual(_moved(target), set())
      if moves:
        y = metrics["value"] + metrics.get("advantage", 0.0)
        np.testing.assert_allclose(metrics.get("target", y), 0.6, rtol=1e-4)


def _moved(gradient):
  """The parts whose gradient is not zero."""
  if set(gradient) == {"params"}:
    gradient = gradient["params"]
  return {
    name
    for name, part in gradient.items()
    if max(float(np.abs(x).max()) for x in jax.tree.leaves(part)) > 1e-7
  }


if __name__ == "__main__":
  absltest.main()
