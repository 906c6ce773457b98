"""CPU time and memory of the stage `data` for interactions, by their number.

  python tests/benchmarks/data_scale.py [--sizes=2e6,2e7] [--format=parquet]

Rows are made up: a user, an item, a time and a response, with 20 rows a user on
average and a few 10^4 items, in no order. No file of items is given, so item
vectors are made too. Each size is a process of its own. Prints one line of
JSON: `us_a_row_SIZE`, microseconds of CPU (user and system) a row of the
process and its children, and `mib_SIZE`, the most memory of the process.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

ROOT = pathlib.Path(__file__).parents[2]
ROWS_A_USER, ITEMS = 20, 30_000


def write(path: pathlib.Path, rows: int) -> None:
  """Writes made-up interactions to a .csv or a .parquet file."""
  rng = np.random.default_rng(0)
  user = rng.integers(0, rows // ROWS_A_USER, rows)
  item = (ITEMS * rng.random(rows) ** 3).astype(np.int64)  # Some are popular.
  table = pa.table(
    {
      "user_id": user,
      "item_id": item,
      "timestamp": rng.integers(1_600_000_000, 1_700_000_000, rows),
      "response": (rng.random(rows) < 0.4).astype(np.int8),
    }
  )
  if path.suffix == ".csv":
    pyarrow.csv.write_csv(table, path)
  else:
    pyarrow.parquet.write_table(table, path)


def measure(rows: int, suffix: str) -> tuple[float, float]:
  """Microseconds of CPU a row, and the most memory in MiB."""
  with tempfile.TemporaryDirectory() as folder:
    raw = pathlib.Path(folder, "raw")
    raw.mkdir()
    write(raw / f"interactions.{suffix}", rows)
    flags = (
      *("--mode=data", "--dataset=logs"),
      f"--raw_data_dir={raw}",
      f"--workdir={folder}/run",
    )
    process = subprocess.Popen(
      [sys.executable, "-m", "hsrl_jax.launch", *flags],
      cwd=ROOT,
      stdout=sys.stderr,
    )
    _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"the stage data failed at {rows:,} rows")
  seconds = usage.ru_utime + usage.ru_stime
  return 1e6 * seconds / rows, usage.ru_maxrss / 1024


def main() -> None:
  """Measures all sizes and prints them."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--sizes", default="2e6,2e7")
  parser.add_argument("--format", choices=("csv", "parquet"), default="parquet")
  flags = parser.parse_args()
  found = {}
  for size in flags.sizes.split(","):
    us, mib = measure(int(float(size)), flags.format)
    found |= {f"us_a_row_{size}": round(us, 2), f"mib_{size}": round(mib)}
  print(json.dumps(found))


if __name__ == "__main__":
  main()
