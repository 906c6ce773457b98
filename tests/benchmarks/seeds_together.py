"""Five seeds in one run against five runs, one after another.

  python tests/benchmarks/seeds_together.py

The stage `policy` of launch/flags/movielens_small.flags, shortened, as the
command does it: start and compilation count. Compares what each seed earns on
validation sessions too. Prints a table, then one line of JSON; takes six
minutes on two cores.
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

ROOT = pathlib.Path(__file__).parents[2]


def command(workdir: pathlib.Path, mode: str, *arguments: str) -> float:
  """Runs a stage; the seconds it took."""
  start = time.perf_counter()
  subprocess.run(
    [
      *(sys.executable, "-m", "hsrl_jax.launch"),
      f"--flagfile={ROOT}/launch/flags/movielens_small.flags",
      f"--workdir={workdir}",
      f"--mode={mode}",
      *arguments,
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    check=True,
  )
  return time.perf_counter() - start


def trained(
  start: pathlib.Path, seeds: list[int], iterations: int
) -> tuple[float, list[float]]:
  """Trains seeds in one run; the seconds it took and each seed's reward."""
  names = ",".join(map(str, seeds))
  workdir = start.with_name(f"seeds_{names}")
  shutil.copytree(start, workdir)
  (workdir / "flags.txt").unlink()
  seconds = command(
    workdir,
    "policy",
    f"--seeds={names}",
    f"--iterations={iterations}",
    f"--curve_every={iterations}",
    f"--save_every={iterations}",
  )
  lines = (workdir / "policy" / "metrics.jsonl").read_text().splitlines()
  return seconds, json.loads(lines[-1])["eval"]["total_reward"]["per_seed"]


def main(seeds: int, iterations: int) -> None:
  """Measures and prints."""
  with tempfile.TemporaryDirectory() as folder:
    start = pathlib.Path(folder) / "start"
    for stage in ("data", "quantize", "simulator"):
      command(start, stage)
    together, rewards = trained(start, list(range(seeds)), iterations)
    alone, differences = 0.0, []
    for seed, reward in enumerate(rewards):
      seconds, (own,) = trained(start, [seed], iterations)
      alone += seconds
      differences.append(abs(own - reward))
  result = {
    "seeds": seeds,
    "iterations": iterations,
    "together_seconds": round(together, 1),
    "one_after_another_seconds": round(alone, 1),
    "ratio": round(together / alone, 3),
    "rewards": [round(x, 3) for x in rewards],
    "largest_difference": max(differences),
    "cores": len(os.sched_getaffinity(0)),
  }
  for name, value in result.items():
    print(f"{name:28} {value}")
  print(json.dumps(result))


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--iterations", type=int, default=2_000)
  main(**vars(parser.parse_args()))
