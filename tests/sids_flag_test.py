"""SIDs that are brought, by command: of a dataset's items, of embeddings."""

import json

import numpy as np
import pytest
from absl.testing import absltest

from tests.command import study
from tests.folders import CommandTest

DATASET = ("--dataset=toy", "--mode=quantize")


class SidsFlagTest(CommandTest):
  def setUp(self):
    super().setUp()
    self.workdir = self.folder / "run"
    self.file = self.folder / "sids.json"

  def _write(self, first, name="toy-{}", ids=range(1, 97)):
    """SIDs of 3 x 40; the second item has that of the first."""
    rows = {name.format(i): [first, i % 40, i // 40] for i in ids}
    rows[name.format(ids[1])] = rows[name.format(ids[0])]
    self.file.write_text(json.dumps(rows))

  def _ok(self, *arguments):
    return self.ok(f"--workdir={self.workdir}", *arguments)

  def _refused(self, message, *arguments):
    self.fails(message, f"--workdir={self.workdir}", *arguments)

  def _sids(self):
    with np.load(self.workdir / "sids" / "sids.npz") as saved:
      return saved["tokens"]

  def test_of_a_dataset(self):
    self._write(1)
    brings = f"--sids={self.file}"
    self._ok("--dataset=toy", "--mode=data")
    self._refused(
      "--sid_levels is 4, but the", *DATASET, brings, "--sid_levels=4"
    )
    out = self._ok(*DATASET, brings, "--sid_levels=3")
    self.assertIn("SIDs of sids.json: 3 tokens of 40 values; 1 item that", out)
    tokens = self._sids()
    self.assertEqual(tokens[41].tolist(), [1, 2, 1])  # Item 42.
    self.assertNotEqual(tokens[0].tolist(), tokens[1].tolist())
    kept = (self.workdir / "flags.txt").read_text()
    self.assertIn("--sid_vocab_size=40\n", kept)

    # Once they are taken the file may go.
    content = self.file.read_text()
    self.file.unlink()
    self.assertIn("nothing to do", self._ok("--mode=quantize"))
    flagfile = f"--flagfile={self.workdir}/flags.txt"
    self.assertIn("nothing to do", self.ok(flagfile, "--mode=quantize"))
    # It may not change.
    self._write(0)
    self._refused("stage quantize was made with another", "--mode=quantize")
    self.file.write_text(content)
    self.assertIn("nothing to do", self._ok("--mode=quantize"))

  @pytest.mark.slow
  def test_of_another_run(self):
    self._write(1)
    self._ok("--dataset=toy", "--mode=data")
    self._ok(*DATASET, f"--sids={self.file}", "--sid_levels=3")
    first, path = self._sids(), self.workdir / "sids" / "sids.npz"
    with np.load(path) as saved:
      self.assertEqual(saved["item_id"][41], "toy-42")
    self.workdir = self.folder / "another"
    self._ok("--dataset=toy", "--mode=data")
    out = self._ok(*DATASET, f"--sids={path}", "--sid_levels=3")
    self.assertIn("SIDs of sids.npz: 3 tokens of 40 values", out)
    np.testing.assert_array_equal(self._sids(), first)

  @pytest.mark.slow
  def test_of_embeddings(self):
    items, new = self.folder / "items.npz", self.folder / "new.npz"
    rng = np.random.default_rng(0)
    for path, ids in ((items, range(7, 67)), (new, range(90, 93))):
      x = rng.normal(size=(len(ids), 4)).astype(np.float32)
      np.savez(path, embeddings=x, item_id=np.array(ids))
    given = (f"--embeddings={items}", f"--sids={self.file}", "--mode=quantize")
    self._refused("sids.json is no file", *given)
    self._write(0, "{}", range(8, 67))
    self._refused("item 7 has no SID (1 such items of 60)", *given)
    self.assertFalse(self.workdir.exists())
    self._write(0, "{}", range(7, 67))
    self._refused("--sids with --sweep", *given, "--sweep=8x2")
    self.assertIn("3 tokens of 40 values; 1 item that", self._ok(*given))
    self.assertEqual(self._sids()[2].tolist(), [0, 9, 0])
    added = self._ok("--mode=add_items", f"--embeddings={new}")
    self.assertIn("3 items added; 63 now", added)
    self.assertIn("nothing to do", self._ok("--mode=quantize"))
    self._write(1, "{}", range(7, 67))
    self._refused("sids.json has changed since", "--mode=quantize")

  def test_experiments_that_fit_their_own(self):
    self._write(1)
    for name in ("catalogue_size", "changing_catalogue"):
      chosen, own = f"--study={name}", f"--workdir={self.folder}/own"
      message = f" with {chosen}; expected none: it fits SIDs of"
      self.fails(message, own, chosen, f"--sids={self.file}", by=study)


if __name__ == "__main__":
  absltest.main()
