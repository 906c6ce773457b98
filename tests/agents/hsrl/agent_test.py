"""The agent: what it shows, and which parameters its loss moves."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.sim.reward import Reward
from hsrl_jax.stages import policy
from hsrl_jax.types import Transition
from tests import toy

NOTHING = jnp.zeros(0, jnp.int32)


def _made(sweet_point=None, **overrides):
  config = toy.config(**overrides)
  spec = toy.SPEC._replace(reward=Reward(-0.1, sweet_point))
  agent, inputs = hsrl.make(config, spec), toy.inputs()
  observation = toy.env().start(jnp.int32(3), inputs.env_params).observation
  params = agent.init(jax.random.key(1), inputs.catalogue, observation)
  # Away from zero-initialised parts.
  params = jax.tree.map(
    lambda x: x + 0.3 * jnp.sin(1.0 + jnp.arange(x.size)).reshape(x.shape),
    params,
  )
  return agent, params, inputs.catalogue, observation


def _networks():
  """Those of the agent above that act."""
  return hsrl._Networks(
    hsrl.encoder_lib.Encoder(8, 1, 2, 0.1),
    hsrl.policy_lib.PolicyNetwork(2, 8, 8),
    None,
    True,
  )


class ActTest(parameterized.TestCase):
  @parameterized.parameters(
    ("expected", 41), ("expected", toy.ITEMS), ("sampled", 41)
  )
  def test_greedy_slate_is_the_exact_top(self, mode, search_from):
    self.enter_context(mock.patch.object(hsrl, "SEARCH_FROM", search_from))
    # With as many beams as prefixes the search is exhaustive.
    agent, params, catalogue, observation = _made(residual_mode=mode, beams=64)
    everything, log_prob = self._ranking(mode, params, catalogue, observation)
    excluded = jnp.array([everything[0], 0, everything[2]])
    for banned, want in (
      (NOTHING, everything[: toy.SLATE]),
      (excluded, [everything[1], *everything[3 : toy.SLATE + 2]]),
    ):
      slate, log_pi, _ = agent.act(
        params, catalogue, observation, banned, None, 1.0
      )
      np.testing.assert_array_equal(slate, want)
      np.testing.assert_allclose(log_pi, [log_prob[i] for i in want], rtol=1e-4)

  @parameterized.product(
    search_from=[41, toy.ITEMS], case=[(0.1, None), (0.9, None), (0.9, 7)]
  )
  def test_with_a_sweet_point_the_best_mix_is_shown(self, search_from, case):
    sweet_point, key = case
    self.enter_context(mock.patch.object(hsrl, "SEARCH_FROM", search_from))
    agent, params, catalogue, observation = _made(sweet_point, beams=64)
    everything, log_prob = self._ranking(
      "expected", params, catalogue, observation
    )
    excluded = jnp.array([everything[0], everything[-1]])
    key = None if key is None else jax.random.key(key)
    slate = agent.act(
      params, catalogue, observation, excluded, key, 0.5
    ).slate.tolist()
    self.assertLen(set(slate) - {0, *excluded.tolist()}, toy.SLATE)
    if key is None:
      left = everything[1:-1]
      mixes = [
        [*left[: toy.SLATE - n], *left[len(left) - n :]]
        for n in range(toy.SLATE + 1)
      ]
      lack = self._logits_less_log_prob(params, catalogue, observation)
      chance = {i: 1 / (1 + np.exp(-x - lack)) for i, x in log_prob.items()}

      def expected(mix):
        return Reward(-0.1, sweet_point).expected(
          jnp.array([chance[i] for i in mix])
        )

      self.assertEqual(slate, max(mixes, key=expected))

  def _logits_less_log_prob(self, params, catalogue, observation):
    networks = _networks()
    state = networks.state(params, catalogue, observation)
    logits = networks.expected(params, catalogue, state).logits
    each = np.log(np.exp(np.asarray(logits, np.float64)).sum(-1))
    return each.sum() + float(params["policy"]["params"]["response_bias"])

  def _ranking(self, mode, params, catalogue, observation):
    """All items by log pi, each computed on its own with `taken`."""
    networks = _networks()
    state = networks.state(params, catalogue, observation)
    log_prob = {}
    for item in range(1, toy.ITEMS + 1):
      tokens = catalogue.index.tokens[item]
      if mode == "sampled":
        logits = networks.policy.apply(
          params["policy"],
          catalogue.codebooks,
          state,
          tokens,
          method="taken",
        ).logits
      else:
        logits = networks.expected(params, catalogue, state).logits
      logits = np.asarray(logits, np.float64)
      lost = np.asarray(catalogue.features[item]) - sum(
        np.asarray(catalogue.codebooks[l, tokens[l]]) for l in range(2)
      )
      maps = params["policy"]["params"]
      log_prob[item] = sum(
        logits[l, tokens[l]] - np.log(np.exp(logits[l]).sum()) for l in range(2)
      ) + float(
        lost @ maps["meaning_map"]["kernel"] @ state
        + (lost @ maps["bias_map"]["kernel"])[0]
      )
    return sorted(log_prob, key=lambda i: -log_prob[i]), log_prob

  @parameterized.parameters(
    ("expected", 41), ("expected", toy.ITEMS), ("sampled", 41)
  )
  def test_sampled_slates_are_distinct_and_vary(self, mode, search_from):
    self.enter_context(mock.patch.object(hsrl, "SEARCH_FROM", search_from))
    agent, params, catalogue, observation = _made(residual_mode=mode, beams=8)
    act = jax.jit(
      jax.vmap(
        lambda key: agent.act(
          params, catalogue, observation, jnp.array([5]), key, 1.0
        )[0]
      )
    )
    slates = np.asarray(act(jax.random.split(jax.random.key(0), 200)))
    for slate in slates:
      self.assertLen(set(slate.tolist()), toy.SLATE)
    self.assertNotIn(5, slates)
    self.assertGreater(slates.min(), 0)
    self.assertGreater(len(set(map(tuple, slates.tolist()))), 50)

  def test_first_item_follows_pi_at_the_temperature(self):
    agent, params, catalogue, observation = _made()
    _, log_prob = self._ranking("expected", params, catalogue, observation)
    temperature = 0.5
    log_pi = np.array([log_prob[i + 1] for i in range(toy.ITEMS)])
    weights = np.exp(log_pi / temperature)
    want = weights / weights.sum()
    keys = jax.random.split(jax.random.key(3), 20_000)
    first = jax.jit(
      jax.vmap(
        lambda key: agent.act(
          params, catalogue, observation, NOTHING, key, temperature
        )[0][0]
      )
    )(keys)
    counts = np.bincount(np.asarray(first), minlength=toy.ITEMS + 1)
    got = counts[1:] / len(keys)
    self.assertLess(0.5 * np.abs(got - want).sum(), 0.03)

  @parameterized.parameters(
    ("expected", toy.ITEMS, True),
    ("expected", toy.ITEMS + 1, False),
    ("sampled", toy.ITEMS + 1, True),
  )
  def test_a_large_catalogue_is_searched(self, mode, search_from, searched):
    agent, params, catalogue, observation = _made(residual_mode=mode)
    with (
      mock.patch.object(hsrl, "SEARCH_FROM", search_from),
      mock.patch.object(
        hsrl, "beam_search", side_effect=hsrl.beam_search
      ) as search,
    ):
      agent.act(params, catalogue, observation, NOTHING, None, 1.0)
      self.assertEqual(search.called, searched)
      words = policy.acting(toy.config(residual_mode=mode), catalogue.index)
    self.assertEqual("beam search" in words, searched)
    self.assertIn("40 items", words)


class LossTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, True),
    (dict(behaviour_weight=0.0, actor_weight=0.0), False),
    (dict(entropy_weight=0.0, entropy_weight_end=0.0), True),
  )
  def test_which_parts_learn(self, overrides, policy_learns):
    gradient, target_gradient = self._gradients(**overrides)
    self.assertEqual(
      max(float(jnp.abs(x).max()) for x in jax.tree.leaves(target_gradient)),
      0.0,
    )
    weights = gradient["critic"]["params"]["level_weight"]
    self.assertGreater(float(jnp.abs(weights).max()), 1e-6)
    bias = gradient["policy"]["params"]["response_bias"]
    self.assertEqual(bool(jnp.abs(bias) > 1e-6), policy_learns)

  @parameterized.parameters(True, False)
  def test_the_value_of_levels_moves_the_policy(self, level_critics):
    gradient, _ = self._gradients(
      behaviour_weight=0.0,
      actor_weight=0.0,
      level_critics=level_critics,
      critic_gradient=True,
    )
    kernel = gradient["critic"]["params"]["value"]["Dense_0"]["kernel"]
    self.assertLen(kernel, toy.SPEC.levels + 1 if level_critics else 1)
    moved = jnp.abs(gradient["policy"]["params"]["embedding"]).max() > 1e-6
    self.assertEqual(bool(moved), level_critics)

  def test_the_critic_only_looks(self):
    gradient, _ = self._gradients(behaviour_weight=0.0, actor_weight=0.0)
    for part in ("encoder", "policy"):
      moved = max(
        float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient[part])
      )
      self.assertEqual(moved, 0.0)
    moved = jax.tree.leaves(gradient["critic"])
    self.assertGreater(max(float(jnp.abs(x).max()) for x in moved), 1e-6)

  def _gradients(self, **overrides):
    """Of the loss by parameters and by target parameters."""
    agent, params, catalogue, observation = _made(dropout=0.0, **overrides)
    transition = Transition(
      observation,
      jnp.array([1, 2, 3]),
      jnp.full(3, -3.0),
      jnp.array([1.0, 0.0, 1.0]),
      jnp.float32(0.6),
      jnp.float32(0.0),
      jnp.zeros(0),
      observation.history,
    )

    def loss(params, target):
      return agent.loss(
        params, target, catalogue, transition, jax.random.key(0), 0.5
      )[0]

    return jax.grad(loss, argnums=(0, 1))(params, params)

  def test_next_value_counts_unless_the_user_left(self):
    agent, params, catalogue, observation = _made(dropout=0.0)
    base = Transition(
      observation,
      jnp.array([1, 2, 3]),
      jnp.zeros(3),
      jnp.array([1.0, 0.0, 1.0]),
      jnp.float32(0.6),
      jnp.float32(0.0),
      jnp.zeros(0),
      observation.history,
    )

    def advantage(transition):
      _, metrics = agent.loss(
        params, params, catalogue, transition, jax.random.key(0), 0.5
      )
      return metrics["advantage"], metrics["value"]

    going_on, value = advantage(base)
    left, _ = advantage(base._replace(terminated=jnp.float32(1.0)))
    np.testing.assert_allclose(left, 0.6 - value, rtol=1e-4)
    np.testing.assert_allclose(going_on, 0.6 + 0.9 * value - value, rtol=1e-4)


if __name__ == "__main__":
  absltest.main()
