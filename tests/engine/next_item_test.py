"""Both models learn a cycle of items; training goes on where it was stopped."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import sid
from hsrl_jax.data import sequences
from hsrl_jax.engine import next_item as engine
from hsrl_jax.evaluation import next_item as evaluation
from hsrl_jax.evaluation import ranking
from hsrl_jax.networks import next_item

ITEMS, LENGTH, SEED = 12, 6, 3
SMALL = {
  "length": LENGTH,
  "width": 16,
  "layers": 1,
  "dropout": 0.1,
  "hidden": 16,
  "token_dropout": 0.1,
  "beams": 8,
}
MODELS = {
  "sasrec": next_item.SASREC,
  "hsrl": next_item.HSRL,
  "both": dataclasses.replace(next_item.HSRL, item_weight=0.5),
}
TRAIN = engine.TrainConfig(
  learning_rate=2e-2, warmup=5, batch_rows=16, epochs=6, patience=3
)


@functools.cache
def _split():
  """Users go round a cycle of all items, one step at a time."""
  rng = np.random.default_rng(0)
  lists = []
  for start, count in zip(
    rng.integers(0, ITEMS, 150), rng.integers(4, 9, 150), strict=True
  ):
    lists.append(((start + np.arange(count)) * 5 % ITEMS + 1).tolist())
  return sequences.leave_one_out(sequences.from_lists(lists, ITEMS))


@functools.cache
def _trainer(name, epochs=TRAIN.epochs, average=0.0):
  tokens = np.stack(np.divmod(np.arange(ITEMS), 4), 1)
  catalogue = next_item.Catalogue(sid.build_index(tokens, 4))
  config = dataclasses.replace(MODELS[name], **SMALL)
  model = next_item.Model(config, ITEMS, catalogue)
  training = dataclasses.replace(TRAIN, epochs=epochs, average=average)
  packed = sequences.pack(_split().train, LENGTH)
  return engine.Trainer(model, catalogue, packed, training), model, catalogue


@functools.cache
def _ranker(name):
  _, model, catalogue = _trainer(name)
  make = (
    evaluation.exact_ranker if name == "sasrec" else evaluation.search_ranker
  )
  return make(model, catalogue)


def _judge(name):
  def judge(params, history, target):
    ranks, _ = _ranker(name)(params, history, target)
    return ranking.measures(ranks)["ndcg@10"].mean()

  return judge


class NextItemTest(parameterized.TestCase):
  @parameterized.parameters(*MODELS)
  def test_learns_a_cycle(self, name):
    trainer, *_ = _trainer(name)
    split = _split()
    before = trainer.init(SEED).params
    *_, state = trainer.run(
      trainer.init(SEED), SEED, split.validation, _judge(name)
    )
    held = split.test
    for params, low, high in ((before, 0.0, 0.5), (state.best_params, 0.9, 1)):
      ranks, _ = _ranker(name)(params, held.history, held.target)
      self.assertBetween((ranks == 1).mean(), low, high)

  @parameterized.parameters("hsrl", "both")
  def test_search_finds_what_exact_scores_rank_first(self, name):
    trainer, model, catalogue = _trainer(name)
    params = trainer.init(SEED).params
    held = _split().test
    history = jnp.asarray(held.history[:8])
    scores = np.asarray(jax.jit(model.scores)(params, catalogue, history))
    found = jax.jit(model.search)(params, catalogue, history)
    for row in range(8):
      items = np.asarray(found.items[row])
      np.testing.assert_allclose(
        found.scores[row], scores[row, items], atol=1e-4
      )
      self.assertTrue((np.diff(found.scores[row]) <= 0).all())

  def test_goes_on_where_it_was_stopped(self):
    trainer, *_ = _trainer("sasrec", epochs=4, average=0.5)
    validation, judge = _split().validation, _judge("sasrec")
    *_, through = trainer.run(trainer.init(SEED), SEED, validation, judge)
    run = trainer.run(trainer.init(SEED), SEED, validation, judge)
    next(run)
    saved = jax.tree.map(np.asarray, next(run))  # As in a file.
    *_, resumed = trainer.run(
      jax.tree.map(jnp.asarray, saved), SEED, validation, judge
    )
    self.assertEqual(int(resumed.epoch), 4)
    chex.assert_trees_all_equal(
      *(jax.tree.map(np.asarray, x) for x in (through, resumed))
    )
    *_, other = trainer.run(trainer.init(SEED), SEED + 1, validation, judge)
    self.assertNotEqual(float(other.loss), float(through.loss))

  def test_stops_early_and_keeps_the_best(self):
    trainer, *_ = _trainer("sasrec")
    measures = iter([0.1, 0.3, 0.2, 0.2, 0.1])
    seen = []

    def judge(params, history, target):
      del history, target
      seen.append(jax.tree.map(np.asarray, params))
      return next(measures)

    *_, state = trainer.run(
      trainer.init(SEED), SEED, _split().validation, judge
    )
    self.assertEqual([int(state.epoch), int(state.best_epoch)], [5, 2])
    self.assertAlmostEqual(float(state.best), 0.3, places=6)
    chex.assert_trees_all_equal(
      jax.tree.map(np.asarray, state.best_params), seen[1]
    )

  def test_a_model_of_tokens_needs_an_index(self):
    with self.assertRaisesRegex(ValueError, "no index; expected one"):
      next_item.Model(next_item.HSRL, ITEMS, next_item.Catalogue())


if __name__ == "__main__":
  absltest.main()
