"""Share of training time that checkpoints take, by the default interval.

  python tests/benchmarks/checkpoint_share.py

A whole run of the default configuration at the sizes of train_throughput.py.
Prints a table, then one line of JSON.
"""

import argparse
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np
import train_throughput

from hsrl_jax.config import TrainConfig
from hsrl_jax.host import watch
from hsrl_jax.stages import policy


def main(items: int, iterations: int) -> None:
  """Trains, prints what saving took."""
  env, catalogue, users, logs = train_throughput.world(items)
  config = train_throughput.configure(iterations=iterations)
  sizes = config.train
  found = watch.Watch()
  with tempfile.TemporaryDirectory() as folder:
    rows = np.arange(policy.CURVE_EPISODES) % len(users.profiles)
    policy.run(
      config,
      pathlib.Path(folder),
      env,
      catalogue,
      users,
      users,
      rows,
      logs,
      found,
    )
    newest = pathlib.Path(folder) / f"policy/checkpoints/{sizes.iterations}"
    size = sum(p.stat().st_size for p in newest.rglob("*") if p.is_file())
  seconds = found.seconds()
  saves = sizes.iterations // sizes.save_every
  result = {
    "items": items,
    "iterations": sizes.iterations,
    "save_every": sizes.save_every,
    "training_seconds": round(seconds["training"], 2),
    "curve_seconds": round(seconds["curve"], 2),
    "seconds_per_checkpoint": round(seconds["checkpoints"] / saves, 3),
    "checkpoint_mib": round(size / 2**20, 1),
    "share": round(
      seconds["checkpoints"] / (seconds["training"] + seconds["checkpoints"]),
      4,
    ),
  }
  train_throughput.show(result)


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--items", type=int, default=9_066)
  parser.add_argument(
    "--iterations", type=int, default=TrainConfig().iterations
  )
  main(**vars(parser.parse_args()))
