"""The served policy acts as the live one, with jax and numpy alone."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import serving
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.errors import InputError
from hsrl_jax.serving import folder as folder_lib
from tests import toy
from tests.serving import toy_export

# What jax itself installs, and the reader of its serialized format.
_NEEDED = (
  "jax",
  "jaxlib",
  "numpy",
  "scipy",
  "ml_dtypes",
  "opt_einsum",
  "flatbuffers",
  "hsrl_jax",
)
_ALONE = """
import json
from hsrl_jax import serving

recommender = serving.load({folder!r}, [4])
history, profile, seen = {requests!r}
slates = recommender.recommend(history, profile, seen)
changed = recommender.catalogue.remove_items([slates.items[0, 0]])
changed = changed.add_items([41], changed.features[3:4], titles=["new"])
again = recommender.with_catalogue(changed).recommend(history, profile, seen)
print(json.dumps([slates.items.tolist(), again.items.tolist()]))
"""


class RecommenderTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp())
    cls.export = cls.folder / "export"
    cls.exported = toy_export.make(cls.export, platforms=("cpu", "cuda", "tpu"))
    cls.recommender = serving.load(cls.export)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.folder)
    super().tearDownClass()

  def _copy(self):
    target = pathlib.Path(self.create_tempdir().full_path) / "export"
    shutil.copytree(self.export, target)
    return target

  def _check_as_live(self, recommender, exported, catalogue, counts=(6,)):
    requests = toy_export.requests(max(counts))
    items, log_probs = exported.live(catalogue, *toy_export.padded(*requests))
    for count in counts:
      slates = recommender.recommend(*(x[:count] for x in requests))
      np.testing.assert_array_equal(slates.items, items[:count])
      np.testing.assert_allclose(slates.log_probs, log_probs[:count], atol=1e-5)
      np.testing.assert_array_equal(
        slates.sids, catalogue.index.sids[items[:count]]
      )
      self.assertTrue(slates.valid.all())
      for row, seen in zip(slates.items, requests[2][:count], strict=True):
        self.assertEmpty(set(row.tolist()) & set(seen))

  def test_any_number_of_users_as_the_live_policy(self):
    self._check_as_live(
      self.recommender, self.exported, self.exported.catalogue, (1, 3, 4, 9)
    )

  @parameterized.parameters(
    (dict(beams=3), 1),
    (dict(without=("item_residual",)), 1),
    (dict(agent="popularity"), 10**6),
    (dict(agent="ddpg"), 10**6),
  )
  def test_other_policies(self, overrides, search_from):
    with mock.patch.object(hsrl, "SEARCH_FROM", search_from):
      exported = toy_export.make(self.folder / "other", **overrides)
      recommender = serving.load(self.folder / "other", [4])
      self._check_as_live(recommender, exported, exported.catalogue)

  def test_what_a_request_tells_is_not_recommended_again(self):
    folder = self.folder / "no repeat"
    made = toy_export.make(folder, repeat=False)
    recommender = serving.load(folder, [1])
    profile, earlier = [0.0] * toy.GROUPS, [([9, 11], [1, 0]), ([12], [0])]
    query = recommender.query([3, 7], profile, [5], earlier=earlier)
    # The newest first; the oldest like has no room.
    self.assertEqual(query.seen.tolist(), [5, 12, 11, 9, 7])
    history = np.array([[0] * (toy.HISTORY - 2) + [3, 7]])
    items, _ = made.live(
      made.catalogue, history, [profile], [[5, 12, 11, 9, 7]]
    )
    found = recommender.decode([query]).items
    np.testing.assert_array_equal(found, items)
    again = self.recommender.query([3, 7], profile, [5], earlier=earlier)
    self.assertEqual(again.seen.tolist(), [5, 0, 0, 0, 0])

  def test_no_users(self):
    slates = self.recommender.recommend([], [], [])
    self.assertEqual(slates.items.shape, (0, toy.SLATE))
    self.assertEqual(slates.sids.shape, (0, toy.SLATE, 2))

  def test_one_artefact_for_all_platforms(self):
    data = folder_lib.read_file(self.export, self.exported.manifest, "decode")
    exported = jax.export.deserialize(bytearray(data))
    self.assertEqual(exported.platforms, ("cpu", "cuda", "tpu"))
    # What XLA itself does not know would be missing elsewhere.
    calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    self.assertLessEqual(calls, {"shape_assertion"})
    self.assertNotIn(b".py", data)  # Nor where it was written.

  def test_an_export_of_this_format_stays_readable(self):
    # A new format needs a new folder: an export of the version that brings it,
    # with requests and what it answers.
    folder = pathlib.Path(__file__).parent / f"format_{folder_lib.FORMAT}"
    saved = json.loads((folder / "expected.json").read_text())
    recommender = serving.load(folder, [4])
    queries = [
      recommender.query(*x, **more)
      for *x, more in zip(*saved["requests"], saved["more"], strict=True)
    ]
    slates = recommender.decode(queries)
    np.testing.assert_array_equal(slates.items, saved["items"])
    log_probs = np.where(slates.valid, slates.log_probs, 0.0)
    np.testing.assert_allclose(log_probs, saved["log_probs"], atol=1e-4)

  def test_items_come_and_go_without_a_new_export(self):
    folder = self._copy()
    recommender = serving.load(folder, [4])
    before = recommender.recommend(*toy_export.requests(6))
    gone = sorted(set(before.items.ravel().tolist()))
    # Newcomers like those that go, so that they are wanted.
    ids = toy.ITEMS + np.array([3, 1, 4])
    features = self.exported.catalogue.features[gone[:3]] * 1.01
    catalogue = self.exported.catalogue.remove_items(gone).add_items(
      ids, features, titles=["a", "b", "ç"]
    )
    serving.write_catalogue(folder, catalogue)
    for changed in (
      recommender.refreshed(folder),
      recommender.with_catalogue(catalogue),
      serving.load(folder, [4]),
    ):
      self._check_as_live(changed, self.exported, catalogue)
      shown = set(changed.recommend(*toy_export.requests(6)).items.flat)
      self.assertEmpty(shown & set(gone))
      self.assertNotEmpty(shown & set(ids.tolist()))
    # Removed items stay in histories; the old recommender is as it was.
    self.assertIsNotNone(changed.query(gone, [0.0] * toy.GROUPS))
    np.testing.assert_array_equal(
      recommender.recommend(*toy_export.requests(6)).items, before.items
    )
    read = folder_lib.read_catalogue(folder, folder_lib.read_manifest(folder))
    jax.tree.map(
      np.testing.assert_array_equal, read.arrays(), catalogue.arrays()
    )
    for item, title in zip(ids, ("a", "b", "ç"), strict=True):
      self.assertEqual(read.titles.of(item), title)
    self.assertEqual(read.titles.of(42), "")
    self.assertEqual(read.titles.of(7), "Título 7")
    self.assertEqual(read.item_ids.of(44), "44")
    self.assertEqual(read.item_ids.of(40), "id-40")
    self.assertEqual(read.titles.of(48), "")
    # It comes back as it was.
    back = catalogue.add_items(gone[:1], np.zeros((1, features.shape[1])))
    np.testing.assert_array_equal(
      back.features[gone[0]], self.exported.catalogue.features[gone[0]]
    )

  def test_fewer_items_than_a_slate_invent_none(self):
    catalogue = self.exported.catalogue
    catalogue = catalogue.remove_items(
      [i for i in range(1, toy.ITEMS + 1) if i not in (5, 9)]
    )
    slates = self.recommender.with_catalogue(catalogue).recommend(
      [[1], [1]], [[0.0] * toy.GROUPS] * 2, [[], [9, 7]]
    )
    self.assertCountEqual(slates.items[0], [5, 9, 0])
    self.assertEqual(slates.items[1].tolist(), [5, 0, 0])
    np.testing.assert_array_equal(slates.valid, slates.items > 0)
    np.testing.assert_array_equal(np.isinf(slates.log_probs), ~slates.valid)
    self.assertTrue((slates.sids[~slates.valid] == -1).all())

  @pytest.mark.slow
  def test_another_export_takes_over_if_it_takes_the_same_requests(self):
    folder = self._copy()
    recommender = serving.load(folder, [4])
    # Parameters alone: the artefact is the same and not compiled again.
    other = toy_export.make(folder, salt=2, platforms=("cpu", "cuda", "tpu"))
    with mock.patch.object(jax, "jit", side_effect=AssertionError):
      changed = recommender.refreshed(folder)
    self._check_as_live(changed, other, other.catalogue)
    other = toy_export.make(folder, salt=3, without=("item_residual",))
    changed = changed.refreshed(folder)
    self.assertEqual(changed.batch_sizes, (4,))
    self._check_as_live(changed, other, other.catalogue)
    sizes = other.manifest.sizes | {"seen": 9}
    folder_lib.write_manifest(
      folder, dataclasses.replace(other.manifest, sizes=sizes)
    )
    with self.assertRaisesRegex(InputError, "has seen 9"):
      changed.refreshed(folder)

  def test_catalogues_that_do_not_fit_are_refused(self):
    catalogue = self.exported.catalogue
    small = serving.make_catalogue(
      catalogue.index,
      catalogue.codebooks,
      catalogue.features,
      [""] * 49,
      [""] * 49,
      capacity=50,
    )
    other = catalogue._replace(codebooks=catalogue.codebooks + 1)
    for bad, what in ((small, "capacity 50"), (other, "codebooks")):
      with self.assertRaisesRegex(InputError, what):
        self.recommender.with_catalogue(bad)
      with self.assertRaisesRegex(InputError, what):
        serving.write_catalogue(self.export, bad)
    with self.assertRaisesRegex(InputError, "item 49 is beyond"):
      catalogue.add_items([49], catalogue.features[:1])
    with self.assertRaisesRegex(InputError, "item 3 is active already"):
      catalogue.add_items([3], catalogue.features[:1])
    with self.assertRaisesRegex(InputError, "item 45 is not active"):
      catalogue.remove_items([45])

  @parameterized.parameters("decode", "policy", "catalogue", "manifest")
  def test_damaged_and_missing_files_are_named(self, role):
    folder = self._copy()
    name = folder_lib.MANIFEST
    if role != "manifest":
      name = self.exported.manifest.files[role].name
    path = folder / name
    whole = path.read_bytes()
    flipped = bytes([whole[0] ^ 1])
    for damaged in (flipped + whole[1:], whole[: len(whole) // 2], b"", None):
      path.unlink()
      if damaged is not None:
        path.write_bytes(damaged)
      with self.assertRaisesRegex(InputError, re.escape(str(path))):
        serving.load(folder)
      if damaged is None:
        break

  def test_other_versions_and_platforms_are_refused(self):
    folder = self._copy()
    path = folder / folder_lib.MANIFEST
    values = json.loads(path.read_text())
    for change, what in (
      ({"format": 1}, "manifest.json has format 1; expected 5: another"),
      ({"format": 6}, "manifest.json has format 6; expected 5: another"),
      ({"platforms": ["tpu"]}, "is for tpu, and this is cpu"),
      ({"files": {}}, "cannot be read"),
    ):
      path.write_text(json.dumps(values | change))
      with self.assertRaisesRegex(InputError, what):
        serving.load(folder)

  @parameterized.parameters(
    (([41],), "history holds 41, which is no known item"),
    (([0],), "history holds 0"),
    (([-1],), "history holds -1"),
    (([49],), "expected ids from 1 to 48"),
    (([1.0],), "history holds 1.0; expected item ids"),
    (([True],), "history holds True"),
    ((["x" * 99],), "history holds 'x+\\.\\.\\."),
    (([1], [0.0]), "profile has 1 numbers; expected 4"),
    (([1], [0.0, 0.0, 0.0, float("nan")]), "expected finite"),
    (([1], [0.0, 0.0, 0.0, 1e300]), "expected finite"),
    (([1], [0.0, 0.0, 0.0, 10**400]), "expected finite"),
    (([1], [0.0, 0.0, 0.0, None]), "profile holds None"),
    (([1], [0.0] * 4, [2] * 6), "seen has 6 ids; expected 5 at most"),
    (([1], [0.0] * 4, [47]), "seen holds 47"),
  )
  def test_bad_requests_say_why(self, request, what):
    request = (
      (request[0], *request[1:]) if request[1:] else (request[0], [0.0] * 4)
    )
    with self.assertRaisesRegex(InputError, what):
      self.recommender.query(*request)
    rows = [[[1], request[0]], [[0.0] * 4, request[1]]]
    rows.append([[], *request[2:]] if request[2:] else [[], []])
    with self.assertRaisesRegex(InputError, "user 1: .*" + what):
      self.recommender.recommend(*rows)

  def test_jax_and_numpy_are_enough(self):
    requests = toy_export.requests(3)
    script = _ALONE.format(folder=str(self.export), requests=requests)
    packages = pathlib.Path(self.create_tempdir().full_path)
    for name in _NEEDED:
      place = pathlib.Path(importlib.util.find_spec(name).origin).parent
      (packages / name).symlink_to(place)
      libraries = place.with_name(f"{name}.libs")
      if libraries.exists():
        (packages / libraries.name).symlink_to(libraries)
    environment = dict(os.environ, PYTHONPATH=str(packages))
    environment.pop("XLA_FLAGS", None)
    ran = subprocess.run(
      [sys.executable, "-S", "-c", script],  # No other packages.
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(ran.returncode, 0, ran.stderr)
    items, again = json.loads(ran.stdout)
    want = self.recommender.recommend(*requests).items
    np.testing.assert_array_equal(items, want)
    self.assertNotIn(want[0, 0], np.asarray(again))


if __name__ == "__main__":
  absltest.main()
