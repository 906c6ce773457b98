"""Stage policy of --recipe=next_item on a toy: training, what it leaves, how it
ranks, and its end by a signal."""

import dataclasses
import functools
import json
import pathlib
import signal
import tempfile
import types
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax.config import NextItemConfig, SimulatorConfig
from hsrl_jax.data import source
from hsrl_jax.engine import core, parallel
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import ranking
from hsrl_jax.host import metrics, watch
from hsrl_jax.sim import click_model
from hsrl_jax.stages import next_item, training
from hsrl_jax.stages import score_on_logs as on_logs
from hsrl_jax.types import Observation, Sessions
from tests import command, folders, toy
from tests.agents import checks

HISTORY, SLATE = 6, 2


def _sessions(rows, seed) -> Sessions:
  """Users who like what comes 7 after what they liked last."""
  rng = np.random.default_rng(seed)
  history = rng.integers(1, toy.ITEMS + 1, (rows, 1)) + 7 * np.arange(HISTORY)
  following = (history[:, -1:] + 6) % toy.ITEMS + 1
  other = (following + rng.integers(1, toy.ITEMS, (rows, 1)) - 1) % toy.ITEMS
  return Sessions(
    np.arange(rows, dtype=np.int32),
    np.zeros((rows, 4), np.float32),
    ((history - 1) % toy.ITEMS + 1).astype(np.int32),
    np.concatenate([following, other + 1], 1).astype(np.int32),
    np.tile(np.float32([1, 0]), (rows, 1)),
  )


@functools.cache
def _dataset() -> source.Dataset:
  names = [str(i) for i in range(toy.ITEMS + 1)]
  items = source.Items(
    np.asarray(checks.catalogue().features), names, names, names
  )
  return source.Dataset(
    items,
    {x: _sessions(n, n) for x, n in (("train", 60), ("val", 20), ("test", 9))},
  )


def _parts(agent, workdir=None, seeds=(3,), dataset=None, **values):
  """What the stage takes of a run."""
  base = toy.config(agent)
  config = dataclasses.replace(
    base,
    train=dataclasses.replace(base.train, recipe="next_item", seeds=seeds),
    simulator=SimulatorConfig(features=4, hidden=4),
    next_item=NextItemConfig(
      **{
        "width": 8,
        "history": HISTORY,
        "hidden": 8,
        "beams": 20,
        "batch_rows": 8,
        "epochs": 3,
        "learning_rate": 1e-2,
        "interactions": 2,
      }
      | values
    ),
  )
  dataset = dataset or _dataset()
  nowhere = pathlib.Path("nowhere")
  catalogue, logs = checks.catalogue(), dataset.splits["val"]
  user = Observation(*(jnp.asarray(x[0]) for x in (logs.profile, logs.history)))
  shapes = jax.eval_shape(
    lambda key: click_model.init(
      config.simulator, key, catalogue.features, user
    ),
    checks.KEY,
  )
  rng = np.random.default_rng(0)
  response = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes
  )
  return types.SimpleNamespace(
    config=config,
    workdir=workdir,
    shared=None,
    catalogue=catalogue,
    dataset=dataset,
    response=response,
    env=types.SimpleNamespace(
      response_fn=click_model.response_fn(config.simulator)
    ),
    name="toy",
    folder=lambda stage: nowhere,
  )


