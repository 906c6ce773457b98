"""HSRL that continues from a policy of the next item: what each loss does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from scipy import special, stats

from hsrl_jax import agents
from hsrl_jax.agents import next_item
from hsrl_jax.agents.hsrl import pretrained
from hsrl_jax.config import NextItemConfig
from hsrl_jax.types import Observation
from tests import toy
from tests.agents import checks

WEIGHT = 0.5  # Of the cross-entropy over all items.
LOSSES = ("actor_loss", "behaviour_loss", "critic_loss", "kl")


@functools.cache
def _made(item_weight=WEIGHT, token_weight=1.0, **values):
  values = {"dropout": 0.0, "item_credit": False, "kl_weight": 1.0} | values
  config = toy.config("hsrl", recipe="next_item,replay", **values)
  config = dataclasses.replace(
    config,
    next_item=NextItemConfig(
      width=8,
      dropout=0.0,
      history=toy.HISTORY,
      hidden=8,
      beams=toy.ITEMS,
      token_dropout=0.0,
      token_weight=token_weight,
      item_weight=item_weight,
      interactions=3,
    ),
  )
  agent, users = toy.agent(config), toy.users()
  observation = Observation(users.profiles[3], users.histories[3])
  params = checks.random_params(agent, observation, 1)
  params["response_weight"] = jnp.float32(1.5)
  return checks.Made(config, agent, params, checks.catalogue(), observation)


@functools.cache
def _policy(item_weight=WEIGHT, token_weight=1.0):
  """The supervised policy's log pi of all items, in two parts, and scores."""
  made = _made(item_weight, token_weight)
  policy = next_item.policy(made.config, toy.SLATE, toy.ITEMS)

  @jax.jit
  def of_all(params):
    items = jnp.arange(toy.ITEMS + 1)
    given = (params, made.catalogue, made.observation)
    scores = policy.score(*given, items)
    log_pi = scores - policy.response(*given, items)
    of_items = policy.model.item_score(
      params["model"],
      policy.catalogue(params, made.catalogue),
      policy.state(*given),
      items,
    )
    return log_pi - of_items, of_items, scores

  def parts(params):
    tokens, of_items, scores = of_all(params)
    of_items = np.asarray(of_items, np.float64)
    of_items -= special.logsumexp(of_items[1:])
    if not item_weight:
      of_items = np.zeros_like(of_items)
    return np.asarray(tokens, np.float64), of_items, np.array(scores)

  return parts


def _values_and_gradients(params, step, item_weight=WEIGHT, token_weight=1.0):
  made = _made(item_weight, token_weight)
  losses = _compiled(item_weight, token_weight)
  return losses(params, made.params, made.catalogue, step)


@functools.cache
def _compiled(item_weight, token_weight):
  agent = _made(item_weight, token_weight).agent

  def losses(params, other, catalogue, step):
    _, metrics = agent.loss(params, other, catalogue, step, checks.KEY, 0.5)
    values = jnp.stack([metrics[name] for name in LOSSES])
    return values, (values, metrics)

  def both(*args):
    grads, (values, metrics) = jax.jacrev(losses, has_aux=True)(*args)
    by_loss = {
      name: jax.tree.map(lambda x, i=i: x[i], grads)
      for i, name in enumerate(LOSSES)
    }
    return dict(zip(LOSSES, values, strict=True)), by_loss, metrics

  return jax.jit(both)


def _step(reward=50.0):
  """A replayed slate; of a large reward the advantage is 1 or -1."""
  return checks.transition(_made().observation, reward=jnp.float32(reward))


def _moved(params, grads, rate):
  return jax.tree.map(lambda x, g: x - rate * g, params, grads)


def _norm(grads):
  return float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(grads)))


