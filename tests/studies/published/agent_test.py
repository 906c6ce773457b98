"""The published method: each piece beside NumPy, and what the engine does."""

import contextlib
import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from scipy import special

from hsrl_jax import agents, sid
from hsrl_jax.errors import InputError
from hsrl_jax.sid.index import sid_of
from hsrl_jax.studies.published import agent as published
from hsrl_jax.studies.published.networks import Critic
from tests import command, toy
from tests.agents import checks
from tests.studies.published import reference

NAME = "hsrl_published"
# Without dropout, which NumPy does not draw.
STILL = dict(critic_dropout=0.0, actor_tokens=12, entropy_bonus=0.3)


_REGISTERED = contextlib.ExitStack()


def setUpModule():
  _REGISTERED.enter_context(command.published())


def tearDownModule():
  _REGISTERED.close()


class AdamTest(absltest.TestCase):
  def test_weight_decay_is_a_part_of_the_gradient(self):
    rate, decay, (b1, b2) = 0.01, 0.3, (0.9, 0.999)
    rng = np.random.default_rng(0)
    start = rng.normal(size=4)
    optimizer = published.adam(rate, decay)
    params = {"x": jnp.asarray(start[:1]), "y": jnp.asarray(start[1:])}
    state = optimizer.init(params)
    x, m, v = start.copy(), np.zeros(4), np.zeros(4)
    for step in range(1, 6):
      gradient = rng.normal(size=4)
      grads = {"x": jnp.asarray(gradient[:1]), "y": jnp.asarray(gradient[1:])}
      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      gradient = gradient + decay * x
      m = b1 * m + (1 - b1) * gradient
      v = b2 * v + (1 - b2) * gradient**2
      x = x - rate * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + 1e-8)
      np.testing.assert_allclose(
        np.concatenate([params["x"], params["y"]]), x, rtol=1e-5
      )


class CriticTest(absltest.TestCase):
  def test_it_is_normalised_by_the_batch_as_flax_does_it(self):
    critic = Critic((6,), 0.0)
    contexts = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 4)))
    params = jax.tree.map(
      lambda x: x + 0.1, critic.init(jax.random.key(0), contexts)
    )
    own = params["params"]
    hidden = nn.relu(nn.Dense(6).apply({"params": own["hidden_0"]}, contexts))
    # Features are the last axis; the statistics are of all 15 contexts.
    hidden, _ = nn.BatchNorm(use_running_average=False).apply(
      {"params": own["norm_0"]}, hidden, mutable=["batch_stats"]
    )
    expected = nn.Dense(1).apply({"params": own["out"]}, hidden)[..., 0]
    got = critic.apply(params, contexts)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)

  def test_dropout_is_of_each_context(self):
    critic = Critic((64,), 0.25)
    contexts = jnp.ones((8, 3, 4))
    keys = jax.random.split(jax.random.key(1), 8)
    params = critic.init(jax.random.key(0), contexts)
    got = critic.apply(params, contexts, keys)
    self.assertLen(np.unique(got), got.size)


def _batch(rows=3, per_user=2):
  """Transitions [rows, per_user, ...] that differ, and their keys."""
  rng = np.random.default_rng(5)
  users, shape = toy.users(), (rows, per_user)
  user = rng.integers(0, toy.USERS, shape)
  one = checks.transition(checks.made(NAME).observation)
  slates = [rng.permutation(toy.ITEMS)[:3] + 1 for _ in range(rows * per_user)]
  histories = rng.integers(0, toy.ITEMS + 1, (*shape, toy.HISTORY))
  batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), one)
  batch = batch._replace(
    observation=one.observation._replace(
      profile=users.profiles[user], history=users.histories[user]
    ),
    slate=jnp.asarray(np.reshape(slates, (*shape, 3)), jnp.int32),
    response=jnp.asarray(rng.integers(0, 2, (*shape, 3)), jnp.float32),
    reward=jnp.asarray(rng.normal(size=shape), jnp.float32),
    terminated=jnp.asarray(rng.integers(0, 2, shape), jnp.float32),
    next_history=jnp.asarray(histories, jnp.int32),
  )
  keys = jax.random.split(jax.random.key(2), rows * per_user).reshape(shape)
  return batch, keys


