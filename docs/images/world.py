"""README's picture of SlateTopK-Bored, out of docs/results.

python docs/images/world.py
"""

import json
import pathlib

from hsrl_jax.report import experiment_plots, plots

DOCS = pathlib.Path(__file__).parents[1]
# Name in the picture: file of results, row there.
ROWS = {
  "random": ("sardine_bored", "random"),
  "greedy oracle": ("sardine_bored", "greedy_oracle"),
  "farsighted rule": ("sardine_bored", "farsighted"),
  "rule of a few lines": ("rules_sardine_bored", "rule"),
  "HSRL": ("sardine_bored", "hsrl"),
  "planner": ("sardine_bored_mild_prior", "planner"),
  "HSRL with a discount of 0": ("sardine_bored", "hsrl_gamma_0"),
  "HSRL, shuffled tokens": ("sardine_bored", "random_sids"),
  "DDPG": ("sardine_bored", "ddpg"),
  "A2C": ("sardine_bored", "a2c"),
}

rows = {}
for name, (file, row) in ROWS.items():
  path = DOCS / "results" / f"{file}.json"
  rows[name] = json.loads(path.read_text())["rows"][row]
title = "SARDINE, SlateTopK-Bored: too much of a topic bores"
figure = experiment_plots.world({"rows": rows, "world": title})
figure.axes[0].set_xlabel("clicks in 100 slates of ten")
(DOCS / "images" / "world.png").write_bytes(plots.png(figure))
