"""Both models learn a cycle of items; training goes on where it was stopped."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import agents, sid
from hsrl_jax.agents import base
from hsrl_jax.config import Config, NextItemConfig, TrainConfig
from hsrl_jax.data import sequences
from hsrl_jax.engine import core, loop, parallel
from hsrl_jax.networks import next_item
from hsrl_jax.ops import tree
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.stages import next_item as stage

ITEMS, LENGTH, SEED = 12, 6, 3
SMALL = next_item.ModelConfig(
  length=LENGTH,
  width=16,
  layers=1,
  dropout=0.1,
  hidden=16,
  token_dropout=0.1,
)
MODELS = {
  "sasrec": SMALL,
  "hsrl": dataclasses.replace(SMALL, tokens=True),
}
TRAIN = NextItemConfig(learning_rate=2e-2, batch_rows=16, epochs=12, patience=3)


@functools.cache
def _lists():
  """Users go round a cycle of all items, one step at a time."""
  rng = np.random.default_rng(0)
  return [
    ((start + np.arange(count)) * 5 % ITEMS + 1).tolist()
    for start, count in zip(
      rng.integers(0, ITEMS, 150), rng.integers(4, 9, 150), strict=True
    )
  ]


class Made(NamedTuple):
  """A model, its engine, and what it trains on."""

  model: next_item.Model
  engine: loop.Engine
  inputs: core.Inputs
  train: TrainConfig


@functools.cache
def _made(name):
  tokens = np.stack(np.divmod(np.arange(ITEMS), 4), 1)
  features = np.eye(ITEMS + 1, 5, dtype=np.float32)
  index = sid.build_index(tokens, 4)
  catalogue = Catalogue(
    features=jnp.asarray(features),
    index=index,
    codebooks=jnp.zeros((2, 4, 5)),
  )
  model = next_item.Model(MODELS[name], ITEMS, 2, 4)
  train = sequences.from_lists([x[:-1] for x in _lists()])
  packed = sequences.pack(train, LENGTH)
  agent = base.Agent(
    lambda key, catalogue, observation: model.init(key, catalogue),
    None,
    None,
    sequence_loss=model.loss,
    optimizer=functools.partial(agents.next_item._optimizer, TRAIN),
  )
  config = Config(
    next_item=TRAIN, train=TrainConfig(recipe="next_item", seeds=(SEED,))
  )
  course = stage.course(config, len(packed.item))
  inputs = core.Inputs(catalogue, None, jax.tree.map(jnp.asarray, packed))
  return Made(model, loop.make(agent, None, course), inputs, course)


@functools.cache
def _run(name):
  return jax.jit(_made(name).engine.run)


def _start(name, seed=SEED):
  made = _made(name)
  return jax.jit(made.engine.init)(seed, made.inputs)


def _epochs(name, state, count):
  for _ in range(count):
    *state, metrics = _run(name)(*state, _made(name).inputs)
  return state, metrics


@functools.cache
def _hits(name):
  """Parameters to the share of users whose last item has the best score."""
  made = _made(name)
  catalogue = made.inputs.catalogue
  held = sequences.from_lists(_lists()).items
  history, target = held[:, :-1], held[:, -1]

  @jax.jit
  def scores(params):
    states = made.model.states(params, catalogue, history)
    everything = jnp.arange(1, ITEMS + 1)
    return jax.vmap(
      lambda state: made.model.score(params, catalogue, state, everything)
    )(states)

  return lambda params: float(
    (np.asarray(scores(params)).argmax(1) + 1 == target).mean()
  )


class NextItemTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_learns_a_cycle(self):
    self._learns("sasrec")

  @pytest.mark.slow
  def test_learns_a_cycle_by_tokens(self):
    self._learns("hsrl")

  def _learns(self, name):
    hits, state = _hits(name), _start(name)
    self.assertLess(hits(state[0].params), 0.5)
    (learner, _), _ = _epochs(name, state, TRAIN.epochs)
    self.assertGreater(hits(learner.target_params), 0.9)
    self.assertEqual(int(learner.step), _made(name).train.iterations)

  @parameterized.parameters("sasrec", "hsrl")
  def test_the_loss_is_of_the_scores_of_each_prefix(self, name):
    """Of all items and, apart from that, of the tokens; padding costs 0."""
    sizes = dataclasses.replace(MODELS[name], dropout=0.0, token_dropout=0.0)
    model = next_item.Model(sizes, ITEMS, 2, 4)
    catalogue = _made(name).inputs.catalogue
    params = model.init(jax.random.key(1), catalogue)
    # A piece ends at the last place, and a prefix of it before; without places
    # a prefix has the same state alone.
    encoder = params["encoder"]["params"]
    encoder["position"] = jnp.zeros_like(encoder["position"])
    # One sequence a row, of which the second row is not full.
    lists = [[3, 8, 1, 6, 11, 4, 9], [5, 10, 3, 8]]
    batch = sequences.pack(sequences.from_lists(lists), LENGTH)
    found, count = model.loss(params, catalogue, batch, jax.random.key(2))
    everything, total = jnp.arange(1, ITEMS + 1), 0.0
    for items in lists:
      for i in range(1, len(items)):
        own = jnp.array([items[:i]])
        state = model.states(params, catalogue, own)[0]
        args = params, catalogue, state, everything
        logits = model.item_score(*args)
        of_tokens = model.score(*args) - logits
        log_probs = jax.nn.log_softmax(logits) + of_tokens
        total -= float(log_probs[items[i] - 1])
        if name == "hsrl":
          np.testing.assert_allclose(np.exp(of_tokens).sum(), 1.0, rtol=1e-4)
    self.assertEqual(int(count), 9)
    self.assertAlmostEqual(float(found), total, places=3)

  @parameterized.parameters("sasrec", "hsrl")
  def test_vectors_know_tokens_where_there_are_tokens(self, name):
    made = _made(name)
    catalogue = made.inputs.catalogue
    params = made.model.init(jax.random.key(1), catalogue)
    tokens = np.stack(np.divmod(np.arange(ITEMS)[::-1], 4), 1)
    others = catalogue._replace(index=sid.build_index(tokens, 4))
    same = made.model.rows(params, catalogue) == made.model.rows(params, others)
    self.assertEqual(bool(same[1:].all()), name == "sasrec")

  def test_an_epoch_sees_each_row_once(self):
    """The gradient of a row counts its items; SGD of rate 1 adds them up."""
    made = _made("sasrec")
    rows = len(made.inputs.logs.item)
    batch, steps = made.train.batch_size, made.train.iterations_per_call

    def loss(params, catalogue, rows, key):
      del catalogue, key
      return -(params["seen"][rows.number] * 1.0).sum(), jnp.int32(1)

    agent = base.Agent(
      lambda key, catalogue, observation: {"seen": jnp.zeros(rows)},
      None,
      None,
      sequence_loss=loss,
      optimizer=lambda steps: optax.sgd(1.0),
    )
    engine = loop.make(agent, None, made.train)
    logs = made.inputs.logs

    class Numbered(NamedTuple):
      item: jax.Array
      number: jax.Array

    inputs = made.inputs._replace(logs=Numbered(logs.item, jnp.arange(rows)))
    learner, stream = engine.init(SEED, inputs)
    learner, stream, _ = jax.jit(engine.run)(learner, stream, inputs)
    seen = np.asarray(learner.params["seen"])
    self.assertEqual(set(seen.tolist()) - {0.0}, {1.0})
    self.assertEqual(seen.sum(), batch * steps)
    again, *_ = jax.jit(engine.run)(learner, stream, inputs)
    other = np.asarray(again.params["seen"]) - seen
    self.assertEqual(other.sum(), batch * steps)

  @pytest.mark.slow
  def test_devices_that_share_a_batch_do_what_one_does(self):
    """Without dropout, whose keys are a device's own."""
    name = "plain"
    MODELS[name] = dataclasses.replace(SMALL, dropout=0.0)
    made, found = _made(name), []
    for devices in (1, 3):  # 16 rows are no multiple of 3.
      layout = parallel.Layout(1, devices, by_seed=False)
      state = parallel.init(made.engine.init, (SEED,), made.inputs, layout)
      learner, stream, inputs = parallel.place(*state, made.inputs, layout)
      run = parallel.over_devices(made.engine.run, layout)
      for _ in range(2):
        learner, stream, metrics = run(learner, stream, inputs)
      learner, _ = parallel.collect(learner, stream, layout)
      found.append(jax.device_get((learner.params, metrics)))
    chex.assert_trees_all_close(*found, rtol=2e-3, atol=2e-4)

  @pytest.mark.slow
  def test_goes_on_where_it_was_stopped(self):
    whole, _ = _epochs("sasrec", _start("sasrec"), 4)
    state, _ = _epochs("sasrec", _start("sasrec"), 2)
    words = jax.tree.map(tree.words, state)
    kept = jax.tree.map(np.asarray, words)  # As in a file.
    resumed, _ = _epochs("sasrec", jax.tree.map(tree.of_words, state, kept), 2)
    chex.assert_trees_all_equal(
      *(jax.tree.map(tree.words, x) for x in (whole, resumed))
    )
    other, _ = _epochs("sasrec", _start("sasrec", SEED + 1), 4)
    self.assertNotEqual(
      *(float(jax.tree.leaves(x[0].params)[0].sum()) for x in (whole, other))
    )

  def test_the_best_parameters_are_kept(self):
    learner, _ = _start("sasrec")
    learner = learner._replace(step=jnp.int32(7))
    better = core.keep_best(learner, jnp.float32(0.5))
    self.assertEqual(int(better.best.step), 7)
    later = better._replace(
      step=jnp.int32(9),
      target_params=jax.tree.map(jnp.zeros_like, learner.params),
    )
    for measure, step in ((0.5, 7), (0.4, 7), (0.6, 9)):
      after = core.keep_best(later, jnp.float32(measure))
      self.assertEqual(int(after.best.step), step)
    chex.assert_trees_all_equal(after.best.params, later.target_params)
    chex.assert_trees_all_equal(better.best.params, learner.target_params)

  def test_patience_below_the_time_between_validations(self):
    with self.assertRaisesRegex(ValueError, "patience is 2; expected at least"):
      NextItemConfig(patience=2, eval_every=3)


if __name__ == "__main__":
  absltest.main()
