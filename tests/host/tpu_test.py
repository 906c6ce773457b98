"""Reading what a TPU's compiler says; the compiler itself is not needed."""

from unittest import mock

import jax
from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError
from hsrl_jax.host import tpu

# As the compiler writes it, in short.
PROGRAM = """\
%inner (x: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0:T(128)} fusion(%x), calls=%f, "estimated_cycles":"7"
}

%less_than_3 (x: s32[]) -> pred[] {
  %c = s32[]{:T(128)} constant(3)
  ROOT %d = pred[] compare(%x, %c), direction=LT
}

%outer (x: f32[8]) -> f32[8] {
  %b = f32[8] copy(%x), "estimated_cycles":"100"
  ROOT %w = f32[8] while(%b), condition=%less_than_3, body=%inner, \
metadata={op_name="in"}
}

%rare (x: f32[8]) -> f32[8] {
  ROOT %e = f32[8] copy(%x), "estimated_cycles":"30"
}

%f (x: f32[8]) -> f32[8] {
  ROOT %g = f32[8] sine(%x), "estimated_cycles":"999"
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %h = f32[8] while(%x), condition=%c, body=%outer, \
metadata={op_name="out"}, "known_trip_count":{"n":"5"}
  %i = f32[8] conditional(%p, %h, %h), branch_computations={%inner, %rare}
  %j = f32[8] conditional(%p, %i, %i), true_computation=%inner, \
false_computation=%outer
  ROOT %k = f32[8] call(%j), to_apply=%rare
}
"""


class ReaderTest(absltest.TestCase):
  def test_loops_branches_and_calls(self):
    cycles, loops, operations = tpu.read(PROGRAM)
    self.assertEqual(cycles, 5 * (100 + 3 * 7) + 30 + 121 + 30)
    expected = [(3, "in", 5 * 3 * 7), (5, "out", 5 * (100 + 3 * 7))]
    expected.append((3, "in", 3 * 7))
    self.assertEqual(loops, expected)
    self.assertEqual(sum(x.cycles for x in operations), cycles)

  def test_arrays_fill_whole_tiles_in_the_memory_of_a_chip(self):
    tile = 8 * 128
    for result, array, size in (
      ("f32[3,130]{1,0:T(8,128)}", "f32[3,130]{1,0:T(8,128)}", 2 * tile * 4),
      ("f32[3,130]{0,1:T(8,128)}", "f32[3,130]{0,1:T(8,128)}", 17 * tile * 4),
      ("bf16[5,8,7]{2,1,0:T(8,128)(2,1)}", "bf16[5,8,7]", 5 * tile * 2),
      ("f32[3,130]{1,0:T(8,128)S(1)}", "", 0),
      ("f32[7]", "f32[7]", 7 * 4),
      ("pred[]", "pred[]", 1),
      ("(pred[9]{0}, s32[4]{0}, u32[]{:S(2)})", "s32[4]", 4 * 4),
    ):
      line = f"ENTRY %m (x: f32[]) -> f32[] {{\n  %a = {result} fusion(%x)\n}}"
      _, _, (made,) = tpu.read(line)
      self.assertStartsWith(made.result, array)
      self.assertEqual(made.bytes, size, result)

  def test_what_takes_no_memory_of_its_own(self):
    for what in ("parameter", "bitcast", "copy-done", "get-tuple-element"):
      line = f"ENTRY %m (x: s8[]) -> s8[] {{\n  %a = s8[9]{{0}} {what}(%x)\n}}"
      _, _, (made,) = tpu.read(line)
      self.assertEqual((made.result, made.bytes), ("", 0))


class _Lowered:
  """What cannot be compiled, with the compiler's words."""

  def __init__(self, text):
    self.text = text

  def compile(self):
    raise jax.errors.JaxRuntimeError(self.text)


class TopologyTest(parameterized.TestCase):
  @parameterized.parameters("v5e-3", "v5e", "v5e-", "v4-4", "h100-8", "v5e:2x2")
  def test_an_unknown_one_is_refused(self, name):
    with self.assertRaisesRegex(InputError, f"'{name}' is unknown; .*v5e-16"):
      tpu.describe(name)

  def test_without_the_compiler_the_extra_is_named(self):
    tpu.describe.cache_clear()
    with (
      mock.patch.object(tpu, "is_there", return_value=False),
      self.assertRaisesRegex(InputError, r'pip install -e "\.\[tpu\]"'),
    ):
      tpu.describe("v5e-4")

  @parameterized.parameters(
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
    "for HLO temporaries (17.50G) exceeds available HBM (15.75G).",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of "
    "15.75G hbm. Exceeded hbm capacity by 1.75G.",
  )
  def test_too_little_memory_is_told_in_bytes(self, text):
    with self.assertRaises(tpu.OutOfMemoryError) as caught:
      tpu.compiled(_Lowered(text), tpu.Topology("x", (), 1.0))
    self.assertEqual(caught.exception.args, (17.5 * 2**30, 15.75 * 2**30))

  @parameterized.parameters(
    "INTERNAL: 2.0G of 1.0G hbm",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17.00M "
    "of 16.00M vmem.",
  )
  def test_other_errors_remain(self, text):
    with self.assertRaisesRegex(jax.errors.JaxRuntimeError, text):
      tpu.compiled(_Lowered(text), tpu.Topology("x", (), 1.0))


if __name__ == "__main__":
  absltest.main()
