"""Versions of an export: published, rolled back, served to shares of users."""

import asyncio
import atexit
import copy
import dataclasses
import functools
import json
import math
import pathlib
import shutil
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import serving
from hsrl_jax.config import ExportConfig
from hsrl_jax.errors import InputError
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.server import arms as arms_lib
from hsrl_jax.server import batches, measures
from hsrl_jax.server import store as store_lib
from hsrl_jax.server.settings import Settings
from hsrl_jax.server.store import Feedback, Slate, writer
from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.serving import versions
from hsrl_jax.stages import export as export_lib
from tests import toy
from tests.command import run
from tests.server import running
from tests.serving import toy_export

_TOKEN = {"Authorization": "Bearer open sesame"}
_USER = {"history": [1], "profile": [0.5, 0.0, 0.0, -1.0]}


def _publish(root, export):
  """Publishes a copy of an export; its number."""
  folder = versions.next_folder(root)
  shutil.copytree(export, folder)
  versions.publish(folder)
  return int(folder.name)


@functools.cache
def _exports():
  """Two exports that differ in their parameters."""
  root = pathlib.Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, root)
  folders = [root / "first", root / "second"]
  for salt, folder in enumerate(folders, 1):
    toy_export.make(folder, salt)
  return folders


class _WithFolder(parameterized.TestCase):
  """Tests with a folder for versions, which is missing at first."""

  def setUp(self):
    super().setUp()
    self.exports = _exports()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(root) / "export"


class VersionsTest(_WithFolder):
  def _policy(self, folder):
    return folder_lib.read_manifest(folder).files["policy"].sha256

  def test_forth_and_back(self):
    for number, salt in enumerate((0, 1, 0), 1):
      export = self.exports[salt]
      self.assertEqual(_publish(self.folder, export), number)
      self.assertEqual(self._policy(self.folder), self._policy(export))
    self.assertEqual(versions.numbers(self.folder), [1, 2, 3])
    self.assertEqual(versions.rollback(self.folder), 2)
    self.assertEqual(self._policy(self.folder), self._policy(self.exports[1]))
    # The next is no number that there was, and what it took over from is what
    # was served.
    self.assertEqual(_publish(self.folder, self.exports[0]), 4)
    self.assertEqual(folder_lib.read_pointer(self.folder), (4, 2))
    self.assertEqual([versions.rollback(self.folder) for _ in "ab"], [2, 1])
    with self.assertRaisesRegex(InputError, "no version before; expected"):
      versions.rollback(self.folder)
    self.assertEqual(folder_lib.read_pointer(self.folder), (1, None))
    shutil.rmtree(folder_lib.version_folder(self.folder, 2))
    self.assertEqual(_publish(self.folder, self.exports[0]), 5)

  def test_by_the_command(self):
    for export in self.exports:
      _publish(self.folder, export)
    workdir = self.folder.parent
    for where, words in (
      (f"--workdir={workdir}", f"export: {self.folder} serves version 1"),
      (f"--export_dir={self.folder}", "has no version before"),
      (f"--workdir={workdir}/none", "has no versions; expected the folder"),
      ("--export_batch_sizes=1", "needs --workdir or --export_dir; expected"),
    ):
      status, out, err = run("--mode=rollback", where)
      self.assertIn(words, out + err)
      self.assertEqual(status, 2 if err else 0)
      self.assertLessEqual(len(err.splitlines()), 1)

  def test_two_exports_at_once_do_not_take_the_same_number(self):
    wanted = ExportConfig(dir=str(self.folder))
    with (
      workdir_lib.locked(self.folder),
      self.assertRaisesRegex(InputError, "in use by process .*another folder$"),
    ):
      export_lib.run(mock.Mock(workdir=self.folder), wanted)
    self.assertFalse(self.folder.exists())

  def test_a_catalogue_is_of_the_version_that_is_served(self):
    for export in self.exports:
      _publish(self.folder, export)
    catalogue = serving.load(self.folder, [1]).catalogue.remove_items([3])
    serving.write_catalogue(self.folder, catalogue)
    self.assertFalse(serving.load(self.folder, [1]).catalogue.index.active[3])
    versions.rollback(self.folder)
    self.assertTrue(serving.load(self.folder, [1]).catalogue.index.active[3])

  @parameterized.parameters("mine.txt", "sids/x", "manifest.json")
  def test_folders_of_others_are_left(self, name):
    path = self.folder / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with self.assertRaises(InputError) as caught:
      versions.next_folder(self.folder)
    self.assertLen(str(caught.exception).splitlines(), 1)
    self.assertEqual([*self.folder.rglob("*.*")] or [path], [path])

  @parameterized.parameters("", "[]", "{}", '{"version": 0, "before": null}')
  def test_a_damaged_pointer_is_refused(self, text):
    _publish(self.folder, self.exports[0])
    (self.folder / "current").write_text(text)
    for take in (serving.load, versions.rollback, versions.next_folder):
      with self.assertRaisesRegex(InputError, "current cannot be read"):
        take(self.folder)


