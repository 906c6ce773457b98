"""The living index at scale: build, add, remove, and the memory it takes.

  python tests/benchmarks/index.py [--large=10000000]

V 256, L 3, SIDs drawn at random, which fills every prefix. Medians; each
change starts from the same index of 10^6 items with room for 2 x 10^6.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import numpy as np

from hsrl_jax import sid

LEVELS, VOCAB, WIDTH, ITEMS, CHANGED, REPEATS = 3, 256, 64, 10**6, 1_000, 7


def random_tokens(rng: np.random.Generator, items: int) -> np.ndarray:
  """Distinct SIDs, int32 [N, L]."""
  numbers = rng.permutation(VOCAB**LEVELS)[:items]
  return np.stack(np.unravel_index(numbers, (VOCAB,) * LEVELS), 1, dtype="i4")


def seconds(function, repeats: int = REPEATS):
  """The result, and the median time of some calls after a first one."""
  result = jax.block_until_ready(function())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    times.append(time.perf_counter() - start)
  return result, statistics.median(times)


def bytes_of(index: sid.SidIndex) -> int:
  """What the arrays take on the device."""
  return sum(x.nbytes for x in jax.tree.leaves(index))


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--large", type=int, default=10**7)
  large = parser.parse_args().large
  rng = np.random.default_rng(0)
  codebooks = rng.normal(size=(LEVELS, VOCAB, WIDTH)).astype(np.float32)
  codebooks *= np.float32(0.5) ** np.arange(LEVELS)[:, None, None]
  x = 1.15 * rng.normal(size=(CHANGED, WIDTH)).astype(np.float32)
  tokens = random_tokens(rng, ITEMS)
  exact, build = seconds(lambda: sid.build_index(tokens, VOCAB), 3)
  roomy = sid.build_index(tokens, VOCAB, capacity=2 * ITEMS)
  new = np.arange(ITEMS + 1, ITEMS + CHANGED + 1)
  old = rng.choice(ITEMS, CHANGED, replace=False) + 1
  _, add = seconds(lambda: sid.add_items(roomy, new, codebooks, x))
  removed, remove = seconds(lambda: sid.remove_items(roomy, old))
  _, again = seconds(lambda: sid.add_items(removed, old, codebooks, x))
  doubled, grow = seconds(lambda: sid.add_items(exact, new, codebooks, x), 3)
  tokens = random_tokens(rng, large)
  start = time.perf_counter()
  index = sid.build_index(tokens, VOCAB)
  build_large = time.perf_counter() - start
  result = {
    "build_seconds_1e6": round(build, 2),
    f"build_seconds_{large:.0e}".replace("+0", ""): round(build_large, 2),
    "bytes_per_item_1e6": round(bytes_of(exact) / ITEMS, 2),
    f"bytes_per_item_{large:.0e}".replace("+0", ""): round(
      bytes_of(index) / large, 2
    ),
    "bytes_per_item_just_doubled": round(
      bytes_of(doubled) / (ITEMS + CHANGED), 2
    ),
    "add_ms": round(1e3 * add, 1),
    "remove_ms": round(1e3 * remove, 1),
    "add_again_ms": round(1e3 * again, 1),
    "add_and_double_ms": round(1e3 * grow, 1),
    "cores": len(os.sched_getaffinity(0)),
  }
  for name, value in result.items():
    print(f"{name:30} {value}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
