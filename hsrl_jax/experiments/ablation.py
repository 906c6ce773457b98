"""Experiment `ablation`: HSRL less each of its parts, by each protocol."""

from hsrl_jax.experiments import compare, entrants, jobs
from hsrl_jax.experiments.entrants import REFERENCE, VARIANTS

# Whichever variants it has.
COMPARED = entrants.agents(VARIANTS.values())


def run(experiment: jobs.Experiment) -> None:
  """Runs what is missing; leaves results.json, table.txt and plot.png.

  Raises:
    InputError: a variant is unknown.
  """
  names = experiment.config.variants or tuple(VARIANTS)
  changes = {REFERENCE: {}} | entrants.variants(names)
  own = entrants.tuned(experiment.config.tuned).get(REFERENCE, {})
  compare.compare(experiment, entrants.varied(experiment, changes, own))