RATES = dict(actor_rate=1e-3, critic_rate=1e-2, behaviour_rate=1e-4)


def _parts(made):
  """What the functions of the module take, of the batch flattened."""
  batch, keys = _batch()
  method = made.agent.learning.step.args[0]
  flat = jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), batch)
  keys = jnp.stack([keys.reshape(6)] * 2)
  return method, flat, keys


class _Step:
  """One step in NumPy, up to the gradients."""

  def __init__(self, made, batch, inverted=False):
    flat = jax.tree.map(
      lambda x: (
        np.asarray(x).reshape(-1, *x.shape[2:]) if x.size else np.zeros((6, 0))
      ),
      batch,
    )
    params, features = made.params, made.catalogue.features

    def views(actor, histories):
      found = [reference.view(actor, features, row) for row in histories]
      return [np.stack(x) for x in zip(*found, strict=True)]

    _, ahead = views(params["target_actor"], flat.next_history)
    following = reference.values(params["target_critic"], ahead).mean(-1)
    mask = flat.terminated if inverted else 1 - flat.terminated
    self.target = flat.reward + 0.9 * mask * following
    logits, contexts = views(params["actor"], flat.observation.history)
    self.value = reference.values(params["critic"], contexts).mean(-1)
    self.advantage = np.clip(self.target - self.value, -1, 1)
    probs = special.softmax(logits, -1)
    self.entropy = -(probs * np.log(probs)).sum((-1, -2)).mean()
    self.chosen = self.slate_probs(made, flat.slate, probs)
    self.response = flat.response

  @staticmethod
  def slate_probs(made, slates, probs):
    """pi of each item of each slate, one after another."""
    tokens = made.catalogue.index.sids
    return np.array(
      [
        [np.prod([p[l, z] for l, z in enumerate(tokens[i])]) for i in slate]
        for slate, p in zip(slates, probs, strict=True)
      ]
    )


class StepTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_losses_are_those_of_the_formulas(self):
    made = checks.made(NAME, **STILL)
    method, flat, keys = _parts(made)
    trained = {x: made.params[x] for x in ("actor", "critic")}
    where = (made.catalogue, flat)
    target = published._target(method, made.params, *where, keys, None)
    tokens = sid_of(made.catalogue.index, flat.slate)
    _, metrics = published._losses(
      method, trained, *where, tokens, target, keys, None
    )
    case = _Step(made, _batch()[0])
    negative = -np.log(case.chosen).mean(-1)
    expected = {
      "critic_loss": ((case.value - case.target) ** 2).mean(),
      "actor_loss": (case.advantage * negative).mean(),
      "entropy": case.entropy,
      "value": case.value.mean(),
      "advantage": (case.target - case.value).mean(),
    }
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, rtol=2e-3, err_msg=name)

  def test_nothing_is_expected_of_who_left(self):
    """As in the paper; the first public version had it the other way round."""
    made = checks.made(NAME, **STILL)
    method, flat, keys = _parts(made)
    got = published._target(
      method, made.params, made.catalogue, flat, keys, None
    )
    right, wrong = (_Step(made, _batch()[0], x).target for x in (False, True))
    np.testing.assert_allclose(got, right, rtol=2e-3, atol=1e-4)
    self.assertGreater(np.abs(right - wrong).min(), 1e-2)

  def test_the_behaviour_loss_is_of_the_sigmoid_of_a_probability(self):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 2, 5))
    tokens = rng.integers(0, 5, (1, 4, 2))
    response = np.array([[1.0, 0.0, 0.0, 1.0]])
    probs = special.softmax(logits[0], -1)
    pi = np.array([probs[0, a] * probs[1, b] for a, b in tokens[0]])
    p = 1 / (1 + np.exp(-pi / pi.sum()))
    expected = -np.where(response[0] > 0, np.log(p), np.log(1 - p)).mean()
    got = published._behaviour_loss(
      published.Hierarchy(jnp.asarray(logits), None),
      jnp.asarray(tokens),
      jnp.asarray(response),
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)

  @pytest.mark.slow  # The whole step is compiled.
  def test_the_first_step_of_each_adam(self):
    """It moves each parameter by the rate, against the gradient's sign."""
    made, (batch, keys) = checks.made(NAME, **STILL, **RATES), _batch()
    learning = made.agent.learning
    params, _, metrics = jax.jit(learning.step, static_argnums=5)(
      made.params,
      learning.init(made.params),
      made.catalogue,
      batch,
      keys,
      None,
    )
    before = made.params
    moved = {
      name: np.concatenate(
        [
          np.ravel(x - y)
          for x, y in zip(
            jax.tree.leaves(params[name]),
            jax.tree.leaves(before[name]),
            strict=True,
          )
        ]
      )
      for name in before
    }
    # Biases that a norm or a softmax cancels have gradients of rounding.
    usual = np.quantile(np.abs(moved["critic"]), [0.3, 0.9])
    np.testing.assert_allclose(usual, 1e-2, rtol=1e-3)
    # The actor is moved twice: rates add or subtract.
    sizes = np.abs(moved["actor"])
    twice = np.isclose(sizes, 1.1e-3, rtol=1e-2).mean()
    less = np.isclose(sizes, 0.9e-3, rtol=1e-2).mean()
    self.assertGreater(twice + less, 0.8)
    self.assertGreater(min(twice, less), 0.1)
    self.assertIn("behaviour_loss", metrics)
    for name in ("actor", "critic"):
      expected = jax.tree.map(
        lambda target, new: target + 0.01 * (new - target),
        before[f"target_{name}"],
        params[name],
      )
      chex.assert_trees_all_close(
        params[f"target_{name}"], expected, rtol=1e-5, atol=1e-7
      )

  @pytest.mark.slow
  def test_the_critic_trains_no_encoder(self):
    """Where all advantages are cut to 0 and there is no bonus, none moves."""
    made = checks.made(
      NAME, **STILL | {"entropy_bonus": 0.0}, advantage_clip=1e-30
    )
    method, flat, keys = _parts(made)
    tokens = sid_of(made.catalogue.index, flat.slate)
    grads = jax.grad(
      lambda x: published._losses(
        method, x, made.catalogue, flat, tokens, jnp.arange(6.0), keys, None
      )[0]
    )({x: made.params[x] for x in ("actor", "critic")})
    largest = {x: float(optax.tree.norm(grads[x])) for x in grads}
    self.assertLess(largest["actor"], 1e-20)
    self.assertGreater(largest["critic"], 1e-3)


class ActTest(absltest.TestCase):
  def test_items_that_share_a_sid_share_their_probability(self):
    made = checks.made(NAME, **STILL)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 3, (toy.ITEMS, 2))  # 9 SIDs for 40 items.
    index = made.catalogue.index
    index = dataclasses.replace(
      index,
      tokens=tuple(
        x.at[1:].set(y.astype(x.dtype))
        for x, y in zip(index.tokens, tokens.T, strict=True)
      ),
    )
    catalogue = made.catalogue._replace(index=index)
    scores = reference.log_pi(made.params, catalogue, made.observation)
    best = scores[1:].max()
    shared = 1 + np.flatnonzero(np.isclose(scores[1:], best, rtol=1e-9))
    self.assertGreater(len(shared), 1)
    order = (1 + np.argsort(-scores[1:].round(9), kind="stable")).tolist()
    action = made.agent.act(
      made.params, catalogue, made.observation, checks.NOTHING, None, 1.0
    )
    self.assertEqual(action.slate.tolist(), order[: toy.SLATE])
    np.testing.assert_allclose(
      action.log_prob, scores[order[: toy.SLATE]], rtol=1e-4
    )

  def test_what_is_removed_or_banned_is_not_shown(self):
    made = checks.made(NAME, **STILL)
    scores = reference.log_pi(made.params, made.catalogue, made.observation)
    removed, first, *order = (1 + np.argsort(-scores[1:])).tolist()
    index = sid.remove_items(made.catalogue.index, [removed])
    catalogue, banned = made.catalogue._replace(index=index), [first, 0]
    action = made.agent.act(
      made.params, catalogue, made.observation, jnp.array(banned), None, 1.0
    )
    self.assertEqual(action.slate.tolist(), order[: toy.SLATE])

  def test_dropout_alone_explores(self):
    made = checks.made(NAME, dropout=0.3, **STILL)
    act = functools.partial(
      made.agent.act, made.params, made.catalogue, made.observation
    )
    acted = jax.jit(
      jax.vmap(lambda key, at: act(checks.NOTHING, key, at), (0, None))
    )
    keys = jax.random.split(jax.random.key(3), 200)
    cold, hot = acted(keys, 0.01).slate, acted(keys, 9.0).slate
    np.testing.assert_array_equal(cold, hot)
    self.assertGreater(len(set(map(tuple, cold.tolist()))), 5)
    scores = reference.log_pi(made.params, made.catalogue, made.observation)
    still = act(checks.NOTHING, None, 1.0).slate
    self.assertEqual(
      still.tolist(), (1 + np.argsort(-scores[1:])[: toy.SLATE]).tolist()
    )

  def test_a_token_needs_an_output(self):
    with self.assertRaisesRegex(InputError, "actor_tokens is 7; .* 8 values"):
      checks.made(NAME, actor_tokens=7)
    self.assertEqual(agents.AGENTS[NAME].settings().actor_tokens, 256)