class StageTest(folders.FolderTest):
  judge = staticmethod(next_item._judge)  # Also where it is patched.

  @pytest.mark.slow
  def test_what_training_leaves(self):
    self._trains(_parts("hsrl", self.folder))

  @pytest.mark.slow
  def test_rankings_of_both_agents(self):
    for agent in ("sasrec", "hsrl"):
      parts = _parts(agent, self.folder / agent)
      params = self._trains(parts)
      held_out, lists = on_logs.measure(parts, [(params, parts.catalogue)])
      self.assertEqual(next(iter(held_out["held_out"])), agent)
      self.assertIn("recall@10_with_history", held_out["held_out"][agent])
      logs = parts.dataset.splits["test"]
      for row, items in enumerate(lists):
        self.assertNoCommonElements(set(items) - {0}, logs.history[row])
        self.assertLen(set(items), len(items))

  def _trains(self, parts):
    """The parameters that the stage leaves, once all else was looked at."""
    next_item.run(parts, watch.Watch())
    lines = metrics.read(parts.workdir / "policy")
    losses = [x["loss"] for x in lines if "loss" in x]
    points = [x["eval"] for x in lines if "eval" in x]
    self.assertLen(losses, 3)
    self.assertLess(losses[2], losses[0])
    measured = [x["ndcg@10"]["per_seed"][0] for x in points]
    best = int(np.argmax(measured))
    about = json.loads((parts.workdir / "policy/next_item.json").read_text())
    self.assertEqual(about["agent"], parts.config.agent)
    steps = about["updates_per_epoch"]
    self.assertEqual(points[-1]["kept"]["step"], [steps * (best + 1)])
    self.assertAlmostEqual(points[-1]["kept"]["measure"][0], measured[best], 5)
    (params,) = next_item.load(parts)
    # What is kept is the best epoch's, which validation measures again.
    judged = self.judge(parts, next_item.untrained(parts))(params["model"])
    self.assertAlmostEqual(judged, measured[best], places=5)
    return params

  @pytest.mark.slow
  def test_goes_on_after_an_interrupt(self):
    """Stopped in any epoch, it leaves what an unbroken run leaves, bit by bit.

    Two seeds, of which each has the best epoch at another time.
    """
    # Whatever started the tests may ignore it.
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, old)
    parts = _parts("sasrec", seeds=(3, 4))
    judge, judged = self.judge(parts, next_item.untrained(parts)), []

    def stops(params):
      judged.append(judge(params))
      if len(judged) == 2:
        signal.raise_signal(signal.SIGINT)  # Deferred to the epoch's end.
      return judged[-1]

    whole = parts.workdir = self.folder / "whole"
    next_item.run(parts, watch.Watch())
    parts.workdir = self.folder / "stopped"
    with (
      mock.patch.object(next_item, "_judge", return_value=stops),
      self.assertRaises(KeyboardInterrupt),
    ):
      next_item.run(parts, watch.Watch())
    self.assertLen(judged, 2)
    self.assertFalse((parts.workdir / "policy/next_item.json").exists())
    next_item.run(parts, watch.Watch())
    logged = [
      (x / "policy" / metrics.METRICS).read_text()
      for x in (whole, parts.workdir)
    ]
    self.assertEqual(*logged)
    resumed = next_item.load(parts)
    parts.workdir = whole
    chex.assert_trees_all_equal(resumed, next_item.load(parts))

  def test_drawn_negatives_switch_the_response_off(self):
    parts = _parts("sasrec")
    self.assertEqual(next_item.untrained(parts)["response_weight"], 10.0)
    items = _dataset().items
    drawn = items._replace(sampling=np.ones(toy.ITEMS + 1) / toy.ITEMS)
    parts.dataset = _dataset()._replace(items=drawn)
    self.assertEqual(next_item.untrained(parts)["response_weight"], 0.0)

  def test_vectors_of_likes(self):
    """As long as features are; none where the features have them."""
    parts = _parts("sasrec")
    rows = np.asarray(next_item.untrained(parts)["interactions"])
    self.assertEqual(rows.shape, (toy.ITEMS + 1, 2))
    np.testing.assert_array_equal(rows[0], 0)
    features = np.asarray(_dataset().items.features, np.float64)[1:]
    length = np.sqrt((features**2).sum(1).mean())
    known = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(known[known > 0], length, rtol=1e-4)
    with tempfile.TemporaryDirectory() as folder:
      made = pathlib.Path(folder) / "data"
      made.mkdir()
      (made / source.ITEM_VECTORS).touch()
      parts.folder = lambda stage: made.parent
      rows = next_item.untrained(parts)["interactions"]
    self.assertEqual(rows.shape, (toy.ITEMS + 1, 0))

  def test_a_list_ends_where_nothing_may_be_shown(self):
    """A slate that is not full ends in zeros, not in excluded items."""
    parts = _parts("sasrec")
    ranker = next_item.ranker(parts.config, toy.ITEMS)
    engine, inputs, _ = next_item.engine_of(parts, next_item.untrained(parts))
    params = jax.jit(engine.init)(0, inputs)[0].params
    excluded = jnp.arange(4, toy.ITEMS + 1)
    top = jax.jit(ranker.best)(
      ({"model": params} | next_item.untrained(parts), parts.catalogue),
      Observation(jnp.zeros(4), jnp.asarray([5, 6])),
      excluded,
    )
    self.assertLen(top, ranking.LISTED)
    self.assertEqual(sorted(top[:3].tolist()), [1, 2, 3])
    self.assertEqual(top[3:].tolist(), [0] * (ranking.LISTED - 3))

  def test_logs_that_say_too_little(self):
    def without_likes(split):
      splits = dict(_dataset().splits)
      splits[split] = splits[split]._replace(
        history=np.zeros_like(splits[split].history),
        response=np.zeros_like(splits[split].response),
      )
      return _dataset()._replace(splits=splits)

    for split, message in (
      ("train", "toy: no user of the training logs liked two items; expected"),
      ("val", "toy: nothing is liked in the validation split; expected"),
    ):
      parts = _parts("sasrec", self.folder, dataset=without_likes(split))
      with self.assertRaisesRegex(InputError, message):
        next_item.run(parts, watch.Watch())

  def test_what_diverges_is_not_saved(self):
    parts = _parts("sasrec", self.folder)

    def diverges(learner, stream, inputs):
      return learner, stream, {"loss": jnp.full(1, jnp.nan)}

    with (
      mock.patch.object(parallel, "over_devices", return_value=diverges),
      self.assertRaisesRegex(FloatingPointError, "lower --next_item_learning"),
    ):
      next_item.run(parts, watch.Watch())
    left = (self.folder / "policy" / "checkpoints").iterdir()
    self.assertEmpty([x for x in left if x.name.isdigit()])


