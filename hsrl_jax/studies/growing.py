"""Policies that are compared where the catalogue grows or changes."""

from hsrl_jax.experiments import entrants

# HSRL against policies with one logit for each item: changes and label.
POLICIES = {
  "hsrl": {"agent": entrants.REFERENCE},
  "features": entrants.VARIANTS["flat_features"],
  "free": entrants.VARIANTS["flat_free"],
}
LABELS = {
  "hsrl": "HSRL",
  "features": "one logit per item, of its features",
  "free": "one logit per item, free",
}
COMPARED = entrants.agents(POLICIES.values())