class EngineTest(absltest.TestCase):
  @pytest.mark.slow
  def test_nothing_is_learned_before_and_online_parameters_are_evaluated(self):
    """8 users and 4 iterations a call: 32 transitions by each."""
    config = toy.config(NAME, warm_up=33, seeds=(0,), **STILL)
    engine, inputs = toy.engine(config), toy.inputs()
    learner, stream = jax.jit(engine.init)(0, inputs)
    start, run = learner.params, jax.jit(engine.run)
    for call in range(3):
      learner, stream, metrics = run(learner, stream, inputs)
      chex.assert_trees_all_equal(learner.target_params, learner.params)
      if call < 2:
        chex.assert_trees_all_equal(learner.params, start)
        self.assertEqual(float(metrics["critic_loss"]), 0.0)
    self.assertEqual(int(stream.replay.added) * 8, 96)
    self.assertGreater(float(metrics["critic_loss"]), 0.0)
    moved = jax.tree.map(
      lambda x, y: float(jnp.abs(x - y).max()), learner.params, start
    )
    online = max(jax.tree.leaves(moved["actor"]))
    target = max(jax.tree.leaves(moved["target_actor"]))
    # By four steps of Adam, of which targets have seen about a tenth at most.
    self.assertGreater(online, 1e-3)
    self.assertBetween(target, 1e-6, 0.1 * online)

  @pytest.mark.slow
  def test_devices_that_share_users_do_what_one_does(self):
    config = toy.config(NAME, warm_up=0, seeds=(0,), behaviour_rate=1e-3)
    engine, inputs = toy.engine(config), toy.inputs()
    learner, stream = jax.jit(engine.init)(0, inputs)
    parts = [
      jax.jit(engine.init, static_argnums=3)(0, inputs, p, 2) for p in (0, 1)
    ]
    run = jax.jit(engine.run)
    streams = jax.tree.map(lambda *x: jnp.stack(x), *[x[1] for x in parts])
    both = jax.pmap(
      lambda learner, stream: engine.run(learner, stream, inputs, "d"),
      axis_name="d",
      in_axes=(None, 0),
      out_axes=(0, 0, 0),
    )
    shared = parts[0][0]
    for _ in range(3):
      learner, stream, metrics = run(learner, stream, inputs)
      copies, streams, measured = both(shared, streams)
      shared = jax.tree.map(lambda x: x[0], copies)
      chex.assert_trees_all_equal(
        shared._replace(key=0),
        jax.tree.map(
          lambda x: x[1], copies._replace(key=jnp.zeros(2))
        )._replace(key=0),
      )
    chex.assert_trees_all_close(
      shared.params, learner.params, rtol=1e-3, atol=1e-4
    )
    chex.assert_trees_all_close(
      jax.tree.map(lambda x: x[0], measured), metrics, rtol=1e-3, atol=1e-4
    )


if __name__ == "__main__":
  absltest.main()
