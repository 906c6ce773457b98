"""Topics and distances of a run's items, and what is refused without them."""

import dataclasses
import pathlib
import types

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.config import DataConfig, SimulatorConfig
from hsrl_jax.data import source
from hsrl_jax.errors import InputError
from hsrl_jax.sim import dynamics, fatigue, leave
from hsrl_jax.stages.parts import Parts
from tests import toy


def _parts(genres, truth=None, **simulator):
  """Parts of a run whose users are shown one item at a time."""
  simulator = SimulatorConfig(slate_size=1, **simulator)
  config = dataclasses.replace(
    toy.config(), simulator=simulator, data=DataConfig(truth=truth)
  )
  parts = Parts(config, pathlib.Path("nowhere"))
  items = types.SimpleNamespace(features=np.zeros((4, 2)), genres=genres)
  splits = {"train": types.SimpleNamespace(exposed=np.zeros((1, 1)))}
  parts.dataset = types.SimpleNamespace(items=items, splits=splits)
  return parts


class TopicsTest(parameterized.TestCase):
  def test_worlds_by_flags(self):
    parts = _parts(["", "a", "a|b", ""], boredom="all", leave="boredom")
    self.assertEqual(
      parts.env.dynamics, dynamics.TopicBoredom(2, True, 10, 5, 5)
    )
    self.assertEqual(parts.env.leave, leave.BoredomRule(5, 2))
    np.testing.assert_array_equal(parts.topics.of_items, [0, 1, 2, 0])
    parts.response = types.SimpleNamespace(
      blend=None, item_features=np.zeros((4, 2))
    )
    rows = types.SimpleNamespace(profile=[[0.0]], history=[[1]])
    parts.dataset.splits["test"] = rows
    users = parts.users("test")
    np.testing.assert_array_equal(users.topics, [0, 1, 2, 0])
    np.testing.assert_array_equal(
      users.categories, [[0, 0], [1, 0], [1, 1], [0, 0]]
    )

  def test_who_tires(self):
    """What is alike is of the dataset's features; agents see others' likes."""
    rng = np.random.default_rng(0)
    train = types.SimpleNamespace(
      user_id=np.arange(12),
      history=np.zeros((12, 1), int),
      exposed=np.tile(np.arange(1, 9), (12, 1)),
      response=rng.random((12, 8)) < 0.5,
    )
    items = source.Items(
      np.pad(rng.normal(size=(8, 2)), ((1, 0), (0, 0))),
      *([""] * 9 for _ in range(2)),
      ["", *"aabbabab"],
    )
    known = {}
    for kind in ("fatigue", "fatigue_fine"):
      parts = _parts([], boredom=kind, fatigue_scale=2.0)
      quantizer = dataclasses.replace(
        parts.config.quantizer, topic_weight=2.0, likes_weight=3.0
      )
      parts.config = dataclasses.replace(parts.config, quantizer=quantizer)
      parts.dataset = source.Dataset(items, {"train": train})
      self.assertEqual(parts.env.dynamics, fatigue.Fatigue(1.5, 2.0))
      known[kind] = parts.kernel
      seen = fatigue.seen(train, 8)
      topics = 2.0 * np.array([[x == "a", x == "b"] for x in items.genres])
      np.testing.assert_allclose(
        parts.items.features,
        np.concatenate([items.features, topics, 3.0 * seen], 1),
        rtol=1e-5,
      )
    plain = fatigue.kernel(train, items.features)
    np.testing.assert_array_equal(known["fatigue"], plain)
    self.assertGreater(np.abs(known["fatigue_fine"] - plain).max(), 0.1)

  def test_leaving_by_distance(self):
    parts = _parts([""] * 4, leave="distance", leave_window=7)
    self.assertEqual(parts.env.leave, leave.DistanceRule(7))
    features = np.array([[0.0, 0], [0, 1], [0, 2], [0, 9]])
    parts.dataset.items.features = features
    # Distances 1, 7 and 8: below the 30th percentile is the least of them.
    near = np.zeros((4, 4), bool)
    near[1:, 1:] = np.eye(3)
    near[1, 2] = near[2, 1] = True
    np.testing.assert_array_equal(parts.near.pairs, near)
    self.assertIsNone(_parts([""] * 4).near)
    parts = _parts([""] * 2, leave="distance")
    parts.dataset.items.features = features[:2]
    with self.assertRaisesRegex(InputError, "has 1 item; expected at least 2"):
      _ = parts.near

  def test_a_matrix_of_ratings(self):
    """It scores sessions, decides the distances, and only the later stages."""
    path = pathlib.Path(self.create_tempdir()) / "matrix.npy"
    np.save(path, np.array([[1.0, 2, 5], [2, 2, 4]]))
    own = {"leave": "distance", "truth": str(path)}
    parts, plain = _parts([""] * 4, **own), _parts([""] * 4, leave="distance")
    users = types.SimpleNamespace(user_id=np.array([2, 1]))
    parts.dataset.splits["train"] = users
    # Columns of films: (1, 2), (2, 2), (5, 4), so distances 1, 4.5 and 3.6.
    near = np.zeros((4, 4), bool)
    near[1:, 1:] = np.eye(3)
    near[1, 2] = near[2, 1] = True
    np.testing.assert_array_equal(parts.near.pairs, near)
    for stage, same in (("simulator", True), ("data", True), ("policy", False)):
      named = parts.fingerprints[stage] == plain.fingerprints[stage]
      self.assertEqual(named, same)
    np.save(path, np.array([[1.0, 2, 5], [2, 2, 3]]))
    other = _parts([""] * 4, **own)
    self.assertNotEqual(
      other.fingerprints["policy"], parts.fingerprints["policy"]
    )

  @parameterized.parameters(
    ({"truth": "nowhere.npy"}, "nowhere.npy is missing; expected an .npy file"),
    ({"truth": __file__, "leave": "patience"}, "leave=patience.*expected none"),
    ({"truth": __file__, "boredom": "all"}, "boredom=all.*expected none"),
  )
  def test_a_matrix_that_does_not_fit(self, simulator, error):
    with self.assertRaisesRegex(InputError, error) as caught:
      _parts([""] * 4, **{"leave": "length", **simulator})
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_by_default_there_are_none(self):
    parts = _parts(["", "a", "a|b", ""])
    self.assertIsNone(parts.topics)
    self.assertIsNone(parts.env.dynamics)
    self.assertEqual(parts.env.leave, leave.Patience(20.0))

  @parameterized.parameters({"boredom": "topic"}, {"leave": "boredom"})
  def test_items_without_categories_are_refused(self, **simulator):
    ((name, value),) = simulator.items()
    with self.assertRaisesRegex(
      InputError,
      f"--simulator_{name}={value}.*no item of movielens.* has a category; exp",
    ) as caught:
      _ = _parts(["", "", "", ""], **simulator).env
    self.assertLen(str(caught.exception).splitlines(), 1)


if __name__ == "__main__":
  absltest.main()
