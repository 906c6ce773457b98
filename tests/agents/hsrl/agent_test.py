"""HSRL's losses by hand, and how it acts against the exact distribution."""

import dataclasses
import itertools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from hsrl_jax import agents, sid
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.sim.reward import Reward
from hsrl_jax.stages import policy
from tests import toy
from tests.agents import checks
from tests.agents.hsrl import reference

SEARCHED = hsrl.SEARCH_FROM  # Items in training: from here on it searches.
BANNED = [7, 19]
COUNT = 4  # Items of a composed slate.


def _places(weights):
  """Of a draw of three without replacement: who is at each place, [3, N + 1].

  Every sequence of three items is enumerated.
  """
  p = weights / weights.sum()
  left = 1.0 - p[:, None] - p[None]  # After two.
  two = p[:, None] * p[None] / (1.0 - p[:, None])
  np.fill_diagonal(two, 0.0)
  three = two[..., None] * p / np.maximum(left, 1e-12)[..., None]
  same = np.arange(len(p))
  three[same, :, same] = three[:, same, same] = 0.0
  return np.stack([p, two.sum(0), three.sum((0, 1))])


class ActTest(parameterized.TestCase):
  @parameterized.parameters(
    (toy.ITEMS, {}),
    (SEARCHED, {}),
    (SEARCHED, {"beams": 8}),
  )
  def test_a_sample_follows_the_tempered_policy(self, items, values):
    """A search with beams for all items draws exactly; few are near it."""
    made = checks.made("hsrl", items, importance_clip=1.0, **values)
    temperature, log_pi = 2.0, reference.log_pi(made)
    log_pi[BANNED] = -np.inf
    acted = checks.sample(made, BANNED, temperature)
    slates = np.asarray(acted.slate)
    want = _places(special.softmax(log_pi / temperature))
    self.assertLess(want.max(), 0.5)
    for place in range(toy.SLATE):
      counts = np.bincount(slates[:, place], minlength=toy.ITEMS + 1)
      distance = 0.5 * np.abs(counts / len(slates) - want[place]).sum()
      self.assertLess(distance, 0.03)
    # pi / mu of what was drawn, both over the items that could be.
    shown = slates[:50]
    pi, mu = special.softmax(log_pi), special.softmax(log_pi / temperature)
    ratio = np.exp(log_pi[shown] - np.asarray(acted.log_prob[:50]))
    if "beams" not in values:
      np.testing.assert_allclose(ratio, pi[shown] / mu[shown], rtol=1e-3)

  @parameterized.parameters(
    (toy.ITEMS, 0.1, None),
    (SEARCHED, 0.9, None),
    (SEARCHED, 0.9, 7),
  )
  def test_with_a_sweet_point_the_best_mix_is_shown(
    self, items, sweet_point, seed
  ):
    made = checks.made("hsrl", items)
    simulator = dataclasses.replace(
      made.config.simulator, sweet_point=sweet_point
    )
    config = dataclasses.replace(made.config, simulator=simulator)
    agent = agents.make_agent(config, toy.SLATE, items)
    log_pi = reference.log_pi(made)
    order = (1 + np.argsort(-log_pi[1:])).tolist()
    excluded = [order[0], order[-1]]
    act = jax.jit(agent.act, static_argnums=4 if seed is None else ())
    key = None if seed is None else jax.random.key(seed)
    slate = act(
      made.params,
      made.catalogue,
      made.observation,
      jnp.array(excluded),
      key,
      0.5,
    ).slate.tolist()
    self.assertLen(set(slate) - {0, *excluded}, toy.SLATE)
    if seed is not None:
      return
    left = order[1:-1]
    mixes = [
      [*left[: toy.SLATE - n], *left[len(left) - n :]]
      for n in range(toy.SLATE + 1)
    ]
    state = checks.state(made.params, made.catalogue, made.observation)
    logits = reference.levels(made.params, made.catalogue, state).logits
    bias = float(made.params["policy"]["params"]["response_bias"])
    offset = special.logsumexp(logits, axis=1).sum() + bias
    chance = special.expit(log_pi + offset)
    self.assertEqual(
      slate,
      max(
        mixes,
        key=lambda mix: float(
          Reward(-0.1, sweet_point).expected(jnp.asarray(chance[mix]))
        ),
      ),
    )

  def test_with_room_for_more_items_it_acts_as_in_training(self):
    """An export has more room; the way of acting is that of the training."""
    made = checks.made("hsrl")
    with mock.patch.object(hsrl, "SEARCH_FROM", toy.ITEMS + 1):
      agent = agents.make_agent(made.config, toy.SLATE, toy.ITEMS)
      index = sid.build_index(
        made.catalogue.index.sids[1:], 8, capacity=toy.ITEMS + 8
      )
      features = jnp.pad(made.catalogue.features, ((0, 8), (0, 0)))
      larger = made.catalogue._replace(index=index, features=features)
      with mock.patch.object(hsrl, "beam_search") as search:
        action = jax.eval_shape(
          lambda: agent.act(
            made.params, larger, made.observation, checks.NOTHING, None, 1.0
          )
        )
    search.assert_not_called()
    self.assertEqual(action.slate.shape, (toy.SLATE,))
    self.assertEqual(policy.acting(agent, index), "each of 40 items is scored")
    searching = agents.make_agent(made.config, toy.SLATE, SEARCHED)
    self.assertEqual(
      policy.acting(searching, index), "beam search, 50 beams, 40 items"
    )


class LossTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(actor_weight=0.5, entropy_weight=0.3, entropy_weight_end=0.1),
    dict(
      without=("level_critics",),
      actor_weight=1.0,
      behaviour_weight=0.5,
      importance_clip=1.5,
      entropy_weight=0.2,
      entropy_weight_end=0.05,
    ),
    dict(
      without=("semantic_tokens",),
      importance_clip=1.5,
      actor_weight=0.3,
      entropy_weight=0.1,
      entropy_weight_end=0.1,
    ),
    dict(
      recipe="logs",
      importance_clip=1.5,
      actor_weight=0.5,
      entropy_weight=0.3,
      entropy_weight_end=0.1,
    ),
  )
  def test_by_hand(self, **values):
    made = checks.made("hsrl", **values)
    config, _, params, catalogue, observation = made
    settings = config.settings
    other = jax.tree.map(lambda x: 0.9 * x, params)
    step = checks.transition(observation)

    state = checks.state(params, catalogue, observation)
    levels = reference.levels(params, catalogue, state)
    value, _ = reference.value(params, levels.contexts)
    next_state = checks.state(other, catalogue, step.next_observation)
    next_value, _ = reference.value(
      other, reference.levels(other, catalogue, next_state).contexts
    )
    y = 0.6 + 0.9 * next_value
    advantages = np.clip(y - value, -1, 1) * np.ones((3, 2))
    advantages += np.array([[1.1], [-2.2], [1.1]]) / 3

    log_prob, scores, entropies = np.zeros((3, 2)), np.zeros(3), []
    for k, item in enumerate((1, 2, 3)):
      tokens = catalogue.index.sids[item]
      logits = levels.logits
      log_p = special.log_softmax(logits, axis=1)
      log_prob[k] = [log_p[l, t] for l, t in enumerate(tokens)]
      scores[k] = sum(logits[l, t] for l, t in enumerate(tokens))
      entropies.append(special.entr(np.exp(log_p)).sum())
    refined = np.zeros(3)
    if settings.item_residual:
      refined = np.array(
        [reference.residual(params, catalogue, state, i) for i in (1, 2, 3)]
      )
    if settings.importance_clip:
      ratio = np.array([2.7, 0.6, 1.2])
      stored = log_prob.sum(1) + refined - np.log(ratio)
      if config.train.from_logs:  # Of logged items propensities are known.
        stored -= special.logsumexp(reference.log_pi(made))
      step = step._replace(log_prob=jnp.asarray(stored, jnp.float32))
      advantages *= np.minimum(ratio, settings.importance_clip)[:, None]
    actor = -(advantages * log_prob).sum(1).mean()
    entropy = np.mean(entropies)
    bias = float(params["policy"]["params"]["response_bias"])
    p = special.expit(scores + refined + bias)
    behaviour = -np.log([p[0], 1 - p[1], p[2]]).mean()
    beta = np.sqrt(settings.entropy_weight * settings.entropy_weight_end)
    want = (
      (value - y) ** 2
      + settings.actor_weight * (actor - beta * entropy)
      + settings.behaviour_weight * behaviour
    )

    loss, metrics = checks.losses(made, other, step)
    for name, x in (
      ("value", value),
      ("critic_loss", (value - y) ** 2),
      ("actor_loss", actor),
      ("entropy", entropy),
      ("behaviour_loss", behaviour),
    ):
      np.testing.assert_allclose(metrics[name], x, rtol=1e-3, err_msg=name)
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    # Each part counts in the sum by more than that: signs would show.
    for part in (actor, beta * entropy):
      self.assertGreater(abs(settings.actor_weight * part), 1e-3 * abs(want))

  def test_values_move_the_critic_alone(self):
    made = checks.made("hsrl", behaviour_weight=0.0, actor_weight=0.0)
    step = checks.transition(made.observation)
    gradient = jax.jit(
      jax.grad(
        lambda params: made.agent.loss(
          params, params, made.catalogue, step, checks.KEY, 0.5
        )[0]
      )
    )(made.params)
    weights = gradient["critic"]["params"]["level_weight"]
    self.assertGreater(float(jnp.abs(weights).max()), 1e-6)
    chex.assert_trees_all_equal(
      gradient["policy"], jax.tree.map(jnp.zeros_like, gradient["policy"])
    )


def _expected(chances, point):
  total = 0.0
  for response in itertools.product((0, 1), repeat=COUNT):
    hit = np.array(response) == 1
    mean = np.where(hit, 1, -0.1).mean()
    chance = np.where(hit, chances, 1 - chances).prod()
    total += chance * (1 - abs(mean - point))
  return total


class ComposeTest(parameterized.TestCase):
  @parameterized.product(point=[0.1, 0.5, 0.7, 0.9], seed=[0, 1, 2])
  def test_is_the_best_mix(self, point, seed):
    logits = np.sort(3 * np.random.default_rng(seed).normal(size=2 * COUNT))
    best, worst = logits[::-1][:COUNT], logits[:COUNT]
    chances = 1 / (1 + np.exp(-np.concatenate([best, worst])))
    mixes = [
      [*range(COUNT - n), *range(COUNT + n - 1, COUNT - 1, -1)]
      for n in range(COUNT + 1)
    ]
    want = max(mixes, key=lambda mix: _expected(chances[mix], point))
    found = hsrl.compose_slate(
      jnp.asarray(best), jnp.asarray(worst), Reward(-0.1, point)
    )
    self.assertEqual(found.tolist(), want)

  def test_sure_hits_leave_room_for_one_sure_miss(self):
    found = hsrl.compose_slate(
      jnp.full(9, 20.0), jnp.full(9, -20.0), Reward(-0.1, 0.9)
    )
    self.assertEqual(found.tolist(), [*range(8), 9])


if __name__ == "__main__":
  absltest.main()
