"""SIDs in a workdir: made, resumed, changed, damaged."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import shutil
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import sid
from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data import sids as sids_lib
from hsrl_jax.data.embeddings import Embeddings, open_npy
from hsrl_jax.data.source import Items
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import sid_quality
from hsrl_jax.sid import store
from hsrl_jax.stages import catalogue_changes, quantize, quantizer_fit
from hsrl_jax.stages import quantize as stage
from hsrl_jax.stages import quantizer_fit as fitting
from hsrl_jax.stages import run as run_lib

_CONFIG = QuantizerConfig(vocab_size=6, levels=3)
_SOURCE = quantizer_fit.Source("items.npz", "0123")
_FILES = {
  "codebooks.npz",
  "sids.npz",
  "index.npz",
  "report.json",
  "report.html",
}


def _items(first, count, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  x = scale * rng.normal(size=(count, 5))
  ids = np.array([f"sku-{i}" for i in range(first, first + count)])
  return Embeddings(x.astype(np.float32), ids, None)


def _sids(workdir):
  """Item id to (SID, whether it is there), out of the file alone."""
  with np.load(workdir / "sids" / "sids.npz") as saved:
    return {
      item: (tuple(tokens), bool(active))
      for item, tokens, active in zip(
        saved["item_id"].tolist(),
        saved["tokens"].tolist(),
        saved["active"],
        strict=True,
      )
    }


class LossTest(absltest.TestCase):
  """Four items on a line, 0, 0, 0 and 3, of variance 27 / 16; SIDs of a token.

  Two of the zeros get the codes of others, whatever these are.
  """

  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder)

  def _run(self, *codes):
    codebooks = np.array(codes, np.float32).reshape(1, 4, 1)
    rows = np.array([[0], [0], [0], [3]], np.float32)
    with mock.patch.object(stage, "fit_or_resume", lambda *_: codebooks):
      return run_lib.quantize_catalogue(
        QuantizerConfig(levels=1, vocab_size=4),
        self.workdir,
        Embeddings(rows, None, None),
        _SOURCE,
      )

  def test_dear_sids_are_warned_of(self):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      self._run(0, 0.5, 1, 3)  # Loses (1/4 + 1) / 4, all of it unique SIDs.
    told = "4x1: unique SIDs cost 19% of the variance, more than half of the 19"
    self.assertLen(re.findall("warning: .*", out.getvalue()), 1)
    self.assertIn(f"  warning: {told}%", out.getvalue())
    self.assertIn(told, (self.workdir / "sids" / "report.html").read_text())

  def test_others_are_not(self):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      self._run(0, 0, 0, 3)
    self.assertNotIn("warning", out.getvalue())
    page = (self.workdir / "sids" / "report.html").read_text()
    self.assertNotIn("unique SIDs cost", page)

  def test_worse_than_the_mean_is_refused(self):
    # Loses (2.25 + 4) / 4, less than 27 / 16; then (4 + 3.24) / 4, more.
    with contextlib.redirect_stdout(io.StringIO()):
      self._run(0, 1.5, 2, 3)
    shutil.rmtree(self.workdir / "sids")
    with self.assertRaisesRegex(InputError, "4x1 loses 107% of the variance"):
      self._run(0, -2, 1.8, 3)
    self.assertEmpty(list(self.workdir.iterdir()))

  def test_items_that_are_all_alike_are_warned_of(self):
    rows = np.full((4, 3), 0.1, np.float32)
    config, out = QuantizerConfig(levels=1, vocab_size=4), io.StringIO()
    with contextlib.redirect_stdout(out):
      run_lib.quantize_catalogue(
        config, self.workdir, Embeddings(rows, None, None), _SOURCE
      )
    self.assertIn("warning: all items have the same vector", out.getvalue())


class QuantizeTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.made = pathlib.Path(tempfile.mkdtemp())
    cls.items = _items(0, 90)
    cls.facts = quantize.run(_CONFIG, cls.made, cls.items, _SOURCE)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.made)
    super().tearDownClass()

  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(root) / "run"
    shutil.copytree(self.made, self.workdir)

  def _refused(self, message, function, *arguments):
    before = {x: x.read_bytes() for x in self.workdir.glob("sids/*")}
    with self.assertRaisesRegex(InputError, message) as raised:
      function(self.workdir, *arguments)
    self.assertNotIn("\n", str(raised.exception))
    after = {x: x.read_bytes() for x in self.workdir.glob("sids/*")}
    self.assertEqual(before, after)
    self.assertEqual([x.name for x in self.workdir.iterdir()], ["sids"])

  def test_leaves_its_files_and_nothing_else(self):
    self.assertEqual([x.name for x in self.made.iterdir()], ["sids"])
    self.assertEqual({x.name for x in self.made.glob("sids/*")}, _FILES)
    facts = json.loads((self.made / "sids" / "report.json").read_text())
    self.assertEqual(facts, self.facts)
    self.assertEqual((facts["items"], facts["sids"]), (90, 90))

  def test_own_sids_brought_back(self):
    saved = store.read(self.made)
    file = self.workdir.with_name("own.npz")
    np.savez(file, item_id=saved.item_id, tokens=saved.tokens)
    taken = sids_lib.of_items(sids_lib.read_file(file), self.items.item_ids)
    workdir = self.workdir.with_name("brought")
    facts = quantize.run(
      sids_lib.sized(_CONFIG, taken.file),
      workdir,
      self.items,
      _SOURCE,
      brought=taken,
    )
    self.assertEqual(_sids(workdir), _sids(self.made))
    self.assertEqual(facts["brought"]["moved"], 0)
    # Means over the items that have a token are at least as good as they were.
    lost, before = (x["relative_error_unique"] for x in (facts, self.facts))
    self.assertBetween(lost, 0.5 * before, before + 1e-6)
    self.assertEqual(facts["relative_error"][-1], lost)
    page = (workdir / "sids" / "report.html").read_text()
    self.assertIn("SIDs of own.npz: 3 tokens of 6 values, no two equal", page)
    self.assertNotIn("Plain residual k-means", page)
    # Newcomers are encoded with these codebooks.
    added = catalogue_changes.add_items(workdir, _items(90, 4), "new")
    self.assertEqual(added["items"], 94)

  def test_brought_sids_that_collide(self):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 6, (90, 3))
    tokens[7] = tokens[3]
    rows = {str(i): x.tolist() for i, x in enumerate(tokens)}
    file = self.workdir.with_name("other.json")
    file.write_text(json.dumps(rows))
    taken = sids_lib.of_items(sids_lib.read_file(file), range(90))
    workdir = self.workdir.with_name("collided")
    facts = quantize.run(_CONFIG, workdir, self.items, _SOURCE, None, taken)
    moved = 90 - len(np.unique(tokens, axis=0))
    self.assertEqual(facts["brought"]["moved"], moved)
    self.assertIn("8", map(str, taken.moved))
    # Even tokens that mean nothing lose less than the mean vector.
    self.assertLess(facts["relative_error_unique"], 1)
    x = self.items.rows
    items = Items(np.concatenate([0 * x[:1], x]), *[[""] * 91] * 3)
    plain = dataclasses.replace(_CONFIG, assignment="plain")
    found = quantize.load(workdir, items, plain, taken.given)
    np.testing.assert_array_equal(found.index.sids[1:], tokens)

  def test_what_others_have_in_sids_stays(self):
    letter = self.workdir / "sids" / "letter"
    letter.write_text("kept")
    self._refused(
      "holds 'letter', which is not of a folder of SIDs",
      lambda x: quantize.run(_CONFIG, x, _items(0, 40), _SOURCE),
    )
    self.assertEqual(letter.read_text(), "kept")

  def test_shuffled_sids_are_those_of_other_items(self):
    workdir = self.workdir.with_name("shuffled")
    config = dataclasses.replace(_CONFIG, assignment="shuffled")
    facts = quantize.run(config, workdir, self.items, _SOURCE)
    own, other = _sids(self.workdir), _sids(workdir)
    self.assertCountEqual(own.values(), other.values())
    self.assertLess(sum(own[x] == other[x] for x in own), 10)
    self.assertGreater(facts["relative_error_unique"], 1.0)

  def test_plain_tokens_may_collide(self):
    x = self.items.rows
    features = np.concatenate([np.zeros_like(x[:1]), x])
    items = Items(features, [""] * 91, [""] * 91, [""] * 91)
    unique = quantize.load(self.workdir, items, _CONFIG)
    config = dataclasses.replace(_CONFIG, assignment="plain")
    plain = quantize.load(self.workdir, items, config)
    residual, tokens = np.float64(x), plain.index.sids[1:]
    for level, codes in enumerate(np.asarray(plain.codebooks)):
      distance = ((residual[:, None] - codes) ** 2).sum(-1)
      np.testing.assert_array_equal(tokens[:, level], distance.argmin(1))
      residual = residual - codes[tokens[:, level]]
    self.assertLess(len(np.unique(tokens, axis=0)), 90)
    self.assertLen(np.unique(unique.index.sids[1:], axis=0), 90)
    self.assertEqual(tokens.dtype, unique.index.sids.dtype)

  def test_sids_and_index_agree_and_decode(self):
    found = store.read(self.workdir)
    sids = _sids(self.workdir)
    self.assertEqual(list(sids), self.items.item_ids.tolist())
    self.assertLen(set(sids.values()), 90)
    for row, (tokens, active) in enumerate(sids.values()):
      self.assertTrue(active)
      item = sid.lookup(found.index, np.array(tokens, np.int32))
      self.assertEqual(int(item), row + 1)

  def test_the_report_is_of_the_plain_and_the_unique_sids(self):
    found, x = store.read(self.workdir), self.items.rows
    plain = np.asarray(sid.encode(found.codebooks, x))
    for tokens, name in ((plain, -1), (found.tokens, None)):
      error = float(
        sid.relative_error(x, sid.reconstruct(found.codebooks, tokens))
      )
      stored = (
        self.facts["relative_error_unique"]
        if name is None
        else self.facts["relative_error"][name]
      )
      self.assertAlmostEqual(stored, error, places=5)

  def test_one_device_gives_the_same(self):
    fit = sid.fit

    def on_one(*arguments, **options):
      return fit(*arguments, **options, devices=jax.devices()[:1])

    other = self.workdir.parent / "one"
    with mock.patch.object(sid, "fit", on_one):
      quantize.run(_CONFIG, other, self.items, _SOURCE)
    self.assertEqual(_sids(other), _sids(self.workdir))

  def test_add_remove_and_add_again(self):
    before = _sids(self.workdir)
    facts = catalogue_changes.add_items(self.workdir, _items(90, 30, 1), "new")
    grown = _sids(self.workdir)
    self.assertEqual({k: grown[k] for k in before}, before)
    self.assertLen({tokens for tokens, _ in grown.values()}, 120)
    self.assertEqual(facts["items"], 120)
    self.assertEqual(facts["drift"]["newcomers"], 30)

    gone = np.array(["sku-3", "sku-95"])
    facts = catalogue_changes.remove_items(self.workdir, gone, "gone")
    shrunk = _sids(self.workdir)
    for item, (tokens, active) in grown.items():
      self.assertEqual(shrunk[item], (tokens, active and item not in gone))
    self.assertEqual((facts["items"], facts["sids"]), (118, 120))

    again = _items(95, 1, 7, scale=50.0)  # Its embedding has changed.
    facts = catalogue_changes.add_items(self.workdir, again, "again")
    found = _sids(self.workdir)
    self.assertEqual(found["sku-95"], grown["sku-95"])
    self.assertEqual(facts["items"], 119)
    self.assertEqual(facts["drift"]["newcomers"], 30)
    index = store.read(self.workdir).index
    for row, (tokens, active) in enumerate(found.values()):
      item = int(sid.lookup(index, np.array(tokens, np.int32)))
      self.assertEqual(item, row + 1 if active else 0)

  def test_newcomers_from_elsewhere_make_a_refit_due(self):
    facts = catalogue_changes.add_items(
      self.workdir, _items(90, 9, 2, 9.0), "far"
    )
    self.assertTrue(facts["drift"]["refit_due"])
    page = (self.workdir / "sids" / "report.html").read_text()
    self.assertIn("a refit is due", page)
    found = store.read(self.workdir)
    x = _items(90, 9, 2, 9.0).rows
    plain = sid.encode(found.codebooks, x)
    error = np.square(x - sid.reconstruct(found.codebooks, plain)).sum(1)
    variance = np.square(self.items.rows - self.items.rows.mean(0)).sum(1)
    self.assertAlmostEqual(
      facts["drift"]["relative_error"] / (error.mean() / variance.mean()),
      1.0,
      places=4,
    )

  def test_titles_come_along(self):
    new = _items(90, 2, 3)._replace(titles=np.array(["First", ""]))
    catalogue_changes.add_items(self.workdir, new, "new")
    title = store.read(self.workdir).title
    self.assertEqual(title[-2:].tolist(), ["First", ""])
    self.assertEqual(set(title[:-2]), {""})

  def test_bad_additions(self):
    add = catalogue_changes.add_items
    new = _items(88, 4, 1)
    self._refused(
      r"f: 2 items are in the catalogue already \(sku-88, sku-89\)",
      add,
      new,
      "f",
    )
    new = _items(90, 4, 1)
    self._refused("no item ids", add, new._replace(item_ids=None), "f")
    narrow = new._replace(rows=new.rows[:, :3])
    self._refused("3 dimensions; expected 5", add, narrow, "f")
    rows = new.rows.copy()
    rows[1, 2] = np.inf
    self._refused(
      r"1 row has NaN .* sku-91 \(row 1\)", add, new._replace(rows=rows), "f"
    )
    self._refused(
      "--sid_vocab_size, --sid_levels: .* 216 SIDs for 290",
      add,
      _items(90, 200),
      "f",
    )

  def test_bad_removals(self):
    remove = catalogue_changes.remove_items
    catalogue_changes.remove_items(self.workdir, np.array(["sku-1"]), "f")
    self._refused(
      r"f: 2 items are not in the catalogue \(sku-1, x\)",
      remove,
      np.array(["sku-1", "sku-2", "x"]),
      "f",
    )
    rest = np.array(
      [k for k, (_, there) in _sids(self.workdir).items() if there]
    )
    self._refused("names all 89 items", remove, rest, "f")

  def test_ids_are_integers_where_none_are_given(self):
    plain = self.items._replace(item_ids=None)
    other = self.workdir.parent / "plain"
    quantize.run(_CONFIG, other, plain, _SOURCE)
    self.assertEqual(list(_sids(other)), list(range(1, 91)))
    catalogue_changes.remove_items(other, np.array(["3"]), "gone.txt")
    self.assertFalse(_sids(other)[3][1])

  def test_rows_of_a_file_give_what_rows_in_memory_give(self):
    """But for the fit, which reads them in another order."""
    path = self.workdir.parent / "items.npy"
    np.save(path, self.items.rows)
    other = self.workdir.parent / "streamed"
    streamed = self.items._replace(rows=open_npy(path))
    facts = quantize.run(_CONFIG, other, streamed, _SOURCE)
    x, found = self.items.rows, store.read(other)
    made = quantizer_fit.encode(found.codebooks, x, _CONFIG)
    np.testing.assert_array_equal(made.unique, found.tokens)
    self.assertEqual(
      facts["recall_at_10"],
      sid_quality.recall(found.codebooks, x, made.unique),
    )

  @parameterized.named_parameters(
    ("equal", np.ones((10, 3))),
    ("one", np.ones((1, 3))),
    ("two", np.eye(2)),
    ("one_dimension", np.linspace(0, 1, 30)[:, None]),
  )
  def test_odd_catalogues(self, x):
    other = self.workdir.parent / "odd"
    items = Embeddings(x.astype(np.float32), None, None)
    facts = quantize.run(_CONFIG, other, items, _SOURCE)
    self.assertLen(set(_sids(other).values()), len(x))
    self.assertEqual(facts["items"], len(x))

  def test_files_of_another_run(self):
    other = self.workdir.parent / "other"
    quantize.run(_CONFIG, other, _items(0, 90, 5), _SOURCE)
    for name in ("codebooks.npz", "sids.npz", "index.npz"):
      with self.subTest(name):
        shutil.copy(other / "sids" / name, self.workdir / "sids" / name)
        self._refused("of one run", store.read)
        shutil.copy(self.made / "sids" / name, self.workdir / "sids" / name)

  @parameterized.parameters(*sorted(_FILES - {"report.html"}))
  def test_damaged_and_missing_files(self, name):
    path = self.workdir / "sids" / name
    path.write_bytes(path.read_bytes()[:-40])
    self._refused(f"{name} .*read", store.read)
    path.unlink()
    self._refused(f"{name} cannot be read", store.read)

  def test_a_fit_that_was_killed_goes_on_at_its_level(self):
    fit, levels = sid.fit, []

    def dying(*arguments, on_level, **options):
      def die(codebooks):
        on_level(codebooks)
        if len(codebooks) == 2:
          raise KeyboardInterrupt

      return fit(*arguments, on_level=die, **options)

    def counting(*arguments, initial, **options):
      levels.append(0 if initial is None else len(initial))
      return fit(*arguments, initial=initial, **options)

    other = self.workdir.parent / "killed"
    with mock.patch.object(fitting, "_WORTH_SAVING", 0.0):
      with (
        mock.patch.object(sid, "fit", dying),
        self.assertRaises(KeyboardInterrupt),
      ):
        quantize.run(_CONFIG, other, self.items, _SOURCE)
      self.assertFalse((other / "sids").exists())
      with mock.patch.object(sid, "fit", counting):
        changed = quantizer_fit.Source("items.npz", "4567")
        quantizer_fit.fit_or_resume(_CONFIG, other, self.items.rows, changed)
        quantize.run(_CONFIG, other, self.items, _SOURCE)
    self.assertEqual(levels, [0, 2])
    self.assertEqual(_sids(other), _sids(self.workdir))
    self.assertEqual([x.name for x in other.iterdir()], ["sids"])


if __name__ == "__main__":
  absltest.main()
