"""What matters on the device at hand, in eight minutes, as one file of JSON.

  python tests/benchmarks/accelerator.py [--out=accelerator.json] [--small]

Training at the sizes of the paper's code by seeds side by side and by users;
steps of SARDINE; quantizer and index of 10^6 and 10^7 items; beam search of
these for 8 to 1,024 users; an export of 10^6 items; the tests that see the
device; and whether it agrees with the CPU. What is out of memory, or out of
time, is said to be. --small: sizes that a CPU has done with in a minute.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import beam_search
import index
import jax
import jax.numpy as jnp
import numpy as np
import quantizer
import serving_export
import train_throughput

from hsrl_jax import environments, serving, sid
from hsrl_jax.environments import gymnax_like

LEVELS, VOCAB, WIDTH = quantizer.LEVELS, quantizer.VOCAB, quantizer.WIDTH
# Of what a GPU or TPU rounds differently, at most: see docs/scaling.md.
MAX_TOKENS, MAX_ITEMS, MAX_SCORE = 1e-3, 0.05, 0.05
# Measurement: a name and what returns its figure, a number or a text.
Measurements = Iterator[tuple[str, Callable[[], Any]]]


class Sizes(NamedTuple):
  """How much of everything."""

  seeds: tuple[int, ...] = (1, 8, 32, 128)
  users: tuple[int, ...] = (32, 256, 1_024, 4_096)
  trained_items: int = 9_066
  calls: int = 3
  environments: int = 4_096
  steps: int = 100
  items: tuple[int, ...] = (10**6, 10**7)
  searched: tuple[int, ...] = (8, 64, 256, 1_024)
  exported_items: int = 10**6
  tests: tuple[str, ...] = ("ops", "sid", "networks", "sim", "engine")


SMALL = Sizes(
  seeds=(2,),
  users=(),
  trained_items=500,
  calls=1,
  environments=8,
  steps=5,
  items=(2_000,),
  searched=(2,),
  exported_items=500,
  tests=("ops/tree_test.py",),
)


def training(sizes: Sizes) -> Measurements:
  """Iterations/s of all seeds together, and of users."""

  def rate(**changes) -> float:
    config = train_throughput.configure(**changes)
    speed = train_throughput.measured(
      sizes.trained_items, config, calls=sizes.calls
    )
    return statistics.median(speed.rates) * len(config.train.seeds)

  for count in sizes.seeds:
    seeds = tuple(range(count))
    yield f"seeds_{count}_it_s", functools.partial(rate, seeds=seeds)
  for users in sizes.users:
    changes = {"users": users, "batch_size": 2 * users}
    changes |= {"iterations_per_call": 20, "buffer_size": 400 * users}
    yield f"users_{users}_it_s", functools.partial(rate, **changes)


def sardine(sizes: Sizes) -> Measurements:
  """Steps/s of SlateTopK-Bored, with slates at random."""
  env = gymnax_like.Environment(environments.sardine())
  keys = jax.random.split(jax.random.key(0), sizes.environments)

  def step(state, key):
    keys = jax.random.split(key, 2 * sizes.environments).reshape(2, -1)
    slates = jax.vmap(env.action_space().sample)(keys[0])
    _, state, reward, _, _ = jax.vmap(env.step)(keys[1], state, slates)
    return state, reward.sum()

  @jax.jit
  def run(state, key):
    return jax.lax.scan(step, state, jax.random.split(key, sizes.steps))[1]

  def rate() -> float:
    _, state = jax.jit(jax.vmap(env.reset))(keys)
    took = beam_search.milliseconds(run, state, jax.random.key(1), calls=5)
    return 1e3 * sizes.environments * sizes.steps / took

  yield "steps_s", rate


def codebooks(sizes: Sizes) -> Measurements:
  """Seconds to fit codebooks by mini-batches, and to give unique SIDs."""
  for count in sizes.items:
    known = {}

    def fit(count=count, known=known) -> float:
      known["x"] = quantizer.DATA["mixture"](np.random.default_rng(0), count)
      known["codebooks"], seconds = quantizer.timed(
        lambda: quantizer.fit(known["x"], batch_size=quantizer.BATCH)
      )
      return seconds

    def unique(known=known) -> float:
      return quantizer.timed(
        lambda: sid.encode_unique(known["codebooks"], known["x"])
      )[1]

    yield f"fit_{count}_s", fit
    yield f"unique_{count}_s", unique


def search(sizes: Sizes) -> Measurements:
  """Seconds to build an index; milliseconds of a beam search of all users."""
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(LEVELS, VOCAB, VOCAB)), jnp.float32)
  for count in sizes.items:
    known = {}

    def build(count=count, known=known) -> float:
      tokens = index.random_tokens(np.random.default_rng(0), count)
      known["index"], seconds = quantizer.timed(
        lambda: sid.build_index(tokens, VOCAB)
      )
      return seconds

    def decode(users, known=known) -> float:
      rows = rng.normal(size=(users, LEVELS, VOCAB)).astype(np.float32)
      return beam_search.milliseconds(
        beam_search.constrained,
        known["index"],
        jnp.asarray(rows),
        table,
        calls=11,
      )

    yield f"index_{count}_s", build
    for users in sizes.searched:
      name = f"search_{count}_users_{users}_ms"
      yield name, functools.partial(decode, users)


def served(sizes: Sizes) -> Measurements:
  """An export, loaded on the device: seconds to load, milliseconds of 8."""
  with tempfile.TemporaryDirectory() as folder:
    export, known = pathlib.Path(folder) / "export", {}

    def load() -> float:
      serving_export.write(export, sizes.exported_items)
      start = time.perf_counter()
      known["recommender"] = serving.load(export, [8])
      return time.perf_counter() - start

    def decode() -> float:
      rng = np.random.default_rng(0)
      asked = [
        serving_export.request(rng, sizes.exported_items) for _ in range(8)
      ]
      columns = [[x[name] for x in asked] for name in asked[0]]
      return beam_search.milliseconds(
        lambda: known["recommender"].recommend(*columns).items, calls=21
      )

    yield "load_s", load
    yield "decode_8_ms", decode


def tests(sizes: Sizes) -> Measurements:
  """What pytest says at its end of the tests that see the device."""

  def run() -> str:
    root = pathlib.Path(__file__).parents[2]
    ran = subprocess.run(
      [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
      + [str(root / "tests" / x) for x in sizes.tests],
      cwd=root,
      capture_output=True,
      text=True,
      timeout=240,
      check=False,
    )
    return (ran.stdout.strip() or ran.stderr.strip()).splitlines()[-1]

  yield "pytest", run


def agreement(sizes: Sizes) -> Measurements:
  """Shares that differ from the CPU's, which bounds are set to."""
  count, cpu = min(sizes.items[0], 100_000), jax.devices("cpu")[0]
  rng = np.random.default_rng(1)
  x = quantizer.DATA["mixture"](rng, count)
  tokens = index.random_tokens(rng, count)
  codebooks = rng.normal(size=(LEVELS, VOCAB, WIDTH)).astype(np.float32)
  rows = rng.normal(size=(8, LEVELS, VOCAB)).astype(np.float32)
  table = rng.normal(size=(LEVELS, VOCAB, VOCAB)).astype(np.float32)

  def twice(function) -> tuple[Any, Any]:
    own = jax.device_get(function())
    with jax.default_device(cpu):
      return own, jax.device_get(function())

  def bounded(share: float, most: float) -> str:
    held = "within" if share <= most else "ABOVE"
    return f"{share:.2g}, {held} {most:g}"

  def encoded() -> str:
    own, known = twice(lambda: sid.encode(codebooks, x))
    return bounded(float(np.mean((own != known).any(1))), MAX_TOKENS)

  def looked_up() -> str:
    def look():
      built = sid.build_index(tokens, VOCAB)
      return sid.sid_of(built, jnp.arange(1, count + 1))

    own, known = twice(look)
    return bounded(float(np.mean(own != known)), 0.0)

  def found(part: str) -> str:
    own, known = twice(
      lambda: beam_search.constrained(
        sid.build_index(tokens, VOCAB), jnp.asarray(rows), jnp.asarray(table)
      )
    )
    if part == "items":
      pairs = zip(own.items[:, :10], known.items[:, :10], strict=True)
      held = np.mean([np.isin(a, b).mean() for a, b in pairs])
      return bounded(float(1 - held), MAX_ITEMS)
    error = np.abs(own.scores - known.scores).max()
    return bounded(float(error), MAX_SCORE)

  yield "tokens", encoded
  yield "lookup", looked_up
  yield "best_ten", functools.partial(found, "items")
  yield "scores", functools.partial(found, "scores")


