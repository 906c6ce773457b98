"""Comparisons of many runs, and the registry of their names."""

from hsrl_jax.experiments import (
  ab,
  catalogue_size,
  changing_catalogue,
  compare,
  document,
  offline_check,
)

# The name of --mode to the function that runs the experiment.
EXPERIMENTS = {
  "benchmark": compare.benchmark,
  "ablation": compare.ablation,
  "changing_catalogue": changing_catalogue.run,
  "catalogue_size": catalogue_size.run,
  "ab": ab.run,
  "offline_check": offline_check.run,
  "results": document.run,
}
