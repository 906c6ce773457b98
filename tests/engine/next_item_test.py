"""Both models learn a cycle of items; training goes on where it was stopped."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from hsrl_jax import sid
from hsrl_jax.config import NextItemConfig
from hsrl_jax.data import sequences
from hsrl_jax.engine import next_item as engine
from hsrl_jax.networks import next_item

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
  "hsrl": dataclasses.replace(
    SMALL, token_weight=1.0, item_weight=0.5, token_inputs=True, smoothing=0.05
  ),
}
TRAIN = NextItemConfig(
  learning_rate=2e-2, batch_rows=16, epochs=12, patience=3, average=0.5
)


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


@functools.cache
def _trainer(name):
  tokens = np.stack(np.divmod(np.arange(ITEMS), 4), 1)
  features = np.eye(ITEMS + 1, 5, dtype=np.float32)
  catalogue = next_item.Catalogue(
    sid.build_index(tokens, 4), jnp.asarray(features)
  )
  model = next_item.Model(MODELS[name], ITEMS, 2, 4)
  train = sequences.from_lists([x[:-1] for x in _lists()], ITEMS)
  packed = sequences.pack(train, LENGTH)
  return engine.Trainer(model, catalogue, packed, TRAIN), model, catalogue


@functools.cache
def _hits(name):
  """Parameters to the share of users whose last item has the best score."""
  _, model, catalogue = _trainer(name)
  held = sequences.from_lists(_lists(), ITEMS).items
  history, target = held[:, :-1], held[:, -1]

  @jax.jit
  def scores(params):
    states = model.states(params, catalogue, history)
    everything = jnp.arange(1, ITEMS + 1)
    return jax.vmap(
      lambda state: model.score(params, catalogue, state, everything)
    )(states)

  return lambda params: float(
    (np.asarray(scores(params)).argmax(1) + 1 == target).mean()
  )


class NextItemTest(absltest.TestCase):
  @pytest.mark.slow
  def test_learns_a_cycle(self):
    self._learns("sasrec")

  @pytest.mark.slow
  def test_learns_a_cycle_by_tokens(self):
    self._learns("hsrl")

  def test_shapes(self):
    trainer, *_ = _trainer("sasrec")
    chex.assert_trees_all_equal_shapes_and_dtypes(
      trainer.shapes(), trainer.init(SEED)
    )

  def _learns(self, name):
    trainer, *_ = _trainer(name)
    hits = _hits(name)
    self.assertLess(hits(trainer.init(SEED).params), 0.5)
    *_, (state, measure) = trainer.run(trainer.init(SEED), SEED, hits)
    self.assertGreater(hits(state.best_params), 0.9)
    self.assertAlmostEqual(float(state.best), hits(state.best_params), places=6)
    self.assertLessEqual(measure, float(state.best))

  @pytest.mark.slow
  def test_goes_on_where_it_was_stopped(self):
    trainer, *_ = _trainer("sasrec")
    judge = _hits("sasrec")
    *_, (through, _) = trainer.run(trainer.init(SEED), SEED, judge)
    run = trainer.run(trainer.init(SEED), SEED, judge)
    next(run)
    saved = jax.tree.map(np.asarray, next(run)[0])  # As in a file.
    *_, (resumed, _) = trainer.run(
      jax.tree.map(jnp.asarray, saved), SEED, judge
    )
    self.assertEqual(int(resumed.epoch), int(through.epoch))
    self.assertGreater(int(resumed.epoch), 2)
    chex.assert_trees_all_equal(
      *(jax.tree.map(np.asarray, x) for x in (through, resumed))
    )
    *_, (other, _) = trainer.run(trainer.init(SEED), SEED + 1, judge)
    self.assertNotEqual(float(other.loss), float(through.loss))

  def test_stops_early_and_keeps_the_best(self):
    trainer, *_ = _trainer("sasrec")
    measures = [0.1, 0.3, 0.2, 0.2, 0.1, 0.1]
    seen = []

    def judge(params):
      seen.append(jax.tree.map(np.asarray, params))
      return measures[len(seen) - 1]

    ran = list(trainer.run(trainer.init(SEED), SEED, judge))
    state = ran[-1][0]
    self.assertEqual([int(state.epoch), int(state.best_epoch)], [5, 2])
    self.assertEqual([measure for _, measure in ran], measures[:5])
    self.assertAlmostEqual(float(state.best), 0.3, places=6)
    chex.assert_trees_all_equal(
      jax.tree.map(np.asarray, state.best_params), seen[1]
    )

  def test_validates_every_few_epochs_and_at_the_end(self):
    trainer, model, catalogue = _trainer("sasrec")
    config = dataclasses.replace(trainer.config, eval_every=2, epochs=3)
    other = engine.Trainer(model, catalogue, trainer._packed, config)
    other._epoch = trainer._epoch  # Of the same shapes: nothing is compiled.
    measures = iter([0.1, 0.2])
    ran = other.run(other.init(SEED), SEED, lambda params: next(measures))
    self.assertEqual([measure for _, measure in ran], [None, 0.1, 0.2])

  def test_patience_below_the_time_between_validations(self):
    with self.assertRaisesRegex(ValueError, "patience is 2; expected at least"):
      NextItemConfig(patience=2, eval_every=3)


if __name__ == "__main__":
  absltest.main()