class ArmsTest(_WithFolder):
  def test_shares_are_stable_and_as_large_as_asked(self):
    users = [f"user {i}" for i in range(4_000)]
    first = {x for x in users if arms_lib.share_of(x, "7") < 0.1}
    # Five standard errors of a binomial share.
    self.assertAlmostEqual(len(first) / 4_000, 0.1, delta=0.024)
    self.assertEqual(
      first, {x for x in users if arms_lib.share_of(x, "7") < 0.1}
    )
    second = {x for x in users if arms_lib.share_of(x, "8") < 0.1}
    self.assertLess(len(first & second), len(first) / 3)

  def test_a_canary_gets_the_newest_until_it_is_rolled_back(self):
    for export in self.exports:
      _publish(self.folder, export)
    settings = {"folder": self.folder, "canary": 0.5}
    settings |= {"store": str(self.folder.parent / "store.db")}
    arms = arms_lib.load(Settings(ids="rows", **settings))
    want = {
      arm: serving.load(export, [1]).recommend(
        [_USER["history"]], [_USER["profile"]]
      )
      for arm, export in zip(("stable", "canary"), self.exports, strict=True)
    }
    self.assertNotEqual(*(x.items.tolist() for x in want.values()))

    def ask(user):
      return running.ask(port, user_id=user, **_USER)[1]

    opened = store_lib.open_store(settings["store"])
    with running.serving(arms, opened, "open sesame", **settings) as (
      server,
      _,
      port,
    ):
      answers = [ask(user) for user in range(40)]
      self.assertEqual(
        [ask(user)["arm"] for user in range(40)], [x["arm"] for x in answers]
      )
      self.assertEqual({x["arm"] for x in answers}, {"stable", "canary"})
      for user, answer in enumerate(answers):
        is_canary = arms_lib.share_of(str(user), "2") < 0.5
        self.assertEqual(answer["arm"], "canary" if is_canary else "stable")
        self.assertEqual(answer["version"], "2" if is_canary else "1")
        self.assertEqual(answer["items"], want[answer["arm"]].items[0].tolist())
        likes = [1, 1, is_canary]
        given = {"request_id": answer["request_id"], "responses": likes}
        self.assertEqual(running.post(port, "/feedback", given)[0], 200)
      values = running.metrics(port)
      for arm, version, mean in (("stable", 1, 2.0), ("canary", 2, 3.0)):
        labels = f'{{arm="{arm}",version="{version}"}}'
        self.assertEqual(values[f"hsrl_reward{labels}"], mean)
        count = sum(x["arm"] == arm for x in answers)
        self.assertEqual(values[f"hsrl_reward_users{labels}"], count)
      # Back, for everybody.
      status, answer = running.post(port, "/admin/rollback", {}, _TOKEN)
      self.assertEqual((status, answer), (200, {"version": 1}))
      running.until(lambda: server.arms.canary is None)
      self.assertEqual({ask(user)["version"] for user in range(40)}, {"1"})
      status, answer = running.post(port, "/admin/rollback", {}, _TOKEN)
      self.assertEqual(status, 409, answer)
      # A new one is tried again, and then given to all.
      _publish(self.folder, self.exports[1])
      running.until(lambda: server.arms.canary is not None)
      self.assertEqual({ask(x)["version"] for x in range(40)}, {"1", "3"})
      status, answer = running.post(port, "/admin/promote", {}, _TOKEN)
      self.assertEqual((status, answer), (200, {"version": 3}))
      running.until(lambda: server.arms.canary is None)
      self.assertEqual({ask(user)["version"] for user in range(40)}, {"3"})
      self.assertEqual(server.measures.swap_errors._value.get(), 0)

  @pytest.mark.slow
  def test_a_version_with_other_sizes_takes_over(self):
    """It sees what was shown, takes more seen items, and has more tags."""
    other = self.folder.parent / "other"
    rows = [[], *([f"t{i}"] for i in range(toy.ITEMS))]
    toy_export.make(other, seen=7, tags=rows, **toy_export.ON_POLICY)
    _publish(self.folder, self.exports[0])
    old, new = (serving.load(x, [1]) for x in (self.exports[0], other))
    for name in ("seen", "shown", "tags"):
      self.assertLess(old.manifest.sizes[name], new.manifest.sizes[name])
    settings = {"folder": self.folder, "canary": 0.5}
    earlier = [{"items": [4, 2, 9], "responses": [0, 1, 0]}]
    given = _USER | {"seen": [11, 12, 13, 14, 15], "earlier": earlier}
    shown = [([4, 2, 9], [0, 1, 0])]
    want = {
      version: x.decode(
        [x.query(*_USER.values(), seen=given["seen"], earlier=shown)]
      ).items[0]
      for version, x in (("1", old), ("2", new))
    }
    self.assertNotEqual(*(x.tolist() for x in want.values()))

    def ask(user, **values):
      return running.ask(port, user_id=user, **given | values)

    with running.serving(old, None, "open sesame", **settings) as (
      server,
      _,
      port,
    ):
      self.assertEqual(ask("a")[1]["version"], "1")
      self.assertEqual(_publish(self.folder, other), 2)
      running.until(lambda: server.arms.canary is not None)
      sizes = json.loads(running.call(port, "GET", "/health")[2])
      self.assertEqual((sizes["sizes"]["seen"], sizes["sizes"]["tags"]), (5, 1))
      self.assertEqual(sizes["canary_sizes"], new.manifest.sizes)
      for user in map(str, range(20)):
        version = "2" if arms_lib.share_of(user, "2") < 0.5 else "1"
        status, answer = ask(user)
        self.assertEqual((status, answer["version"]), (200, version))
        self.assertEqual(answer["items"], want[version].tolist())
        # Each version checks what it answers itself.
        status, answer = ask(user, seen=[1, 2, 3, 5, 6, 7, 8])
        self.assertEqual(status, 200 if version == "2" else 422, answer)
        status, answer = ask(user, include=["t7", "t30", "t21"])
        self.assertEqual(status, 200 if version == "2" else 422, answer)
        if status == 200:
          self.assertEqual({*answer["items"]}, {8, 31, 22})
      # All get it, and then the one before.
      for path, version in (("promote", "2"), ("rollback", "1")):
        running.post(port, f"/admin/{path}", {}, _TOKEN)
        running.until(lambda want=version: ask("a")[1]["version"] == want)
        for user in "abc":
          self.assertEqual(ask(user)[1]["items"], want[version].tolist())
      self.assertEqual(server.measures.swap_errors._value.get(), 0)

  def test_a_version_with_other_profiles_is_refused_where_slates_are_kept(self):
    for export in self.exports:
      _publish(self.folder, export)
    settings = Settings(self.folder, canary=0.5, watch=0.01)
    arms = arms_lib.load(settings)
    arms_lib.check_profiles(arms, 4)
    other = copy.copy(arms.canary.recommender)
    sizes = other.manifest.sizes | {"profile": 3}
    other.manifest = dataclasses.replace(other.manifest, sizes=sizes)
    wrong = arms._replace(canary=arms.canary._replace(recommender=other))
    words = "of profiles of 4 numbers and version 2 of 3; expected the same"
    with self.assertRaisesRegex(InputError, words):
      arms_lib.check_profiles(wrong, 4)
    before = arms._replace(canary=None)
    opened = store_lib.open_store(str(self.folder.parent / "store.db"))
    for store, taken in ((None, 1), (opened, 0)):
      with mock.patch.object(arms_lib, "refreshed", return_value=wrong):
        server = batches.Server(before, settings, store)
        swaps, refused = (
          getattr(server.measures, x)._value for x in ("swaps", "swap_errors")
        )

        async def watch(server=server, swaps=swaps, refused=refused):
          async with server.running(None):
            while not swaps.get() + refused.get():
              await asyncio.sleep(0.01)

        asyncio.run(watch())
      self.assertEqual((swaps.get(), refused.get()), (taken, 1 - taken))
      self.assertEqual(server.arms, wrong if taken else before)

  def test_a_version_that_is_missing_is_named(self):
    _publish(self.folder, self.exports[0])
    (self.folder / "current").write_text('{"version": 9, "before": null}')
    words = "versions/9/manifest.json cannot be read .*; expected what"
    with self.assertRaisesRegex(InputError, words):
      arms_lib.load(Settings(self.folder))

  def test_the_administrator_has_a_token_or_there_is_none(self):
    for export in self.exports:
      _publish(self.folder, export)
    recommender = serving.load(self.folder, [1])
    for token, given, want in (
      ("", _TOKEN, 404),
      ("open sesame", {}, 401),
      ("open sesame", {"Authorization": "Bearer open"}, 401),
      ("open sesame", {"Authorization": "open sesame"}, 401),
      ("open sesame", {"Authorization": "Bearer \xe9"}, 401),
      ("open sesame", _TOKEN, 200),
    ):
      with running.serving(recommender, None, token, folder=self.folder) as (
        _,
        _,
        port,
      ):
        status, answer = running.post(port, "/admin/rollback", {}, given)
      self.assertEqual(status, want, answer)
      version = folder_lib.read_pointer(self.folder).version
      self.assertEqual(version, 1 if want == 200 else 2)

  def test_a_version_that_is_damaged_does_not_take_over(self):
    _publish(self.folder, self.exports[0])
    recommender = serving.load(self.folder, [1])
    with running.serving(recommender, folder=self.folder) as (server, _, port):
      folder = versions.next_folder(self.folder)
      shutil.copytree(self.exports[1], folder)
      (folder / "policy.npz").write_bytes(b"x")
      versions.publish(folder)
      running.until(server.measures.swap_errors._value.get)
      self.assertEqual(running.ask(port, **_USER)[1]["version"], "1")
      versions.rollback(self.folder)
      _publish(self.folder, self.exports[1])
      running.until(server.measures.swaps._value.get)
      self.assertEqual(running.ask(port, **_USER)[1]["version"], "3")


