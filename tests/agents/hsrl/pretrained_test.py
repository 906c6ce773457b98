"""HSRL that continues from a policy of the next item: what each loss does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from hsrl_jax import agents
from hsrl_jax.agents import next_item
from hsrl_jax.agents.hsrl import pretrained
from hsrl_jax.config import NextItemConfig
from hsrl_jax.types import Observation
from tests import toy
from tests.agents import checks

LOSSES = ("actor_loss", "behaviour_loss", "critic_loss", "kl")


@functools.cache
def _made(item_weight=0.0):
  config = toy.config("hsrl", dropout=0.0, item_credit=False, kl_weight=1.0)
  config = dataclasses.replace(
    config,
    supervised=True,
    next_item=NextItemConfig(
      history=toy.HISTORY,
      hidden=8,
      beams=toy.ITEMS,
      token_dropout=0.0,
      item_weight=item_weight,
    ),
  )
  agent, users = toy.agent(config), toy.users()
  observation = Observation(users.profiles[3], users.histories[3])
  params = checks.random_params(agent, observation, 1)
  params["response_weight"] = jnp.float32(1.5)
  return checks.Made(config, agent, params, checks.catalogue(), observation)


@functools.cache
def _policy(item_weight=0.0):
  """The supervised policy, and its log pi and its scores of all items."""
  made = _made(item_weight)
  policy = next_item.policy(made.config, toy.SLATE, toy.ITEMS)

  @jax.jit
  def of_all(params):
    items = jnp.arange(toy.ITEMS + 1)
    given = (params, made.catalogue, made.observation)
    scores = policy.score(*given, items)
    response = policy.response(*given, items)
    return scores - response, scores

  return of_all


def _values_and_gradients(params, step):
  made = _made()
  return _compiled()(params, made.params, made.catalogue, step)


@functools.cache
def _compiled():
  agent = _made().agent

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
  @parameterized.parameters(0.0, 0.5)
  def test_acts_as_the_supervised_policy(self, item_weight):
    made = _made(item_weight)
    _, scores = _policy(item_weight)(made.params)
    banned = jnp.array([int(np.argmax(scores[1:])) + 1, 0])
    action = jax.jit(made.agent.act)(
      made.params, made.catalogue, made.observation, banned, None, 1.0
    )
    scores = np.array(scores)
    scores[[0, banned[0]]] = -np.inf
    self.assertEqual(
      action.slate.tolist(), np.argsort(-scores)[: toy.SLATE].tolist()
    )

  def test_losses_by_their_definitions(self):
    made, step = _made(), _step()
    values, _, metrics = _values_and_gradients(made.params, step)
    log_pi = np.asarray(_policy()(made.params)[0], np.float64)
    # Constrained: the probabilities of the catalogue sum to one.
    np.testing.assert_allclose(np.exp(log_pi[1:]).sum(), 1.0, atol=1e-4)
    own = log_pi[np.asarray(step.slate)]
    self.assertAlmostEqual(float(values["actor_loss"]), -own.mean(), places=4)
    liked = np.asarray(step.response)
    np.testing.assert_allclose(
      values["behaviour_loss"], -(liked * own).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
      values["critic_loss"], metrics["advantage"] ** 2, rtol=1e-5
    )
    self.assertGreater(float(metrics["advantage"]), 1.0)

  @parameterized.parameters(50.0, -50.0)
  def test_a_slate_with_an_advantage_becomes_more_likely(self, reward):
    made, step = _made(), _step(reward)
    _, grads, _ = _values_and_gradients(made.params, step)
    before, after = (
      np.asarray(_policy()(params)[0])[np.asarray(step.slate)].mean()
      for params in (
        made.params,
        _moved(made.params, grads["actor_loss"], 1e-3),
      )
    )
    self.assertEqual(after > before, reward > 0)
    # By as much as the gradient says.
    expected = 1e-3 * float(
      sum((g**2).sum() for g in jax.tree.leaves(grads["actor_loss"]["model"]))
    )
    np.testing.assert_allclose(abs(after - before), expected, rtol=0.1)

  def test_each_loss_moves_its_own_parameters(self):
    _, grads, _ = _values_and_gradients(_made().params, _step())
    for name, moved in (
      ("actor_loss", "model"),
      ("behaviour_loss", "model"),
      ("kl", "model"),
      ("critic_loss", "critic"),
    ):
      changed = {x for x, own in grads[name].items() if _norm(own)}
      self.assertEqual(changed, {moved}, name)

  def test_the_divergence_pulls_back(self):
    made, step = _made(), _step()
    start = made.params | {"start": made.params["model"]}
    values, grads, _ = _values_and_gradients(start, step)
    self.assertEqual(float(values["kl"]), 0.0)
    self.assertLess(_norm(grads["kl"]), 1e-3)
    values, grads, _ = _values_and_gradients(made.params, step)
    self.assertGreater(float(values["kl"]), 0.1)
    back = _moved(made.params, grads["kl"], 1e-3)
    nearer, _, _ = _values_and_gradients(back, step)
    self.assertLess(float(nearer["kl"]), float(values["kl"]))

  def test_divergence_by_scipy(self):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), (2, 3, 2))  # [K = 3, L = 2, V = 5].
    tokens = jnp.array([[0, 1], [2, 3], [-1, -1]])  # The last has no SID.
    expected = stats.entropy(p, q, axis=-1)[:2].sum() / 3
    found = pretrained.divergence(jnp.log(p), jnp.log(q), tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

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

  def test_settings_that_are_read(self):
    config = _made().config
    self.assertIn("residual_mode", agents.unread(config))
    self.assertNotIn("actor_weight", agents.unread(config))
    self.assertNotIn("kl_weight", agents.unread(config))
    plain = dataclasses.replace(config, supervised=False)
    self.assertEqual(agents.unread(plain), {"kl_weight"})
    self.assertEmpty(agents.unread(toy.config("a2c")))


if __name__ == "__main__":
  absltest.main()