class PretrainedTest(parameterized.TestCase):
  def test_acts_as_the_supervised_policy(self):
    made = _made()
    *_, scores = _policy()(made.params)
    banned = jnp.array([int(np.argmax(scores[1:])) + 1, 0])
    action = jax.jit(made.agent.act)(
      made.params, made.catalogue, made.observation, banned, None, 1.0
    )
    scores[[0, banned[0]]] = -np.inf
    self.assertEqual(
      action.slate.tolist(), np.argsort(-scores)[: toy.SLATE].tolist()
    )

  def test_losses_by_their_definitions(self):
    self._check_losses(WEIGHT, 1.0)

  @pytest.mark.slow
  def test_losses_with_another_weight_of_tokens(self):
    self._check_losses(WEIGHT, 0.7)

  @pytest.mark.slow
  def test_losses_of_tokens_alone(self):
    self._check_losses(0.0, 1.0)

  def test_losses_of_the_flat_twin(self):
    self._check_losses(WEIGHT, 0.0)
    step = _step()
    made = _made(WEIGHT, 0.0)
    _, _, metrics = _values_and_gradients(made.params, step, WEIGHT, 0.0)
    log_probs = _policy(WEIGHT, 0.0)(made.params)[1][1:]
    self.assertAlmostEqual(
      float(metrics["entropy"]), stats.entropy(np.exp(log_probs)), places=4
    )
    before = _policy(WEIGHT, 0.0)(
      made.params | {"model": made.params["start"]}
    )[1][1:]
    self.assertAlmostEqual(
      float(metrics["kl"]),
      stats.entropy(np.exp(log_probs), np.exp(before)),
      places=3,
    )

  def _check_losses(self, *weights):
    item_weight, token_weight = weights
    made, step = _made(*weights), _step()
    values, _, metrics = _values_and_gradients(made.params, step, *weights)
    tokens, of_items, _ = _policy(*weights)(made.params)
    if token_weight:
      # Constrained: the probabilities of the catalogue sum to one.
      np.testing.assert_allclose(np.exp(tokens[1:]).sum(), 1.0, atol=1e-4)
    slate, liked = np.asarray(step.slate), np.asarray(step.response)
    np.testing.assert_allclose(
      values["actor_loss"], -(tokens + of_items)[slate].mean(), rtol=1e-5
    )
    own = (token_weight * tokens + item_weight * of_items)[slate]
    np.testing.assert_allclose(
      values["behaviour_loss"], -(liked * own).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
      values["critic_loss"], metrics["advantage"] ** 2, rtol=1e-5
    )
    self.assertGreater(float(metrics["advantage"]), 1.0)

  @parameterized.parameters(50.0, -50.0)
  @pytest.mark.slow
  def test_a_slate_with_an_advantage_becomes_more_likely(self, reward):
    made, step = _made(), _step(reward)
    _, grads, _ = _values_and_gradients(made.params, step)
    moved = _moved(made.params, grads["actor_loss"], 1e-4)
    before, after = (
      sum(_policy()(params)[:2])[np.asarray(step.slate)].mean()
      for params in (made.params, moved)
    )
    self.assertEqual(after > before, reward > 0)
    # By as much as the gradient says.
    expected = 1e-4 * float(
      sum((g**2).sum() for g in jax.tree.leaves(grads["actor_loss"]["model"]))
    )
    np.testing.assert_allclose(abs(after - before), expected, rtol=0.1)

  @pytest.mark.slow
  def test_what_is_drawn_by_the_policy_has_weight_one(self):
    losses = []
    for clip in (0.0, 100.0):
      made = _made(importance_clip=clip, kl_weight=0.0)
      drawn = jax.jit(made.agent.act)(
        made.params,
        made.catalogue,
        made.observation,
        jnp.zeros(1, jnp.int32),
        jax.random.key(3),
        1.0,
      )
      step = _step()._replace(slate=drawn.slate, log_prob=drawn.log_prob)
      _, metrics = checks.losses(made, made.params, step)
      losses.append(float(metrics["actor_loss"]))
    np.testing.assert_allclose(*losses, rtol=1e-3)

  @pytest.mark.slow
  def test_each_loss_moves_its_own_parameters(self):
    _, grads, _ = _values_and_gradients(_made().params, _step())
    for name, moved in (
      ("actor_loss", "model"),
      ("behaviour_loss", "model"),
      ("kl", "model"),
      ("critic_loss", "critic"),
    ):
      changed = {x for x, own in grads[name].items() if _norm(own)}
      self.assertNotIn("start", changed)
      changed -= {*pretrained.FROZEN}  # By the engine.
      self.assertEqual(changed, {moved}, name)

  def test_the_divergence_pulls_back(self):
    made, step = _made(), _step()
    start = made.params | {"start": made.params["model"]}
    values, grads, _ = _values_and_gradients(start, step)
    self.assertEqual(float(values["kl"]), 0.0)
    self.assertLess(_norm(grads["kl"]), 1e-2)
    values, grads, _ = _values_and_gradients(made.params, step)
    self.assertGreater(float(values["kl"]), 0.1)
    back = _moved(made.params, grads["kl"], 1e-4)
    nearer, _, _ = _values_and_gradients(back, step)
    self.assertLess(float(nearer["kl"]), float(values["kl"]))

  def test_divergence_by_scipy(self):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), (2, 3, 2))  # [K = 3, L = 2, V = 5].
    tokens = jnp.array([[0, 1], [2, 3], [-1, -1]])  # The last has no SID.
    expected = stats.entropy(p, q, axis=-1)[:2].sum() / 3
    found = pretrained.divergence(jnp.log(p), jnp.log(q), tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  @pytest.mark.slow
  def test_the_engine_leaves_frozen_parameters_untouched(self):
    agent = agents.base.Agent(
      init=lambda key, catalogue, observation: {
        "own": jnp.full(3, 0.7),
        "start": jnp.array([0.1, 0.2, 0.3]),
        "other": jnp.float32(1.1),
      },
      act=lambda *_: agents.base.Action(
        jnp.arange(1, toy.SLATE + 1), jnp.zeros(toy.SLATE), jnp.zeros(0)
      ),
      # Nobody stops the gradients of this one.
      loss=lambda params, *_: (
        ((params["own"] - params["start"]) ** 2).sum() * params["other"],
        {},
      ),
      frozen=("start", "other"),
    )
    config = toy.config("hsrl").train
    engine = toy.loop.make(agent, toy.env(), config)
    inputs = toy.inputs()
    learner, stream = jax.jit(engine.init)(0, inputs)
    run = jax.jit(engine.run)
    first = jax.tree.map(np.asarray, learner.params)
    for _ in range(3):
      learner, stream, _ = run(learner, stream, inputs)
    for params in (learner.params, learner.target_params):
      for name in agent.frozen:
        np.testing.assert_array_equal(params[name], first[name])
      self.assertGreater(np.abs(params["own"] - first["own"]).min(), 0)
    moments = [x.size for x in jax.tree.leaves(learner.opt_state) if x.ndim]
    self.assertEqual(set(moments), {3})


if __name__ == "__main__":
  absltest.main()
