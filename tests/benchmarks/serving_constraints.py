"""Requests with tags to an export of 10^6 items, on one core.

  taskset -c 0 python tests/benchmarks/serving_constraints.py
    [--items=1000000] [--decodes=1000000] [--batch=8] [--beams=50]

L 3, V 256, d 32, H 50, 2 layers, slates of 10. 24 tags: of categories an item
has three of 20, the first common and the last rare; of regions one of four. An
item's time is from 0 to 999. A request includes no, one or three categories,
excludes no, one or three, wants a region or not, and items of the last half or
not; rare tags as often as common ones, so that some requests leave little.

Each slate is compared, item by item, with tags and times that are kept apart:
`violations` are items outside, `short` slates of fewer than ten although ten
were left, which takes a count over all items and is done for a part of them.
`ratio` is the time of these requests to that of the same requests, without
tags, to the same function exported from a catalogue without tags; `free_ratio`
that of requests without tags to the function with them. Both functions are
called by turns; times are CPU time.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import numpy as np
import serving_export

from hsrl_jax import serving

CATEGORIES, REGIONS, TIMES, COUNTED = 20, 4, 1_000, 200
NAMES = [f"c{i}" for i in range(CATEGORIES)] + [f"r{i}" for i in range(REGIONS)]


def tag_bits(rng: np.random.Generator, items: int) -> np.ndarray:
  """Which item has which tag, bool [N + 1, 24]."""
  weights = 1.0 / np.arange(1, CATEGORIES + 1) ** 1.5
  noise = rng.gumbel(size=(items + 1, CATEGORIES)) + np.log(weights)
  bits = np.zeros((items + 1, CATEGORIES + REGIONS), bool)
  best = np.argpartition(-noise, 3, axis=1)[:, :3]
  bits[np.arange(items + 1)[:, None], best] = True
  region = CATEGORIES + rng.integers(0, REGIONS, items + 1)
  bits[np.arange(items + 1), region] = True
  return bits


def rules(rng: np.random.Generator) -> dict:
  """What one request asks."""
  include = rng.choice(CATEGORIES, rng.choice([0, 1, 3]), replace=False)
  left = np.setdiff1d(np.arange(CATEGORIES), include)
  exclude = rng.choice(left, rng.choice([0, 1, 3]), replace=False).tolist()
  if rng.random() < 0.5:  # One region: without the others.
    keep = rng.integers(REGIONS)
    exclude += [CATEGORIES + i for i in range(REGIONS) if i != keep]
  since = int(rng.integers(0, 2)) * TIMES // 2
  return {"include": include.tolist(), "exclude": exclude, "since": since}


def permitted(bits, added, rule) -> np.ndarray:
  """Which rows are permitted, by the definition."""
  result = added >= rule["since"]
  if rule["include"]:
    result = result & bits[..., rule["include"]].any(-1)
  return result & ~bits[..., rule["exclude"]].any(-1)


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


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--items", type=int, default=1_000_000)
  parser.add_argument("--decodes", type=int, default=1_000_000)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--beams", type=int, default=50)
  args = parser.parse_args()
  rng, items, batch = np.random.default_rng(1), args.items, args.batch
  bits, added = tag_bits(rng, items), rng.integers(0, TIMES, items + 1)
  words = (bits << np.arange(len(NAMES))).sum(-1).astype(np.uint32)
  recommenders = []
  with tempfile.TemporaryDirectory() as name:
    for kind in ("with", "without"):
      folder = pathlib.Path(name) / kind
      with_tags = kind == "with"
      serving_export.write(
        folder, items, (batch,), beams=args.beams, has_tags=with_tags
      )
      start = time.perf_counter()
      recommender = serving.load(folder)
      load = time.perf_counter() - start
      print(f"{kind}: loaded in {load:.1f} s", flush=True)
      recommenders.append(recommender)
  tagged, plain = recommenders
  catalogue = tagged.catalogue
  room = catalogue.index.capacity - items
  tags = catalogue.tags._replace(
    names=tuple(NAMES),
    words=np.pad(words[:, None], ((0, room), (0, 0))),
    added=np.pad(added.astype(np.uint32), (0, room)),
  )
  start = time.perf_counter()
  tagged = tagged.with_catalogue(catalogue._replace(tags=tags))
  print(f"tags put in service in {time.perf_counter() - start:.2f} s")

  def query(recommender, request, rule):
    rows = (request["history"], request["profile"], request["seen"])
    if rule is None:
      return recommender.query(*rows)
    names = {x: [NAMES[i] for i in rule[x]] for x in ("include", "exclude")}
    return recommender.query(*rows, **names, since=rule["since"])

  requests = [serving_export.request(rng, items) for _ in range(400)]
  frees = [query(plain, x, None) for x in requests]
  tagged_frees = [query(tagged, x, None) for x in requests]
  masked, free, without = Timer(), Timer(), Timer()
  found = {"violations": 0, "counted": 0, "short": 0}
  calls = -(-args.decodes // batch)
  for call in range(calls):
    chosen = rng.integers(0, len(requests), batch)
    own = [rules(rng) for _ in chosen]
    queries = [
      query(tagged, requests[i], rule)
      for i, rule in zip(chosen, own, strict=True)
    ]
    slates = masked(tagged.decode, queries)
    if call % 10 == 0 or calls < 2_000:
      for timer, recommender, kept in (
        (free, tagged, tagged_frees),
        (without, plain, frees),
      ):
        timer(recommender.decode, [kept[i] for i in chosen])
    for row, rule in enumerate(own):
      shown = slates.items[row][slates.valid[row]]
      outside = ~permitted(bits[shown], added[shown], rule)
      found["violations"] += int(outside.sum())
      found["violations"] += int(np.isin(shown, queries[row].seen).sum())
    for row in range(batch) if found["counted"] < COUNTED else ():
      left = np.flatnonzero(permitted(bits, added, own[row]))
      left = np.setdiff1d(left, [0, *queries[row].seen])
      count = min(slates.items.shape[1], len(left))
      found["counted"] += 1
      found["short"] += int(slates.valid[row].sum() < count)
  result = {"items": items, "decodes": calls * batch, "beams": args.beams}
  result |= found | {"devices": str(jax.devices()[0])}
  for name, timer in (
    ("masked", masked), ("free", free), ("without", without)
  ):  # fmt: skip
    result[f"{name}_p50_ms"] = round(float(np.median(timer.ms)), 3)
    result[f"{name}_mean_ms"] = round(float(timer.ms.mean()), 3)
    result[f"{name}_p99_ms"] = round(float(np.percentile(timer.ms, 99)), 3)
  for name in ("p50", "mean"):
    base = result[f"without_{name}_ms"]
    result[f"ratio_{name}"] = round(result[f"masked_{name}_ms"] / base, 3)
    result[f"free_ratio_{name}"] = round(result[f"free_{name}_ms"] / base, 3)
  for key, value in result.items():
    print(f"{key:20} {value}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
