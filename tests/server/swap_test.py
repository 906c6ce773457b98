"""A served folder changes: what is damaged or does not fit is refused."""

import asyncio
import dataclasses
import io
import json
import os
import pathlib
import shutil
import tempfile
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import serving
from hsrl_jax.errors import InputError
from hsrl_jax.server.batches import Server
from hsrl_jax.server.settings import Settings
from hsrl_jax.serving import folder as folder_lib
from tests.serving import toy_export


def _arrays(data):
  with np.load(io.BytesIO(data)) as arrays:
    return dict(arrays)


def _bytes(arrays):
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  return buffer.getvalue()


def _cut(arrays):
  name = max(arrays, key=lambda x: arrays[x].ndim)
  return arrays | {name: arrays[name][:-1]}


def _one_value(value):
  def change(arrays):
    name = max(arrays, key=lambda x: arrays[x].ndim)
    changed = arrays[name].copy()
    changed.ravel()[0] = value
    return arrays | {name: changed}

  return change


def _without_first(arrays):
  return dict(list(arrays.items())[1:])


def _put(name, change):
  return lambda arrays: arrays | {name: change(arrays)}


# (role, change of the file's arrays, words of the message).
DAMAGES = (
  ("policy", _cut, "expected float32"),
  ("policy", _one_value(np.nan), "not finite"),
  ("policy", _one_value(np.inf), "not finite"),
  ("policy", _without_first, "nothing for the array"),
  ("policy", _put("more", lambda x: np.zeros(3)), "expected nothing"),
  (
    "policy",
    lambda x: {k: v.astype(np.float64) for k, v in x.items()},
    "float64",
  ),
  (
    "catalogue",
    _put("popularity", lambda x: np.ones(len(x["items"]), np.float32)),
    "'popularity'",
  ),
  ("catalogue", _put("more", lambda x: np.zeros(3)), "'more'"),
  (
    "catalogue",
    _put("titles_utf8", lambda x: np.full_like(x["titles_utf8"], 0xFF)),
    "UnicodeDecodeError",
  ),
  (
    "catalogue",
    # "Título": the byte after the T begins a character of two.
    _put("titles_ends", lambda x: x["titles_ends"] - 6),
    "texts end",
  ),
  (
    "catalogue",
    _put("titles_ends", lambda x: np.roll(x["titles_ends"], 1)),
    "texts end",
  ),
  ("catalogue", _put("features", lambda x: x["features"][:1]), "features are"),
  ("catalogue", _put("features", lambda x: x["features"][:, 1:]), "features"),
  (
    "catalogue",
    _put("features", lambda x: x["features"] * np.float32(np.nan)),
    "features are not finite",
  ),
  ("catalogue", _put("tokens", lambda x: x["tokens"][::-1][:, :1]), "SID"),
)


class SwapTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(tempfile.mkdtemp())
    cls.export = cls.root / "export"
    toy_export.make(cls.export)
    cls.recommender = serving.load(cls.export, [4])

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.root)
    super().tearDownClass()

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / "export"
    shutil.copytree(self.export, self.folder)

  def _write(self, role, change):
    """Changes the arrays of a file, and names it in the manifest."""
    manifest = folder_lib.read_manifest(self.folder)
    arrays = _arrays(folder_lib.read_file(self.folder, manifest, role))
    name = f"changed-{role}.npz"
    file = folder_lib.add_file(self.folder, name, _bytes(change(arrays)))
    folder_lib.write_manifest(
      self.folder,
      dataclasses.replace(manifest, files=manifest.files | {role: file}),
    )

  def _check_refused(self, words):
    for take in (self.recommender.refreshed, serving.load):
      with self.assertRaisesRegex(InputError, words) as caught:
        take(self.folder)
      self.assertLen(str(caught.exception).splitlines(), 1)

  @parameterized.parameters(*DAMAGES)
  def test_damaged_candidates_are_refused(self, role, change, words):
    self._write(role, change)
    self._check_refused(words)

  def test_what_gives_no_slate_is_refused(self):
    # All numbers are finite, and what they give is not.
    self._write(
      "policy",
      lambda x: {k: np.full_like(v, 3e38) for k, v in x.items()},
    )
    self._check_refused("the policy answers")

  def test_what_fails_users_with_a_history_is_refused(self):
    def change(arrays):
      (name,) = [x for x in arrays if x.endswith("['item']['kernel']")]
      return arrays | {name: np.full_like(arrays[name], 3e38)}

    probe = serving.Recommender.probe
    with mock.patch.object(serving.Recommender, "probe"):
      self._write("policy", change)
      broken = self.recommender.refreshed(self.folder)
    newcomer, *others = broken.decode(broken.probes()).valid
    self.assertTrue(newcomer.all())
    self.assertFalse(np.any(others))
    with self.assertRaisesRegex(InputError, "the policy answers"):
      probe(broken)
    self._check_refused("the policy answers")

  def test_probes_are_of_all_kinds(self):
    asked = self.recommender.probes()
    sizes = self.recommender.manifest.sizes
    counts = {int((x.history > 0).sum()) for x in asked}
    self.assertEqual(counts, {0, 1, sizes["history"]})
    ends = {float(y) for x in asked for y in x.profile}
    self.assertEqual(ends, {0.0, *toy_export.RANGES["profile"]})
    self.assertEqual({int(x.earlier.step) for x in asked}, {0, 2})
    self.assertEqual({float(x.temperature) for x in asked}, {0.0, 1.0})

  @parameterized.parameters(
    "../catalogue.npz", "/etc/passwd", "..", ".", "", "a/b", "a\0b", 7, None
  )
  def test_file_names_may_not_leave_the_folder(self, name):
    path = self.folder / folder_lib.MANIFEST
    values = json.loads(path.read_text())
    old = self.folder / values["files"]["catalogue"]["name"]
    shutil.copy(old, self.folder.parent / "catalogue.npz")
    values["files"]["catalogue"]["name"] = name
    path.write_text(json.dumps(values))
    self._check_refused("manifest.json cannot be read")

  @parameterized.parameters(
    ({"sizes": {}},),
    ({"batch_sizes": []},),
    ({"batch_sizes": [0]},),
    ({"batch_sizes": ["8"]},),
    ({"files": []},),
    ({"more": 1},),
    ({"ranges": {}},),
    ({"ranges": {"profile": [0, 1], "reward": [1, 0]}},),
    ({"ranges": {"profile": [0, 1], "reward": [0, float("nan")]}},),
    ({"ranges": {"profile": [0, 1, 2], "reward": [0, 1]}},),
  )
  def test_other_values_of_a_manifest_are_refused(self, change):
    path = self.folder / folder_lib.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    self._check_refused("manifest.json cannot be read")

  def test_sizes_that_are_not_those_of_the_artefact_are_refused(self):
    manifest = folder_lib.read_manifest(self.folder)
    sizes = manifest.sizes | {"slate": manifest.sizes["slate"] + 1}
    folder_lib.write_manifest(
      self.folder, dataclasses.replace(manifest, sizes=sizes)
    )
    self._check_refused("has slate 4; expected 3")

  @parameterized.parameters("manifest", "policy")
  def test_a_fifo_is_refused_at_once(self, role):
    manifest = folder_lib.read_manifest(self.folder)
    name = folder_lib.MANIFEST
    if role != "manifest":
      name = "fifo"
      file = manifest.files[role]._replace(name=name, sha256="0" * 64)
      folder_lib.write_manifest(
        self.folder,
        dataclasses.replace(manifest, files=manifest.files | {role: file}),
      )
    (self.folder / name).unlink(missing_ok=True)
    os.mkfifo(self.folder / name)
    self._check_refused("no regular file")

  def test_the_watch_goes_on_after_what_it_refuses(self):
    async def watch(server, changes):
      """Makes each change once the last one was looked at."""
      async with server.running(None):
        for change, counter in changes:
          before = counter._value.get()
          change()
          end = time.monotonic() + 60
          while counter._value.get() == before:
            self.assertLess(time.monotonic(), end)
            await asyncio.sleep(0.01)
        return await server.recommend(server.recommender.probes()[0])

    server = Server(self.recommender, Settings(self.folder, watch=0.01))
    manifest = self.folder / folder_lib.MANIFEST
    saved = manifest.read_bytes()

    def fifo():
      manifest.unlink()
      os.mkfifo(manifest)

    def good():
      manifest.unlink()
      manifest.write_bytes(saved)
      serving.write_catalogue(
        self.folder, self.recommender.catalogue.remove_items([1])
      )

    refused, taken = server.measures.swap_errors, server.measures.swaps
    changes = [
      (fifo, refused),
      (good, taken),
      (lambda: self._write("policy", _cut), refused),
    ]
    slate = asyncio.run(watch(server, changes))
    self.assertFalse(server.recommender.catalogue.index.active[1])
    self.assertTrue(slate.valid.all())


if __name__ == "__main__":
  absltest.main()
