"""Residual k-means and unique SIDs: speed and error beside faiss, and memory.

  taskset -c 1 python tests/benchmarks/quantizer.py
  taskset -c 1 python tests/benchmarks/quantizer.py --items=10000000

The first needs faiss-cpu; it compares with residual faiss.Kmeans (20
iterations, one thread) on 100,000 x 64, 3 x 256 codes. The second fits
mini-batches of a file and gives all its rows unique SIDs. Both print a table,
then one line of JSON.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import numpy as np

from hsrl_jax import sid
from hsrl_jax.data import embeddings

LEVELS, VOCAB, WIDTH, ITEMS = 3, 256, 64, 100_000
RUNS = 5
BATCH = 65_536


def gaussian(rng: np.random.Generator, items: int) -> np.ndarray:
  return rng.normal(size=(items, WIDTH)).astype(np.float32)


def mixture(centers: np.ndarray, noise: float):
  """Rows of a mixture: the same centers, each with its own noise."""

  def draw(rng: np.random.Generator, items: int) -> np.ndarray:
    center = centers[rng.integers(0, len(centers), items)]
    return (center + noise * gaussian(rng, items)).astype(np.float32)

  return draw


def centers(count: int) -> np.ndarray:
  return np.random.default_rng(1).normal(size=(count, WIDTH))


DATA = {
  "mixture": mixture(centers(1_000), 1.0),
  "gauss": gaussian,
  # Clusters of 100 items that three codes can hardly tell apart.
  "tight": mixture(centers(1_000), 0.3),
}


def error(x: np.ndarray, codebooks: np.ndarray, tokens: np.ndarray) -> float:
  return float(
    ((x - np.asarray(sid.reconstruct(codebooks, tokens))) ** 2).sum(1).mean()
  )


def timed(function):
  start = time.perf_counter()
  result = jax.block_until_ready(function())
  return result, time.perf_counter() - start


def fit(x, **kwargs) -> np.ndarray:
  key = jax.random.key(0)
  return np.asarray(sid.fit(key, x, levels=LEVELS, vocab_size=VOCAB, **kwargs))


def residual_faiss(x: np.ndarray) -> float:
  """Mean squared error of faiss, level by level."""
  import faiss  # Only this comparison needs it.

  faiss.omp_set_num_threads(1)
  for _ in range(LEVELS):
    kmeans = faiss.Kmeans(WIDTH, VOCAB, niter=20)
    kmeans.train(x)
    _, nearest = kmeans.index.search(x, 1)
    x = x - kmeans.centroids[nearest[:, 0]]
  return float((x**2).sum(1).mean())


def compare(name: str) -> dict[str, float]:
  """Ours (fit and encode) and faiss in turns; medians."""
  x = DATA[name](np.random.default_rng(0), ITEMS)
  _, first = timed(lambda: sid.encode_unique(fit(x), x))
  ours, theirs, fits, plain_s, unique_s = [], [], [], [], []
  for _ in range(RUNS):
    their_error, seconds = timed(lambda: residual_faiss(x))
    theirs.append(seconds)
    codebooks, seconds = timed(lambda: fit(x))
    fits.append(seconds)
    tokens, seconds = timed(lambda c=codebooks: sid.encode(c, x))
    plain_s.append(seconds)
    ours.append(fits[-1] + seconds)
    unique, seconds = timed(lambda c=codebooks: sid.encode_unique(c, x))
    unique_s.append(seconds)
  our_error = error(x, codebooks, tokens)
  extra = statistics.median(
    (u - p) / f for u, p, f in zip(unique_s, plain_s, fits, strict=True)
  )
  return {
    "seconds": statistics.median(ours),
    "seconds_faiss": statistics.median(theirs),
    "first_seconds": first,  # With unique SIDs; of the first data, compiling.
    "time_ratio": statistics.median(ours) / statistics.median(theirs),
    "mse": our_error,
    "mse_faiss": their_error,
    "mse_ratio": our_error / their_error,
    "unique_extra_error": error(x, codebooks, unique) / our_error - 1,
    "unique_extra_time": extra,
  }


def write_items(path: pathlib.Path, items: int) -> None:
  """A mixture as a .npy file, block by block."""
  header = {
    "descr": "<f4",
    "fortran_order": False,
    "shape": (items, WIDTH),
  }
  with path.open("wb") as file:
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, items, BATCH):
      rng = np.random.default_rng([2, start])
      file.write(DATA["mixture"](rng, min(BATCH, items - start)).tobytes())


def peak() -> float:
  """Largest resident memory so far, GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def stream(path: pathlib.Path, empty: float) -> dict[str, float]:
  """Fits mini-batches of a file and gives all rows unique SIDs."""
  x = embeddings.open_npy(path)
  codebooks, fit_seconds = timed(lambda: fit(x, batch_size=BATCH))
  fit_peak = peak()
  unique, seconds = timed(lambda: sid.encode_unique(codebooks, x))
  memory = peak() - empty
  number = np.sort(unique @ VOCAB ** np.arange(LEVELS)[::-1])
  assert (np.diff(number) > 0).all(), "two rows share a SID"
  del number
  part = x[:ITEMS]
  plain = error(part, codebooks, sid.encode(codebooks, part))
  return {
    "items": len(x),
    "fit_seconds": fit_seconds,
    "unique_seconds": seconds,
    "peak_gib": memory,
    "fit_peak_gib": fit_peak - empty,
    "unique_extra_error": error(part, codebooks, unique[:ITEMS]) / plain - 1,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--items", type=int, help="rows of a streamed file")
  parser.add_argument("--file", type=pathlib.Path, help=".npy file to stream")
  arguments = parser.parse_args()
  jax.local_devices()
  empty = peak()
  if arguments.file is not None:
    result = stream(arguments.file, empty)
  elif arguments.items is not None:
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / "items.npy"
      write_items(path, arguments.items)
      result = stream(path, empty)
  else:
    result = {
      f"{key}_{name}": value
      for name in DATA
      for key, value in compare(name).items()
    }
  result["cores"] = len(os.sched_getaffinity(0))
  result["devices"] = jax.local_device_count()
  result = {key: round(value, 5) for key, value in result.items()}
  for key, value in result.items():
    print(f"{key:32} {value:12}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
