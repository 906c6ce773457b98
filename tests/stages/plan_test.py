"""What --mode=plan finds of training on chips that are not there."""

import contextlib
import json
from unittest import mock

import jax
import pytest
from absl.testing import absltest

from hsrl_jax.engine import parallel
from hsrl_jax.host import tpu
from tests import command, folders, large_logs_test

_SMOKE = f"--flagfile={command.ROOT}/launch/flags/smoke.flags"
_GIB = 2**30
# 3 GiB for each seed beside 1 GiB: 4 seeds fit in 15.75 GiB.
_TEXT = """\
HloModule m, entry_computation_layout={(f32[1,9]{1,0})->f32[9]{0}}

%body (x: f32[9]) -> f32[9] {
  %a = f32[5,9]{1,0:T(8,128)} fusion(%x), "estimated_cycles":"30", \
metadata={op_name="jit(of_all)/while/body/transpose(jvp(update))/add"}
  ROOT %b = f32[9]{0} fusion(%a), "estimated_cycles":"10", \
metadata={op_name="jit(of_all)/while/body/vmap(acting)/sub"}
}

ENTRY %main (x: f32[1,9]) -> f32[9] {
  ROOT %w = f32[9] while(%x), condition=%c, body=%body, \
"known_trip_count":{"n":"50"}, metadata={op_name="jit(of_all)/while"}
}
"""


def _compiled(seeds, topology):
  """An estimate that needs 1 GiB, and 3 GiB for each seed."""
  if 1 + 3 * seeds > 15.75:
    raise tpu.OutOfMemoryError((1 + 3 * seeds) * _GIB, 15.75 * _GIB)
  memory = {"arguments": _GIB, "temporaries": 3 * seeds * _GIB}
  cycles, loops, operations = tpu.read(_TEXT)
  milliseconds = cycles / topology.clock
  return tpu.Estimate(milliseconds, loops, operations, memory, _TEXT)


