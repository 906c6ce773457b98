"""What runs on a TPU is compiled for one here, and holds to some rules.

Users, seeds and items are primes that nothing else has, so that a loop over
them tells by its trips.
"""

import dataclasses
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

sys.path.insert(0, str(pathlib.Path(__file__).parent / "benchmarks"))

import tpu_estimates

from hsrl_jax.host import tpu

USERS, SEEDS, ITEMS = 23, 7, 211
MOST = 64  # Trips; there are fewer levels, places, steps and chunks.
# Once a call, each seed's steps are put where its ring says.
ONCE = rf"loop: {SEEDS} trips of jit\(of_all\)/vmap\(replay\)/vmap\(\)/scatter"
HOST = ("is_host_transfer=true", "callback")


def broken_rules(program: tpu.Estimate) -> list[str]:
  """Which rules a compiled program breaks, each with where."""
  serial = [
    f"loop: {trips} trips of {name}"
    for trips, name, _ in program.loops
    if trips is None or trips > MOST or not trips % USERS or not trips % SEEDS
  ]
  double = ["float64"] if "f64[" in program.text else []
  return serial + double + [x for x in HOST if x in program.text]


def small(path: pathlib.Path, **changes):
  """The configuration of a flagfile with few users, steps and weights."""
  config = tpu_estimates.of_flagfile(path)
  train = dataclasses.replace(
    config.train,
    users=USERS,
    seeds=tuple(range(SEEDS)),
    iterations=8,
    iterations_per_call=8,
    curve_every=8,
    save_every=8,
    **changes,
  )
  network = dataclasses.replace(config.network, width=8, layers=1)
  return dataclasses.replace(config, train=train, network=network)


def on_policy():
  config = small(tpu_estimates.SARDINE, segment=4, minibatches=2)
  return tpu_estimates.on_policy(config)


def replayed():
  sizes = {"batch_size": 2 * USERS, "buffer_size": 16 * USERS}
  config = small(tpu_estimates.SMALL, **sizes)
  quantizer = dataclasses.replace(config.quantizer, levels=3)
  config = dataclasses.replace(config, quantizer=quantizer)
  return tpu_estimates.replayed(config, ITEMS)


def search(excluded: bool = False):
  program = tpu_estimates.search(ITEMS, USERS)
  if excluded:
    ids = np.ones((USERS, 50), np.int32)
    program = program._replace(arguments=(*program.arguments, ids))
  return program


@pytest.mark.slow
@pytest.mark.skipif(
  not tpu.is_there(), reason="libtpu is not installed; the extra `tpu` has it"
)
class TpuCompileTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("on_policy", on_policy),
    ("replayed", replayed),
    ("simulator", lambda: tpu_estimates.simulator(USERS, ITEMS)),
    ("search", search),
    ("search_with_excluded_items", lambda: search(True)),
    ("kmeans", lambda: tpu_estimates.kmeans_pass(100_003, 16, 8)),
  )
  def test_holds_to_the_rules(self, make):
    function, arguments, _ = make()
    broken = broken_rules(tpu_estimates.estimate(function, *arguments))
    self.assertEmpty([x for x in broken if not re.fullmatch(ONCE, x)])

  def test_an_index_takes_a_search_no_memory(self):
    function, arguments, _ = tpu_estimates.search(100_003, USERS)
    said = tpu_estimates.estimate(function, *arguments)
    self.assertLess(
      said.memory["temporaries"], 100_003
    )  # Less than a byte an item.


@pytest.mark.slow
class LoweredTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("on_policy", on_policy), ("replayed", replayed)
  )
  def test_training_is_lowered_for_gpus(self, make):
    """Each operation is one of XLA's own: none is a kernel, or of the host."""
    function, arguments, _ = make()
    traced = jax.jit(function).trace(*arguments)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    called = set(re.findall(r"custom_call @(\w+)", text))
    self.assertEmpty(called)


def _remembered(seen, slate, step):
  """What the simulator did: a slate is put where its step says."""
  return jax.lax.dynamic_update_slice(seen, slate, (step * len(slate),))


def _chosen(x, token):
  """What the policy did: a choice by its number, whose gradient is wanted."""
  return jax.grad(lambda x: (jnp.tanh(x)[token] * 1.7).sum())(x)


def _mapped_twice(function):
  return jax.vmap(jax.vmap(function))


INTS = np.zeros((USERS, 4), np.int32)
BAD = {
  "update_of_each_user": (
    jax.vmap(_remembered),
    (np.zeros((USERS, 200), np.int32), INTS, INTS[:, 0]),
    rf"loop: {USERS} trips of .*",
  ),
  "gradient_of_each_choice": (
    _mapped_twice(_chosen),
    (np.zeros((USERS, 4, 16), np.float32), INTS),
    rf"loop: {4 * USERS} trips of .*",
  ),
  "loop_over_seeds": (
    lambda x: jax.lax.map(lambda x: jnp.sort(x @ x), x),
    (np.zeros((SEEDS, 256, 256), np.float32),),
    rf"loop: {SEEDS} trips of .*",
  ),
  "loop_over_items": (
    lambda x: jax.lax.scan(lambda a, b: (jnp.tanh(a @ b), ()), x[0], x)[0],
    (np.zeros((ITEMS, 64, 64), np.float32),),
    rf"loop: {ITEMS} trips of .*",
  ),
  "loop_without_an_end": (
    lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, jnp.tanh, x),
    (np.zeros((8, 128), np.float32),),
    "loop: None trips of .*",
  ),
  "callback": (
    lambda x: jax.pure_callback(np.sin, x, x),
    (np.zeros((8, 128), np.float32),),
    "is_host_transfer=true",
  ),
}


@pytest.mark.slow
@pytest.mark.skipif(
  not tpu.is_there(), reason="libtpu is not installed; the extra `tpu` has it"
)
class RulesTest(parameterized.TestCase):
  @parameterized.named_parameters(*[(name, *bad) for name, bad in BAD.items()])
  def test_catches_a_bad_program(self, function, arguments, rule):
    broken = broken_rules(tpu_estimates.estimate(function, *arguments))
    self.assertNotEmpty(broken)
    self.assertRegex(broken[0], f"^{rule}$")

  def test_catches_double_precision(self):
    with jax.enable_x64(True):
      said = tpu_estimates.estimate(jnp.sin, np.zeros((8, 128)))
    self.assertEqual(broken_rules(said), ["float64"])


if __name__ == "__main__":
  absltest.main()
