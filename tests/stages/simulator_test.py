"""A click model trained elsewhere against matrix code; what a fit is of."""

import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from scipy import special
from sklearn import metrics

from hsrl_jax import checked
from hsrl_jax import config as config_lib
from hsrl_jax.config import SimulatorConfig
from hsrl_jax.data import feedback, source
from hsrl_jax.errors import InputError
from hsrl_jax.sim import click_model, response_file, user_simulator
from hsrl_jax.stages import boredom, simulator
from hsrl_jax.types import Sessions
from tests.sim import self_selected


class ConfigTest(parameterized.TestCase):
  def test_env_has_the_protocol(self):
    config = SimulatorConfig(protocol="no_repeat")
    self.assertTrue(user_simulator.make(config, 3).no_repeat)
    config = dataclasses.replace(config, protocol="paper")
    self.assertFalse(user_simulator.make(config, 3).no_repeat)

  @parameterized.parameters(*dataclasses.fields(SimulatorConfig))
  def test_fingerprint_of_the_fit_is_of_its_fields_only(self, field):
    other = {
      "heads": 4,
      "final_dense": False,
      "protocol": "no_repeat",
      "sweet_point": 0.5,
      "slate_size": 7,
      "click_model": "another",
      "boredom": "topic",
      "leave": "boredom",
      "observed": "interactions",
      "reward": "sum",
      "world": "SlateTopK-Bored",
    }.get(field.name)
    if other is None:
      other = field.default + (0.1 if field.type is float else 2)
    config = SimulatorConfig()
    changed = dataclasses.replace(config, **{field.name: other})
    same = checked.fingerprint(changed.of_fit()) == checked.fingerprint(
      config.of_fit()
    )
    of_sessions = {"protocol", "max_steps", "slate_size"}
    of_sessions |= {"penalty", "sweet_point", "boredom", "leave"}
    of_sessions |= {"reward", "observed", "world"}
    self.assertEqual(
      same,
      field.name in of_sessions
      or field.name.startswith(("boredom_", "fatigue_", "leave_")),
    )

  def test_fitted_boredom_is_part_of_the_fit(self):
    fingerprints = {
      checked.fingerprint(SimulatorConfig(boredom=x).of_fit())
      for x in ("none", "topic", "fitted")
    }
    self.assertLen(fingerprints, 2)

  def test_ones_own_logs_get_the_blended_click_model(self):
    for dataset, file, expected in (
      ("logs", None, "blended"),
      ("logs", "urm.npz", "attention"),
      ("movielens_1m", None, "attention"),
    ):
      data = config_lib.DataConfig(dataset, response_params=file)
      config = config_lib.Config(data)
      self.assertEqual(simulator.chosen(config).click_model, expected)
      named = SimulatorConfig(click_model="another")
      config = config_lib.Config(data, simulator=named)
      self.assertEqual(simulator.chosen(config).click_model, "another")


def _matrices(final_dense, seed=0):
  """Weights as another library would have them, [in, out] and biases."""
  rng = np.random.default_rng(seed)
  attention = [f"{x}_attention.{y}" for x in ("self", "cross") for y in PARTS]
  sizes = {"user_hidden": (3, 9), "user_out": (9, 6), "item": (5, 6)}
  sizes |= dict.fromkeys(attention, (6, 6))
  if final_dense:
    sizes["mix"] = (12, 6)
  made = {}
  for name, size in sizes.items():
    made[f"{name}.kernel"] = rng.normal(size=size) / np.sqrt(size[0])
    made[f"{name}.bias"] = 0.5 * rng.normal(size=size[1])
  return made


PARTS = ("query", "key", "value", "out")