def _learner(step, best_step, measure):
  """Of two seeds, as training has it, with parameters that are their step."""
  both = jnp.array([step, step])
  best = core.Best(
    jnp.array(best_step, jnp.float32),
    jnp.float32(measure),
    jnp.int32(best_step),
  )
  params = both.astype(jnp.float32)
  return core.Learner(params, params, (), jnp.zeros(2), both, best)


class PatienceTest(absltest.TestCase):
  """Two seeds side by side stop and keep what each would alone."""

  layout = parallel.Layout(2, 1, by_seed=False)

  def _kept(self, learner, measures, step, patience):
    with (
      mock.patch.object(parallel, "one_copy", lambda x: x),
      mock.patch.object(parallel, "everywhere", lambda x, layout: x),
    ):
      after = training._keep_best(
        learner, self.layout, np.array(measures), step, patience
      )
      end = training._end(
        after, self.layout, training.TrainConfig(iterations=900), patience
      )
    return jax.tree.map(np.asarray, after.best), end

  def test_each_seed_keeps_its_own_best(self):
    learner = _learner(30, (10, 20), (0.3, 0.2))
    best, end = self._kept(learner, (0.2, 0.4), 30, 100)
    np.testing.assert_array_equal(best.step, (10, 30))
    np.testing.assert_array_equal(best.params, (10, 30))
    np.testing.assert_allclose(best.measure, (0.3, 0.4))
    self.assertEqual(end, 130)

  def test_a_seed_out_of_patience_takes_nothing_more(self):
    """Alone it would have ended after step 30."""
    learner = _learner(40, (10, 30), (0.3, 0.2))
    best, end = self._kept(learner, (0.9, 0.1), 40, 20)
    np.testing.assert_array_equal(best.step, (10, 30))
    self.assertEqual(end, 50)

  def test_equal_measures_keep_the_first(self):
    learner = _learner(20, (10, 10), (0.25, 0.25))
    best, _ = self._kept(learner, (0.25, 0.5), 20, 20)
    np.testing.assert_array_equal(best.step, (10, 20))


class CommandTest(parameterized.TestCase):
  @parameterized.parameters(("sasrec", 0), ("hsrl", 3))
  @pytest.mark.slow
  def test_all_stages_and_an_export(self, agent, topic_weight):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    workdir = pathlib.Path(folder) / "run"
    arguments = (
      f"--workdir={workdir}",
      "--recipe=next_item",
      f"--agent={agent}",
      "--dataset=toy",
      "--sid_vocab_size=8",
      f"--sid_topic_weight={topic_weight}",
      "--simulator_epochs=1",
      "--next_item_width=8",
      "--next_item_epochs=2",
      "--evaluate_episodes=8",
      "--seeds=0,1",
    )
    status, out, err = command.run(*arguments)
    self.assertEqual(status, 0, err)
    self.assertIn("held-out logs", out)
    self.assertIn("policy (at most): ", err)  # It may end before.
    results = json.loads((workdir / "results.json").read_text())
    self.assertEqual(results["agent"], agent)
    self.assertLen(results["held_out"][agent]["recall@10"]["per_seed"], 2)
    page = (workdir / "report" / "report.html").read_text()
    self.assertIn("Training on the next item", page)
    self.assertIn("nothing to do", command.run(*arguments)[1])
    # The workdir alone goes on; its flags are also a flagfile.
    self.assertEqual(command.run(f"--flagfile={workdir}/flags.txt")[0], 0)
    status, out, err = command.run(
      f"--workdir={workdir}",
      "--mode=export",
      "--export_platforms=cpu",
      "--export_any",
    )
    self.assertEqual(status, 0, err)


if __name__ == "__main__":
  absltest.main()
