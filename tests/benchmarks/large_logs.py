"""Learning from logs that are larger than memory, beside logs that are not.

  python tests/benchmarks/large_logs.py [--slates=100000000] [--few=100000]

This is about training from disk; data_scale.py measures the stage data alone.

Logs are made up file by file: sessions of ten slates, of 5 items of 1,000, with
propensities. For both sizes the stages run, each a command of its own; what is
reported of training: the most memory of the process, iterations a second, and
which share of the time it waited for slates to be read. 10^8 slates take 4 GB
of disk, half of them until the stage data is done. With --keep a second call
goes on where the first one was stopped. Prints a table, then one line of JSON.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from hsrl_jax.host import watch

ROOT = pathlib.Path(__file__).parents[2]
ITEMS, SLATE, STEPS, SESSIONS, FILE = 1_000, 5, 10, 2, 250_000
STAGES = ("data", "quantize", "simulator", "policy")


def make(folder: pathlib.Path, slates: int) -> None:
  """Writes the items and the files of slates that are not there yet."""
  rng = np.random.default_rng(0)
  (folder / "sessions").mkdir(parents=True, exist_ok=True)
  features = rng.normal(size=(ITEMS, 8)).tolist()
  items = {"item_id": list(range(ITEMS)), "feature": features}
  pyarrow.parquet.write_table(pa.table(items), folder / "items.parquet")
  quality = rng.normal(size=ITEMS)
  count = -(-slates // FILE)
  with watch.bar(count, "logs", "file") as bar:
    for number in range(count):
      path = folder / "sessions" / f"{number:05d}.parquet"
      if not path.exists():
        table = _file(number, min(FILE, slates - number * FILE), quality)
        pyarrow.parquet.write_table(table, path.with_name("_new"))
        path.with_name("_new").rename(path)
      bar.update()


def _file(number: int, rows: int, quality: np.ndarray) -> pa.Table:
  rng = np.random.default_rng((1, number))
  row = number * FILE + np.arange(rows)
  # Different items: each some places after the one before.
  steps = rng.integers(1, ITEMS // SLATE, (rows, SLATE))
  shown = np.cumsum(steps, 1) % ITEMS
  liked = rng.random(shown.shape) < 1 / (1 + np.exp(1 - quality[shown]))

  def lists(values):
    ends = np.arange(rows + 1, dtype=np.int32) * SLATE
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.ravel()))

  session = row // STEPS
  return pa.table(
    {
      "user_id": session // SESSIONS,
      "session_id": session,
      "step": row % STEPS,
      "exposed": lists(shown.astype(np.int32)),
      "response": lists(liked.astype(np.int8)),
      "propensity": lists(np.full(shown.shape, 1 / ITEMS, np.float32)),
      "reward": liked.mean(1),
      "terminated": (row % STEPS == STEPS - 1).astype(np.int8),
      "timestamp": 1.7e9 + 60.0 * row,
    }
  )


def command(*arguments: str) -> tuple[float, float]:
  """Runs the command; its seconds and its most memory, in MiB."""
  start = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, "-m", "hsrl_jax.launch", *arguments], cwd=ROOT
  )
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"the command failed: {arguments}")
  return time.monotonic() - start, usage.ru_maxrss / 1024


def size(folder: pathlib.Path) -> float:
  """GB of what is in a folder."""
  return sum(x.stat().st_size for x in folder.rglob("*") if x.is_file()) / 1e9


def measure(folder: pathlib.Path, slates: int, flags: list[str]) -> dict:
  """The row of a size."""
  raw, workdir = folder / f"raw_{slates}", folder / f"run_{slates}"
  given = (f"--workdir={workdir}", f"--raw_data_dir={raw}", "--dataset=logs")
  row = {"slates": slates}
  if not (workdir / ".done" / "data").exists():
    start = time.monotonic()
    make(raw, slates)
    print(f"made in {time.monotonic() - start:.0f} s, {size(raw):.1f} GB")
  for stage in STAGES:
    seconds, mib = command(*given, *flags, f"--mode={stage}")
    row |= {f"{stage}_s": round(seconds), f"{stage}_mib": round(mib)}
    if stage == "data":
      row["data_gb"] = round(size(workdir / "data"), 2)
      shutil.rmtree(raw, ignore_errors=True)
      raw.mkdir()  # A run belongs to what was prepared.
  summary = json.loads((workdir / "summary.json").read_text())["policy"]
  waited = summary.get("waiting for slates", 0.0)
  busy = summary["training"]
  lines = (workdir / "policy" / "metrics.jsonl").read_text().splitlines()
  iterations = json.loads(lines[-1])["step"]
  return row | {
    "iterations": iterations,
    "iterations_per_second": round(iterations / busy, 1),
    "waited_s": round(waited, 2),
    "waited_share": round(waited / (busy + waited), 4),
  }


def main() -> None:
  """Measures both sizes and prints them."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--slates", type=int, default=10**8)
  parser.add_argument("--few", type=int, default=10**5)
  parser.add_argument("--folder", type=pathlib.Path)
  parser.add_argument("--keep", action="store_true")
  own, flags = parser.parse_known_args()
  folder = own.folder or pathlib.Path(tempfile.mkdtemp())
  flags = ["--recipe=logs", "--simulator_epochs=1", *flags]
  try:
    rows = [measure(folder, x, flags) for x in (own.few, own.slates)]
  finally:
    if not own.keep:
      shutil.rmtree(folder)
  for name in rows[1]:
    print(f"{name:24}", *(f"{x[name]:>14,}" for x in rows))
  more = rows[1]["policy_mib"] - rows[0]["policy_mib"]
  print(json.dumps({"more_mib": more, "rows": rows}))


if __name__ == "__main__":
  main()