class IntervalTest(absltest.TestCase):
  def test_by_hand(self):
    # Users with (reward, slates): (3, 2), (0, 1), (1, 1).
    sums = (3, 4, 4, 10, 7, 6)
    mean = measures.mean_by_user(sums)
    self.assertEqual(mean.value, 1.0)
    # Residuals 1, -1, 0.
    half = 1.959964 * math.sqrt(2 * 3 / 2) / 4
    self.assertAlmostEqual(mean.high, 1 + half)
    self.assertAlmostEqual(mean.low, 1 - half)
    self.assertTrue(math.isnan(measures.mean_by_user([0] * 6).value))
    one = measures.mean_by_user((1, 3, 2, 9, 6, 4))
    self.assertEqual((one.value, math.isnan(one.low)), (1.5, True))

  def test_it_covers_where_users_differ(self):
    """Each user has a rate of his own, which slates share."""
    rng, covered = np.random.default_rng(0), 0
    folder = self.enter_context(tempfile.TemporaryDirectory())
    store = store_lib.open_store(f"{folder}/store.db")
    self.addCleanup(store.close)
    for log in range(200):
      rates = rng.beta(0.5, 0.5, 60)
      counts = rng.integers(1, 20, 60)
      r = rng.binomial(counts, rates).astype(float)
      n = counts.astype(float)
      sums = (60, r.sum(), n.sum(), r @ r, r @ n, n @ n)
      mean = measures.mean_by_user(sums)
      covered += mean.low <= 0.5 <= mean.high
      if log == 0:  # The store sums alike.
        for user, (own, count) in enumerate(zip(r, counts, strict=True)):
          slates = [
            Slate(
              *(f"{user}-{i}", str(user), None, 0, 1.0, 1, '["a"]', "[1]"),
              *("[]", "[]", "1", "stable"),
            )
            for i in range(count)
          ]
          answers = [
            Feedback(x.request_id, [int(i < own)]) for i, x in enumerate(slates)
          ]
          writer.apply(store, [*slates, *answers])
        np.testing.assert_allclose(store.earned("stable", "1"), sums)
    self.assertBetween(covered, 178, 199)


if __name__ == "__main__":
  absltest.main()