class PlanTest(folders.CommandTest):
  """Without a compiler: what it would say is made up."""

  def _plan(self, *arguments, chips=1, flags=(_SMOKE,)):
    topology = tpu.Topology("v5e-1", tuple(jax.devices()[:chips]), 1e3)

    def lowered(init, run, seeds, inputs, layout):
      del init, run, layout
      self.inputs = inputs
      return len(seeds)

    with (
      mock.patch.object(tpu, "describe", return_value=topology),
      mock.patch.object(tpu, "memory", return_value=15.75 * _GIB),
      mock.patch.object(tpu, "version", return_value="0.0"),
      mock.patch.object(tpu, "compiled", _compiled),
      mock.patch.object(parallel, "lowered", lowered),
      # As on accelerators, where seeds lie side by side.
      mock.patch.object(parallel.Layout, "platform", "tpu"),
    ):
      workdir = f"--workdir={self.folder}/w"
      out = self.ok(*flags, workdir, "--mode=plan", *arguments)
    found = json.loads((self.folder / "w" / "plan.json").read_text())
    return out, found["parts"]

  def test_what_fits_and_how_long_it_takes(self):
    out, parts = self._plan()
    (part,) = parts.values()
    self.assertIn("fits: needs 7.00 of 15.75 GiB; about 4 seeds would", out)
    self.assertEqual((part["seeds_of_a_chip"], part["seeds_that_fit"]), (2, 4))
    # 50 iterations of 40 cycles, a cycle a microsecond.
    self.assertAlmostEqual(part["milliseconds_per_iteration"], 0.04)
    self.assertAlmostEqual(part["seconds"], 400 * 0.04 / 1e3)
    self.assertEqual(part["phases"], {"update": 0.75, "acting": 0.25})
    self.assertEqual(
      part["operations"], {"gradient of update/add": 0.75, "acting/sub": 0.25}
    )
    made = "f32[5,9] gradient of update/add"
    self.assertEqual(part["largest"], {made: 8 * 128 * 4})
    # A run goes on where its plan was made, which is no run yet.
    self.assertIn("nothing to do", self._again("quantize"))

  def _again(self, mode):
    return self.ok(f"--workdir={self.folder}/w", f"--mode={mode}")

  def test_what_does_not_fit_is_an_answer(self):
    out, parts = self._plan("--seeds=0,1,2,3,4,5", "--topology=v5e-1")
    (part,) = parts.values()
    self.assertIn("does not fit: needs 19.00 of 15.75 GiB; about 4 seeds", out)
    self.assertFalse(part["fits"])
    self.assertNotIn("memory", part)
    # On four chips two of them have two seeds each, the others one.
    out, parts = self._plan("--seeds=0,1,2,3,4,5", chips=4)
    self.assertIn("2 of 6 seed(s) on a chip", out)
    self.assertIn("fits: needs 7.00 of 15.75 GiB", out)

  def test_the_part_before_the_comma_is_planned_too(self):
    flags = ("--dataset=toy", "--sid_levels=2", "--sid_vocab_size=16")
    flags += ("--recipe=next_item,on_policy", "--seeds=0,1")
    out, parts = self._plan(flags=flags)
    self.assertEqual([*parts], ["next_item", "on_policy"])
    self.assertIn("hsrl, next_item: 2 of 2 seed(s)", out)

  def test_logs_on_disk_are_planned_by_their_windows(self):
    raw = self.folder / "raw"
    large_logs_test.write(raw)
    with contextlib.ExitStack() as few:
      for name, value in large_logs_test.FEW.items():
        few.enter_context(mock.patch(name, value))
      flags = (*large_logs_test.FLAGS, f"--raw_data_dir={raw}")
      out, parts = self._plan(flags=flags)
    self.assertIn("sasrec, logs: 1 of 1 seed(s)", out)
    (part,) = parts.values()
    self.assertTrue(part["fits"])
    rows, size = len(self.inputs.logs.slate), 0
    for x in jax.tree.leaves(self.inputs.logs):
      self.assertEqual(x.shape[0], rows)
      size += x.size * x.dtype.itemsize
    # A window, and not one row more.
    most = large_logs_test.FEW["hsrl_jax.engine.windows.BYTES"]
    self.assertBetween(size, most - size / rows, most)

  def test_what_cannot_be_planned(self):
    workdir = f"--workdir={self.folder}/w"
    plan = (_SMOKE, workdir, "--mode=plan")
    self.fails("'v5e-3' is unknown", *plan, "--topology=v5e-3")
    data = (_SMOKE, workdir, "--mode=data", "--topology=v5e-4")
    self.fails("--topology with --mode=data; expected --mode=plan", *data)
    with mock.patch.object(tpu, "is_there", return_value=False):
      tpu.describe.cache_clear()
      self.fails('pip install -e ".[tpu]"', *plan)


@pytest.mark.slow
@pytest.mark.skipif(
  not tpu.is_there(), reason="libtpu is not installed; the extra `tpu` has it"
)
class CompilerTest(folders.CommandTest):
  def test_a_toy_is_planned(self):
    own = ("--users=16", "--layers=0", f"--workdir={self.folder}/w")
    for topology, shared in (("v5e-1", False), ("v5e-16", True)):
      plan = (_SMOKE, *own, "--mode=plan", f"--topology={topology}")
      out = self.ok(*plan)
      self.assertIn(" of 15.75 GiB; about ", out)
      found = json.loads((self.folder / "w" / "plan.json").read_text())
      (part,) = found["parts"].values()
      self.assertEqual(part["users_are_shared"], shared)
      self.assertGreater(part["seeds_that_fit"], 2)
      self.assertGreater(part["milliseconds_per_iteration"], 0.01)
      self.assertGreater(part["phases"]["update"], 0.3)
    self.assertEqual((found["chips"], found["hosts"]), (16, 4))
    self.assertEqual(jax.default_backend(), "cpu")

  def test_users_divide_over_the_chips(self):
    own = ("--users=8", "--batch_size=16", f"--workdir={self.folder}/w")
    plan = (_SMOKE, *own, "--mode=plan", "--topology=v5e-16")
    status, _, err = command.run(*plan)
    self.assertEqual(status, 2)
    self.assertIn("users is 8; expected a multiple of the 16 devices", err)


if __name__ == "__main__":
  absltest.main()
