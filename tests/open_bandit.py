"""Made-up files in the format of the Open Bandit Dataset, of a known world."""

import csv
import pathlib

import numpy as np

LOGGERS = ("random", "bts")
ITEMS, PLACES = 4, 3
RANDOM = np.full((PLACES, ITEMS), 0.25)
BTS = np.array(
  [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.2, 0.1]]
)
CHANCE = np.array([0.6, 0.1, 0.3, 0.2])  # Of a click on each item.


def write(
  folder: pathlib.Path, rows: int, campaign: str = "men", seed: int = 0
) -> None:
  """Writes both loggers' files of a campaign."""
  rng = np.random.default_rng(seed)
  for logger, pi in zip(LOGGERS, (RANDOM, BTS), strict=True):
    place = rng.integers(PLACES, size=rows)
    item = (rng.random((rows, 1)) > pi.cumsum(1)[place, :-1]).sum(1)
    click = rng.random(rows) < CHANCE[item]
    user = rng.integers(40, size=rows)
    lines = [
      [
        row,
        f"2019-11-24 {row // 3600 % 24:02}:{row // 60 % 60:02}:{row % 60:02}",
        item[row],
        place[row] + 1,
        int(click[row]),
        pi[place[row], item[row]],
        *(
          f"{'abcd'[i]}{user[row] // n % 3}"
          for i, n in enumerate((1, 3, 9, 27))
        ),
        0.0,
      ]
      for row in range(rows)
    ]
    head = ["", "timestamp", "item_id", "position", "click", "propensity_score"]
    head += [f"user_feature_{i}" for i in range(4)] + ["user-item_affinity_0"]
    own = folder / logger / campaign
    own.mkdir(parents=True, exist_ok=True)
    _csv(own / f"{campaign}.csv", head, lines)
    head = ["", "item_id", *(f"item_feature_{i}" for i in range(4))]
    items = [[i, i, i / 7, "xy"[i % 2], "z", f"{logger}{i}"] for i in range(4)]
    _csv(own / "item_context.csv", head, items)


def change(path: pathlib.Path, column: str, value, rows=slice(3, 4)) -> None:
  """Puts a value into some rows of a file."""
  with path.open(newline="") as file:
    head, *lines = csv.reader(file)
  for line in lines[rows]:
    line[head.index(column)] = value
  _csv(path, head, lines)


def _csv(path, head, lines) -> None:
  with path.open("w", newline="") as file:
    csv.writer(file).writerows([head, *lines])
