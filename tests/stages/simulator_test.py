"""The URM's fit, its quality and one trained elsewhere, against NumPy,
scikit-learn and by hand."""

import dataclasses
import json
import pathlib
import tempfile

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics

from hsrl_jax import config as config_lib
from hsrl_jax.config import SimulatorConfig
from hsrl_jax.data import source
from hsrl_jax.errors import InputError
from hsrl_jax.sim import response_file
from hsrl_jax.stages import simulator
from hsrl_jax.types import Sessions


def _logs(rows=256, seed=0):
  """Users like items whose first feature has the sign of their profile."""
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(21, 3)).astype(np.float32)
  features[0] = 0
  profile = rng.choice([-1.0, 1.0], size=(rows, 1)).astype(np.float32)
  exposed = np.stack([rng.permutation(20)[:4] + 1 for _ in range(rows)])
  chance = 1 / (1 + np.exp(-4 * features[exposed, 0] * profile))
  return features, Sessions(
    user_id=np.arange(rows) % 32,
    profile=profile,
    history=rng.integers(1, 21, size=(rows, 5)).astype(np.int32),
    exposed=exposed.astype(np.int32),
    response=(rng.random((rows, 4)) < chance).astype(np.float32),
  )


class SimulatorTest(parameterized.TestCase):
  def test_quality_is_that_of_scikit_learn(self):
    rng = np.random.default_rng(1)
    p = rng.random((30, 5))
    y = (rng.random((30, 5)) < p).astype(float)
    users = np.repeat(np.arange(6), 5)
    got = simulator.quality(p, y, users)
    self.assertAlmostEqual(
      got["auc"], metrics.roc_auc_score(y.ravel(), p.ravel())
    )
    self.assertAlmostEqual(
      got["log_loss"], -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    )
    within = [
      metrics.roc_auc_score(y[users == u].ravel(), p[users == u].ravel())
      for u in range(6)
    ]
    self.assertAlmostEqual(got["auc_within_users"], np.mean(within))

  def test_calibration_error_by_hand(self):
    # Bin 0.2: said 0.25, was 0.5. Bin 0.9: said 0.95, was 1. Half each.
    p = np.array([[0.25, 0.25, 0.95, 0.95]])
    y = np.array([[1.0, 0, 1, 1]])
    got = simulator.quality(p, y, np.zeros(1))
    self.assertAlmostEqual(got["calibration_error"], 0.5 * 0.25 + 0.5 * 0.05)

  def test_no_auc_where_all_responses_are_alike(self):
    got = simulator.quality(np.full((2, 3), 0.9), np.ones((2, 3)), np.arange(2))
    self.assertSetEqual(set(got), {"log_loss", "calibration_error"})

  def test_fit_learns_and_resumes_to_the_same_bits(self):
    features, train = _logs()
    config = SimulatorConfig(
      features=4,
      hidden=16,
      dropout=0.1,
      epochs=8,
      batch_size=32,
      learning_rate=1e-2,
    )
    fit = simulator.make_fit(config, features, train)
    straight = fit.init()
    for epoch in range(config.epochs):
      if epoch == 3:
        kept = jax.tree.map(np.asarray, straight)
      straight, _ = fit.epoch(straight)
    again = simulator.make_fit(config, features, train)
    resumed = jax.tree.map(jax.numpy.asarray, kept)
    for _ in range(3, config.epochs):
      resumed, _ = again.epoch(resumed)
    chex.assert_trees_all_equal(resumed, straight)
    _, test = _logs(seed=2)
    test = test._replace(profile=test.profile)
    p = fit.predict(straight.params, test)
    # The test users' items are drawn anew, with the features of the fit.
    chance = 1 / (1 + np.exp(-4 * features[test.exposed, 0] * test.profile))
    self.assertGreater(np.corrcoef(np.ravel(p), chance.ravel())[0, 1], 0.9)

  def test_keep_best_keeps_the_best(self):
    features, train = _logs(rows=64)
    fit = simulator.make_fit(
      SimulatorConfig(features=2, hidden=4, epochs=2), features, train
    )
    first, _ = fit.epoch(fit.init())
    first = fit.keep_best(first, 0.5)
    second, _ = fit.epoch(first)
    worse = fit.keep_best(second, 0.6)
    chex.assert_trees_all_equal(worse.best_params, first.params)
    better = fit.keep_best(second, 0.4)
    chex.assert_trees_all_equal(better.best_params, second.params)
    self.assertAlmostEqual(float(better.best_loss), 0.4)

  def test_env_has_the_protocol(self):
    config = SimulatorConfig(protocol="no_repeat")
    self.assertTrue(simulator.make_env(config, 3).no_repeat)
    config = dataclasses.replace(config, protocol="paper")
    self.assertFalse(simulator.make_env(config, 3).no_repeat)

  @parameterized.parameters(*dataclasses.fields(SimulatorConfig))
  def test_fingerprint_of_the_fit_is_of_its_fields_only(self, field):
    other = {
      "heads": 4,
      "final_dense": False,
      "protocol": "no_repeat",
      "sweet_point": 0.5,
      "slate_size": 7,
    }.get(field.name)
    if other is None:
      other = field.default + (0.1 if field.type is float else 2)
    changed = dataclasses.replace(SimulatorConfig(), **{field.name: other})
    same = config_lib.fingerprint(changed.of_fit()) == config_lib.fingerprint(
      SimulatorConfig().of_fit()
    )
    # What make_env takes besides the network.
    of_sessions = field.name in simulator.UserSimulator._fields
    self.assertEqual(same, of_sessions or field.name == "protocol")


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
  """The click model of DESIGN, section 4, for one user, in matrix code."""

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


class ModelOfAFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )
    self.path = self.workdir / "urm.npz"

  def _given(self, final_dense, heads=2):
    np.savez(self.path, **_matrices(final_dense))
    given = response_file.read(self.path, final_dense=final_dense)
    config = SimulatorConfig(12, heads=heads, final_dense=final_dense)
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
    env = simulator.make_env(config, 6)
    users = simulator.pool(
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
    copy = response_file.read(folder / simulator.GIVEN, final_dense=False)
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

  def test_heads_must_divide(self):
    with self.assertRaisesRegex(
      InputError, "--simulator_heads is 4; expected a divisor of features = 6"
    ):
      self._given(True, heads=4)


if __name__ == "__main__":
  absltest.main()
