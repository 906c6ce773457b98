"""A whole request to an export of 10^6 items, on one core.

  taskset -c 0 python tests/benchmarks/serving_decode.py [--items=1000000]

L 3, V 256, 50 beams, d 32, H 50, 2 layers, slates of 10, 200 ids that may be
excluded, eight users at once: checks, padding, encoder, search, what SIDs lose
of features, and the way back to numpy. `decode` is what a server does of it,
with requests that are checked already. Cold start is a process of its own, from
its start to its first answer: five, the median and the longest. Peers in the
same run: the same function jitted where the policy was trained, and scoring
every item.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import serving_export

from hsrl_jax import serving

BATCH, CALLS, STARTS = 8, 1_000, 5
_COLD = """
import time
start = time.time()
import sys
from hsrl_jax import serving
imported = time.time()
recommender = serving.load(sys.argv[1], [8])
loaded = time.time()
recommender.recommend([[1, 2]], [[0.0] * 8])
print(imported - float(sys.argv[2]), loaded - imported,
      time.time() - float(sys.argv[2]))
"""


def times(function, calls: int = CALLS) -> tuple[float, float]:
  """Milliseconds of a call, median and 99th percentile."""
  for _ in range(20):
    function(0)
  times = []
  for call in range(calls):
    start = time.perf_counter()
    function(call)
    times.append(1e3 * (time.perf_counter() - start))
  return float(np.median(times)), float(np.percentile(times, 99))


def cold_start(folder: pathlib.Path) -> list[float]:
  """Seconds to import, to load, and of all until the first answer."""
  cold = subprocess.run(
    [sys.executable, "-c", _COLD, str(folder), str(time.time())],
    env=dict(os.environ, PYTHONPATH=str(pathlib.Path(__file__).parents[2])),
    capture_output=True,
    text=True,
    check=True,
  )
  return [float(x) for x in cold.stdout.split()]


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--items", type=int, default=1_000_000)
  items = parser.parse_args().items
  result = {"items": items, "cores": len(os.sched_getaffinity(0))}
  rng = np.random.default_rng(1)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "export"
    start = time.perf_counter()
    live = serving_export.write(folder, items)
    result["export_s"] = time.perf_counter() - start
    starts = np.array([cold_start(folder) for _ in range(STARTS)])
    for part, seconds in zip(
      ("import", "load", "cold_start"), np.median(starts, 0), strict=True
    ):
      result[f"{part}_s"] = seconds
    result["cold_start_max_s"] = starts[:, 2].max()
    recommender = serving.load(folder)
    batches = []
    for _ in range(50):
      requests = [serving_export.request(rng, items) for _ in range(BATCH)]
      rows = [[x[k] for x in requests] for k in ("history", "profile", "seen")]
      queries = [recommender.query(*x) for x in zip(*rows, strict=True)]
      batches.append((rows, queries))

    def measure(name, function, **kwargs):
      p50, p99 = times(lambda call: function(batches[call % 50]), **kwargs)
      result[f"{name}_p50_ms"], result[f"{name}_p99_ms"] = p50, p99

    measure("recommend", lambda x: recommender.recommend(*x[0]))
    measure("decode", lambda x: recommender.decode(x[1]))
    arrays = recommender.catalogue.arrays()
    policy, arrays = jax.device_put((live.policy, arrays))
    jitted = jax.jit(live.function)

    def unexported(batch):
      padded = jax.tree.map(lambda *x: np.stack(x), *batch[1])
      return jax.device_get(jitted(policy, arrays, padded.inputs()))

    measure("unexported", unexported)
    jitted = jax.jit(live.every_item)
    measure("every_item", unexported, calls=20)
    same = recommender.decode(batches[0][1]).items == unexported(batches[0])[0]
    result["top_found"] = float(same[:, 0].mean())
  result["every_item_ratio"] = (
    result["every_item_p50_ms"] / result["decode_p50_ms"]
  )
  result = {k: round(v, 3) for k, v in result.items()}
  for key, value in result.items():
    print(f"{key:28} {value}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
