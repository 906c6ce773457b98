"""Requests with tags to an export of 10^6 items, on one core.

  taskset -c 0 python tests/benchmarks/serving_constraints.py
    [--items=1000000] [--decodes=1000000] [--batch=32] [--beams=50,128,512]
    [--seconds=600]

For each number of beams so many decodes, or as many as --seconds allow. L 3,
V 256, d 32, H 50, 2 layers, slates of 10. 24 tags: of categories an item has
three of 20, the first common and the last rare; of regions one of four. An
item's time is from 0 to 999. A request includes no, one or three categories,
excludes no, one or three, wants a region or not, and items of the last half or
not; rare tags as often as common ones, so that some requests leave little.

Each slate is compared, item by item, with tags and times that are kept apart:
`violations` are items outside, `short` slates of fewer than ten although ten
were left, which takes a count over all items and is done for a part of them.
`ratio` is the time of these requests to that of the same requests without tags.
Both are called by turns, the latter in the first 200 calls and about 2,000 of
the later ones; times are CPU time.
"""

import argparse
import json
import pathlib
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np
import serving_export

from hsrl_jax import serving
from hsrl_jax.host import watch
from hsrl_jax.sid import permits

CATEGORIES, REGIONS, TIMES, COUNTED = 20, 4, 1_000, 200
OFTEN, TIMED = 200, 2_000  # Calls that are timed without tags too, and later.
NAMES = [f"c{i}" for i in range(CATEGORIES)] + [f"r{i}" for i in range(REGIONS)]


class Rules(NamedTuple):
  """What requests ask.

  Attributes:
    include: bool [n, 24], tags of which an item needs one, where there are any.
    exclude: bool [n, 24], tags that an item may not have.
    since: int [n], the least time.
  """

  include: np.ndarray
  exclude: np.ndarray
  since: np.ndarray

  def permit(self, row: int, bits, added) -> np.ndarray:
    """Which items one request permits, by the definition.

    Args:
      row: of the request.
      bits: bool [..., 24], tags of the items.
      added: int [...], their times.
    """
    include, exclude = self.include[row], self.exclude[row]
    result = added >= self.since[row]
    if include.any():
      result = result & bits[..., include].any(-1)
    return result & ~bits[..., exclude].any(-1)


def words(bits: np.ndarray) -> np.ndarray:
  """Bits [..., 24] as uint32 [...]."""
  return (bits << np.arange(len(NAMES))).sum(-1).astype(np.uint32)


def tag_bits(rng: np.random.Generator, items: int) -> np.ndarray:
  """Which item has which tag, bool [N + 1, 24]."""
  weights = 1.0 / np.arange(1, CATEGORIES + 1) ** 1.5
  noise = rng.gumbel(size=(items + 1, CATEGORIES)) + np.log(weights)
  bits = np.zeros((items + 1, CATEGORIES + REGIONS), bool)
  best = np.argpartition(-noise, 3, axis=1)[:, :3]
  bits[np.arange(items + 1)[:, None], best] = True
  region = CATEGORIES + rng.integers(0, REGIONS, items + 1)
  bits[np.arange(items + 1), region] = True
  return np.asfortranarray(bits)  # Tag by tag, which is how it is asked for.


def draw(rng: np.random.Generator, count: int) -> Rules:
  """Rules of so many requests."""
  order = rng.random((count, CATEGORIES)).argsort(1).argsort(1)
  some, others = (rng.choice([0, 1, 3], count)[:, None] for _ in range(2))
  # Excluded categories are others than the included ones.
  exclude = (order >= some) & (order < some + others)
  keep = rng.integers(REGIONS, size=count)[:, None]
  wants = rng.random(count)[:, None] < 0.5  # One region: without the others.
  nowhere = wants & (np.arange(REGIONS) != keep)
  return Rules(
    np.pad(order < some, ((0, 0), (0, REGIONS))),
    np.concatenate([exclude, nowhere], 1),
    rng.integers(0, 2, count) * TIMES // 2,
  )