def _by_matrices(w, heads, features, profile, history, slate):
  """The click model of docs/simulator.md for one user, in matrix code."""

  def layer(name, x):
    return x @ w[f"{name}.kernel"] + w[f"{name}.bias"]

  def attention(name, query, value):
    q, k, v = (
      np.split(layer(f"{name}.{part}", x), heads, axis=-1)
      for part, x in zip(PARTS[:3], (query, value, value), strict=True)
    )
    mixed = []
    for qh, kh, vh in zip(q, k, v, strict=True):
      score = np.exp(qh @ kh.T / np.sqrt(qh.shape[-1]))
      total = score.sum(-1, keepdims=True)
      mixed.append(score @ vh / np.where(total > 0, total, 1))
    return layer(f"{name}.out", np.concatenate(mixed, -1))

  user = layer("user_out", np.maximum(layer("user_hidden", profile), 0))
  liked = layer("item", features[history[history > 0]])  # No padding at all.
  liked = attention("self_attention", liked, liked)
  interest = attention("cross_attention", user[None], liked)[0]
  if "mix.kernel" in w:
    interest = layer("mix", np.concatenate([interest, user]))
  return 1 / (1 + np.exp(-layer("item", features[slate]) @ interest))


class ChosenTest(parameterized.TestCase):
  @parameterized.parameters(("rl4rs", False), ("movielens_1m", True))
  def test_rl4rs_alone_has_no_final_dense(self, dataset, final_dense):
    data = config_lib.DataConfig(dataset=dataset)
    found = simulator.chosen(config_lib.Config(data=data))
    self.assertEqual(found.final_dense, final_dense)


class ModelOfAFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )
    self.path = self.workdir / "urm.npz"

  def _given(self, final_dense, heads=2):
    np.savez(self.path, **_matrices(final_dense))
    given = response_file.read(self.path)
    config = SimulatorConfig(12, heads=heads)
    return given, simulator.sized(config, given)

  def _dataset(self, width=5, rows=40):
    rng = np.random.default_rng(3)
    features = rng.normal(size=(15, width)).astype("f")
    features[0] = 9.0  # Padding, which must not count.
    history = rng.integers(1, 15, size=(rows, 4)).astype(np.int32)
    history[np.arange(4) < np.arange(rows)[:, None] % 5] = 0
    sessions = Sessions(
      user_id=np.arange(rows) % 7,
      profile=rng.normal(size=(rows, 3)).astype("f"),
      history=history,
      exposed=np.argsort(rng.random((rows, 14)))[:, :6].astype(np.int32) + 1,
      response=(rng.random((rows, 6)) < 0.4).astype("f"),
    )
    items = source.Items(features, [""] * 15, [""] * 15, [""] * 15)
    return source.Dataset(items, dict.fromkeys(source.SPLITS, sessions))

  def _expected(self, dataset, final_dense, heads):
    val = dataset.splits["val"]
    return np.stack(
      [
        _by_matrices(
          _matrices(final_dense), heads, dataset.items.features, *row
        )
        for row in zip(val.profile, val.history, val.exposed, strict=True)
      ]
    )

  @parameterized.product(final_dense=(True, False), heads=(2, 3))
  def test_simulator_answers_as_the_other_library(self, final_dense, heads):
    given, config = self._given(final_dense, heads)
    dataset = self._dataset()
    env = user_simulator.make(config, 6)
    users = user_simulator.pool(
      simulator.of_file(config, given, dataset), dataset.splits["val"]
    )
    answer = jax.jit(
      jax.vmap(
        lambda row, items: env.probabilities(
          env.start(row, users).observation, items, users
        )
      )
    )
    exposed = dataset.splits["val"].exposed
    found = answer(np.arange(len(exposed)), exposed)
    expected = self._expected(dataset, final_dense, heads)
    self.assertGreater(np.ptp(expected), 0.8)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)

  def test_the_stage_measures_and_keeps_it(self):
    given, config = self._given(False)
    dataset = self._dataset()
    found = simulator.adopt(config, self.workdir, dataset, given, self.path)
    p = self._expected(dataset, False, 2)
    y = dataset.splits["val"].response
    self.assertAlmostEqual(
      found["auc"], metrics.roc_auc_score(y.ravel(), p.ravel()), places=5
    )
    folder = self.workdir / simulator.FOLDER
    kept = json.loads((folder / "quality.json").read_text())
    self.assertEqual(kept.pop("source")["file"], "urm.npz")
    self.assertEqual(kept, found)
    copy = response_file.read(folder / simulator.GIVEN)
    self.assertEqual(copy.digest, given.digest)

  def test_other_widths_are_named(self):
    given, config = self._given(True)
    with self.assertRaisesRegex(
      InputError, "urm.npz takes item features of 5 numbers; expected 4"
    ):
      simulator.of_file(config, given, self._dataset(width=4))
    narrow = self._dataset()
    train = narrow.splits["train"]
    narrow.splits["train"] = train._replace(profile=train.profile[:, :2])
    with self.assertRaisesRegex(
      InputError, "urm.npz takes profiles of 3 numbers; expected 2"
    ):
      simulator.of_file(config, given, narrow)

  def test_a_file_holds_weights_of_one_click_model(self):
    given, config = self._given(True)
    with self.assertRaisesRegex(
      InputError,
      "--simulator_click_model is 'another'; expected 'attention', whose "
      "weights urm.npz holds",
    ):
      simulator.sized(dataclasses.replace(config, click_model="another"), given)

  def test_heads_must_divide(self):
    with self.assertRaisesRegex(
      InputError, "--simulator_heads is 4; expected a divisor of features = 6"
    ):
      self._given(True, heads=4)


class FittedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder)

  def _run(self, dataset, **changes):
    config = SimulatorConfig(**changes)
    quality = simulator.run(config, self.workdir / config.click_model, dataset)
    params = simulator.load(config, self.workdir / config.click_model, dataset)
    return quality, config, params

  @pytest.mark.slow
  def test_blended_beats_the_items_mean_and_attention_does_not(self):
    dataset = self_selected.world()
    measured = {
      name: self._run(dataset, click_model=name)[0]["test"]
      for name in ("attention", "blended")
    }
    of_items = measured["blended"]["lists"]["item_mean"]
    auc = {k: x["auc_within_users"] for k, x in measured.items()}
    self.assertGreater(auc["blended"], of_items["auc_within_users"])
    self.assertLess(auc["attention"], of_items["auc_within_users"])
    self.assertLess(measured["blended"]["log_loss"], of_items["log_loss"])

  @pytest.mark.slow
  def test_a_fit_that_was_killed_goes_on_from_what_it_saved(self):
    dataset = self_selected.world()
    config = SimulatorConfig(click_model="attention", epochs=4)
    save, epochs = simulator.checkpoint.save, []
    killed, whole = self.workdir / "killed", self.workdir / "whole"

    def killed_once(checkpointer, epoch, state):
      epochs.append(epoch)
      if epochs == [1, 2, 3]:
        raise KeyboardInterrupt
      save(checkpointer, epoch, state)

    with (
      mock.patch.object(simulator, "_SAVE_AFTER", -1.0),
      mock.patch.object(simulator.checkpoint, "save", killed_once),
    ):
      with self.assertRaises(KeyboardInterrupt):
        simulator.run(config, killed, dataset)
      simulator.run(config, killed, dataset)
    self.assertEqual(epochs, [1, 2, 3, 3, 4])
    quality = simulator.run(config, whole, dataset)
    for workdir in (killed, whole):
      rows = (workdir / "simulator/metrics.jsonl").read_text().splitlines()
      self.assertEqual([json.loads(x)["epoch"] for x in rows], [1, 2, 3, 4])
    self.assertEqual(
      json.loads((killed / "simulator/quality.json").read_text()), quality
    )

  @pytest.mark.slow
  def test_what_is_loaded_answers_as_it_was_judged(self):
    """Also with drawn negatives and a base rate."""
    world = self_selected.world()
    sampling = np.arange(301.0) / np.arange(301.0).sum()
    about = feedback.Feedback("implicit", "popularity", 3, 0.1, 0)
    items = world.items._replace(sampling=sampling, feedback=about)
    world = world._replace(items=items)
    quality, config, params = self._run(world, click_model="blended", epochs=2)
    self.assertTrue(quality["claims_rates"])
    self.assertAlmostEqual(float(params.shift), np.log(3 / 9), places=5)
    test = world.splits["test"]
    p = jax.vmap(click_model.response_fn(config), (None, 0, 0, 0, 0))(
      params,
      test.profile,
      test.history,
      test.exposed,
      np.float32(params.blend.of_users(test.user_id)),
    )
    offset = feedback.log_q_offset(sampling)[test.exposed]
    self.assertGreater(np.ptp(offset), 2)
    logits = special.logit(np.float64(p)) - np.log(3 / 9) + offset
    loss = metrics.log_loss(
      test.response.ravel(), special.expit(logits).ravel()
    )
    self.assertAlmostEqual(loss, quality["test"]["log_loss"], delta=1e-5)

  @pytest.mark.slow
  def test_boredom_is_fitted_judged_and_loaded(self):
    """In these sessions nobody likes anything after a slate with a like."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", 300), ("val", 60), ("test", 60)):
      exposed = rng.permuted(np.tile(np.arange(1, 9), (4 * count, 1)), axis=1)
      liked = rng.random((count, 4, 3)) < 0.5
      for step in range(1, 4):
        liked[:, step] &= ~liked[:, step - 1].any(-1, keepdims=True)
      splits[name] = Sessions(
        user_id=np.repeat(np.arange(count), 4),
        profile=np.ones((4 * count, 1), np.float32),
        history=np.zeros((4 * count, 5), np.int32),
        exposed=exposed[:, :3].astype(np.int32),
        response=liked.reshape(-1, 3).astype(np.float32),
        session=np.repeat(np.arange(count), 4),
        step=np.tile(np.arange(4), count),
      )
    # The rows of a log may lie in any order.
    splits["test"] = jax.tree.map(lambda x: x[::-1], splits["test"])
    names = [""] * 9
    genres = ["", *["a|b", "c"] * 4]
    items = source.Items(np.eye(9, dtype=np.float32), names, names, genres)
    dataset = source.Dataset(items, splits)
    plain = {"click_model": "attention", "epochs": 1}
    quality, config, params = self._run(dataset, **plain, boredom="fitted")
    without = self._run(dataset, **plain)[0]
    self.assertGreater(without["test"]["log_loss"], 0.6)
    # By the rule itself 0.39.
    self.assertLess(quality["test"]["log_loss"], 0.45)
    self.assertGreater(quality["test"]["auc"], 0.77)  # At best 0.81.
    logs = splits["test"]
    first = logs.step == 0
    p = np.full(logs.exposed.shape, 0.3)
    p = boredom.predicted(params.boredom, dataset, logs, p)
    after = np.zeros(len(first), bool)
    after[:-1] = (logs.response.any(-1) & (logs.step < 3))[1:]
    self.assertLess(p[after].mean(), 0.1)
    self.assertGreater(p[first].mean(), 0.3)
    env = user_simulator.make(config, 3, topics=3)
    self.assertEqual(env.dynamics.topics, 3)

  def test_logs_that_say_nothing_of_boredom_are_refused(self):
    world = self_selected.world()
    with self.assertRaisesRegex(InputError, "no item has a category"):
      boredom.check(world)
    items = world.items._replace(genres=["", *["a"] * 300])
    world = world._replace(items=items)
    one = world.splits["train"]
    one = one._replace(session=np.arange(len(one.user_id)))
    one = world._replace(splits=world.splits | {"train": one})
    with self.assertRaisesRegex(InputError, "each session of the logs has one"):
      boredom.check(one)
    about = feedback.Feedback("implicit", "uniform", 3, None, 0)
    drawn = world._replace(items=items._replace(feedback=about))
    with self.assertRaisesRegex(InputError, "negatives were drawn, which"):
      boredom.check(drawn)
    boredom.check(world)

  def test_a_rate_of_likes_that_nobody_knows_is_not_claimed(self):
    world = self_selected.world()
    about = feedback.Feedback("implicit", "uniform", 3, None, 0)
    world = world._replace(items=world.items._replace(feedback=about))
    network = mock.Mock()
    network.apply.return_value = np.zeros(4, np.float32)
    config = SimulatorConfig(click_model="mocked")
    with mock.patch.dict(
      click_model.CLICK_MODELS, {"mocked": lambda config: network}
    ):
      params = simulator._params(world, {}, None)
      self.assertIsNone(params.shift)
      quality = simulator._judged(config, params, world)
      self.assertFalse(quality["claims_rates"])
      known = about._replace(base_rate=0.2)
      world = world._replace(items=world.items._replace(feedback=known))
      quality = simulator._judged(config, params, world)
      self.assertTrue(quality["claims_rates"])


if __name__ == "__main__":
  absltest.main()
