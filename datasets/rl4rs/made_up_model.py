"""Makes up a click model on RL4RS's items, for those without its logs.

  python -m hsrl_jax.shipped.datasets.rl4rs.made_up_model \
    --item_info=item_info.csv --out=urm.npz

The items are those of the official `item_info.csv`; users, their histories and
all weights are drawn at random, so nothing here is about real users. The file
is for `--response_params`, see docs/bring_your_own.md.
"""

import argparse
import csv
import pathlib

import numpy as np

USERS, HISTORY = 2_000, 10
PROFILE, HIDDEN, FEATURES = 10, 64, 16
# How much users have of their own and in common, and how much they like: chosen
# by the bounds alone.
OWN, COMMON, LIKING = 0.5, 0.6, -0.5


def read_items(path: pathlib.Path) -> np.ndarray:
  """The published vectors, standardised, [N + 1, D]; row 0 for padding.

  Raises:
    OSError, KeyError, AttributeError, ValueError: it is not RL4RS's file.
  """
  with path.open(newline="") as file:
    rows = list(csv.DictReader(file, delimiter=" "))
  vectors = np.array([x["item_vec"].split(",") for x in rows], np.float64)
  if vectors.ndim != 2 or not (vectors.std(0) > 0).all():
    raise ValueError("no vectors whose numbers are finite and differ")
  vectors = (vectors - vectors.mean(0)) / vectors.std(0)
  return np.concatenate([np.zeros((1, vectors.shape[1])), vectors])


def make(items: np.ndarray, seed: int) -> dict[str, np.ndarray]:
  """Name to array, with the shapes of docs/bring_your_own.md.

  Items are [N + 1, D], row 0 for padding.
  """
  rng = np.random.default_rng(seed)

  def dense(name, width, out, gain=1.0):
    scale = gain / np.sqrt(width)
    arrays[f"{name}.kernel"] = scale * rng.normal(size=(width, out))
    arrays[f"{name}.bias"] = np.zeros(out)

  arrays = {"item_features": items}
  dense("user_hidden", PROFILE, HIDDEN)
  dense("user_out", HIDDEN, FEATURES, gain=2.0)
  dense("item", items.shape[1], FEATURES)
  for block in ("self_attention", "cross_attention"):
    for name in ("query", "key", "value", "out"):
      dense(f"{block}.{name}", FEATURES, FEATURES)
  arrays["cross_attention.out.kernel"] *= OWN
  common = COMMON * rng.normal(size=FEATURES)
  arrays["cross_attention.out.bias"] = common
  arrays["item.bias"] = LIKING * common / (common @ common)
  arrays["profiles"] = rng.normal(size=(USERS, PROFILE))
  histories = rng.integers(1, len(items), size=(USERS, HISTORY))
  length = rng.integers(0, HISTORY + 1, size=(USERS, 1))
  histories[np.arange(HISTORY) < HISTORY - length] = 0
  arrays["histories"] = histories
  return arrays


def main() -> None:
  """Writes the file."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--item_info", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  given = parser.parse_args()
  try:
    items = read_items(given.item_info)
  except (OSError, KeyError, AttributeError, ValueError) as error:
    parser.error(
      f"{given.item_info} cannot be read ({error!r}); expected RL4RS's "
      "item_info.csv"
    )
  unfinished = given.out.with_name(f".{given.out.name}.tmp")
  try:
    with unfinished.open("wb") as file:
      np.savez(file, **make(items, given.seed))
    unfinished.replace(given.out)
  except OSError as error:
    parser.error(f"{given.out} cannot be written ({error!r})")


if __name__ == "__main__":
  main()