SECTIONS = (agreement, training, sardine, codebooks, search, served, tests)


def figure(measure: Callable[[], Any]) -> Any:
  """What is measured, or why it is not."""
  try:
    value = measure()
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
      return "out of memory"
    raise
  except KeyError:  # What it needs is out of memory, or of time.
    return "not measured"
  except subprocess.TimeoutExpired as error:
    return f"not done after {error.timeout:.0f} s"
  return value if isinstance(value, str) else float(f"{value:.4g}")


def main(out: pathlib.Path, minutes: float, small: bool) -> None:
  """Measures section by section until the time is up; writes `out`."""
  sizes, start = SMALL if small else Sizes(), time.monotonic()
  device = jax.devices()[0]
  result = {
    "device": device.device_kind,
    "platform": device.platform,
    "devices": jax.device_count(),
    "cores": len(os.sched_getaffinity(0)),
    "jax": jax.__version__,
    "small": small,
  }
  for section in SECTIONS:
    result[section.__name__] = {}
    with contextlib.closing(section(sizes)) as measurements:
      for name, measure in measurements:
        late = time.monotonic() - start > 60 * minutes
        value = "out of time" if late else figure(measure)
        result[section.__name__][name] = value
        print(f"{section.__name__:12} {name:32} {value}", flush=True)
    jax.clear_caches()
  result["seconds"] = round(time.monotonic() - start)
  out.write_text(json.dumps(result, indent=2) + "\n")
  print(f"{result['seconds']} s; written to {out}")


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("accelerator.json")
  )
  parser.add_argument("--minutes", type=float, default=8)
  parser.add_argument("--small", action="store_true")
  main(**vars(parser.parse_args()))