class Timer:
  """Seconds of CPU time of calls, which other programs change little."""

  def __init__(self):
    """Starts with none."""
    self.seconds = []

  def __call__(self, function, *arguments):
    """Calls, and keeps the time."""
    start = time.process_time()
    result = function(*arguments)
    self.seconds.append(time.process_time() - start)
    return result

  @property
  def ms(self) -> np.ndarray:
    """Milliseconds of the calls."""
    return 1e3 * np.asarray(self.seconds)


def load(beams: int, items: int, batch: int, bits, added):
  """A recommender of an export whose items have these tags."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "export"
    serving_export.write(folder, items, (batch,), beams=beams)
    start = time.perf_counter()
    recommender = serving.load(folder)
    took = time.perf_counter() - start
    print(f"{beams} beams: loaded in {took:.1f} s", flush=True)
  catalogue = recommender.catalogue
  room = catalogue.index.capacity - items
  tags = catalogue.tags._replace(
    names=tuple(NAMES),
    words=np.pad(words(bits)[:, None], ((0, room), (0, 0))),
    added=np.pad(added.astype(np.uint32), (0, room)),
  )
  start = time.perf_counter()
  recommender = recommender.with_catalogue(catalogue._replace(tags=tags))
  print(f"tags put in service in {time.perf_counter() - start:.2f} s")
  return recommender


def measure(beams: int, args: argparse.Namespace) -> dict:
  """Decodes with so many beams."""
  rng, items, batch = np.random.default_rng(1), args.items, args.batch
  bits, added = tag_bits(rng, items), rng.integers(0, TIMES, items + 1)
  recommender = load(beams, items, batch, bits, added)
  requests = [serving_export.request(rng, items) for _ in range(400)]
  frees = [
    recommender.query(x["history"], x["profile"], x["seen"]) for x in requests
  ]
  masked, free = Timer(), Timer()
  found = {"violations": 0, "counted": 0, "short": 0}
  calls = -(-args.decodes // batch)
  every, start = max(1, calls // TIMED), time.monotonic()
  with watch.bar(calls * batch, f"{beams} beams", "decode") as bar:
    for call in range(calls):
      if time.monotonic() > start + args.seconds:
        break
      chosen, own = rng.integers(0, len(requests), batch), draw(rng, batch)
      include, exclude = words(own.include), words(own.exclude)
      since = own.since.astype(np.uint32)
      queries = [
        frees[i]._replace(
          allow=permits.Allow(include[[row]], exclude[[row]], since[row])
        )
        for row, i in enumerate(chosen)
      ]
      slates = masked(recommender.decode, queries)
      if call < OFTEN or call % every == 0:
        free(recommender.decode, [frees[i] for i in chosen])
      for row, query in enumerate(queries):
        shown = slates.items[row][slates.valid[row]]
        inside = own.permit(row, bits[shown], added[shown])
        inside &= ~np.isin(shown, query.seen)
        found["violations"] += int((~inside).sum())
        if found["counted"] < COUNTED:
          left = own.permit(row, bits, added)
          left[[0, *query.seen]] = False
          count = min(slates.items.shape[1], left.sum())
          found["counted"] += 1
          found["short"] += int(slates.valid[row].sum() < count)
      bar.update(batch)
  done = len(masked.seconds) * batch
  result = {"items": items, "decodes": done, "batch": batch}
  result |= {"beams": beams} | found | {"devices": str(jax.devices()[0])}
  for name, timer in (("masked", masked), ("free", free)):
    result[f"{name}_calls"] = len(timer.seconds)
    result[f"{name}_p50_ms"] = round(float(np.median(timer.ms)), 3)
    result[f"{name}_mean_ms"] = round(float(timer.ms.mean()), 3)
    result[f"{name}_p99_ms"] = round(float(np.percentile(timer.ms, 99)), 3)
  for name in ("p50", "mean"):
    ratio = result[f"masked_{name}_ms"] / result[f"free_{name}_ms"]
    result[f"ratio_{name}"] = round(ratio, 3)
  return result


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--items", type=int, default=1_000_000)
  parser.add_argument("--decodes", type=int, default=1_000_000)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--beams", default="50,128,512")
  parser.add_argument("--seconds", type=float, default=float("inf"))
  args = parser.parse_args()
  for beams in map(int, args.beams.split(",")):
    result = measure(beams, args)
    for key, value in result.items():
      print(f"{key:20} {value}")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
  main()
