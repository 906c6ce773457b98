"""Experiment `ablation`: HSRL less each of its parts, and as published."""

import dataclasses

from hsrl_jax.agents import PUBLISHED
from hsrl_jax.config import Config
from hsrl_jax.experiments import comparison, jobs

# What stands in place of what the flags say, of the policy (`sid_assignment`:
# of the quantizer); config.VARIANTS names them.
CHANGES = {
  # All levels see the state.
  "no_residual": {"residual": False},
  # The value of the state alone, instead of one of each level's context.
  "one_critic": {"level_critics": False},
  "fixed_level_weights": {"train_level_weights": False},
  "no_entropy": {"entropy_weight": 0.0, "entropy_weight_end": 0.0},
  "no_item_credit": {"item_credit": False},
  "no_behaviour_loss": {"behaviour_weight": 0.0},
  # What SIDs lose of the features stays lost.
  "no_item_residual": {"item_residual": False},
  # The critic's loss trains the encoder and the levels' contexts too.
  "critic_gradient": {"critic_gradient": True},
  # Residual k-means as it is: items that collide share their probability.
  "collided_sids": {"sid_assignment": "plain"},
  # Tokens of like codebook vectors learn nothing from each other ...
  "free_tokens": {"semantic_tokens": False, "item_residual": False},
  # ... and, on top, SIDs mean nothing. (With codebook vectors that are other
  # items' the tokens would learn what is wrong, not nothing.)
  "random_sids": {
    "sid_assignment": "shuffled",
    "semantic_tokens": False,
    "item_residual": False,
  },
  "repeats_in_training": {"explore_no_repeat": False},
  "temperature_1": {"temperature": 1.0, "temperature_end": 1.0},
  # One logit for each item, with HSRL's losses: of its features, or its own.
  "flat_features": {"agent": "a2c", "item_logits": "features"},
  "flat_free": {"agent": "a2c", "item_logits": "free"},
  # The strongest latent agent with the weights of HSRL's losses.
  "ddpg": {"agent": "ddpg"},
  "paper": PUBLISHED,
}


AGENTS = {comparison.REFERENCE} | {
  changes["agent"] for changes in CHANGES.values() if "agent" in changes
}


def run(experiment: jobs.Experiment) -> None:
  """Runs it."""
  comparison.run(
    experiment,
    {comparison.REFERENCE: experiment.with_agent(comparison.REFERENCE)}
    | {name: variant(experiment, name) for name in experiment.config.variants},
  )


def variant(experiment: jobs.Experiment, name: str) -> Config:
  """The configuration of HSRL changed as CHANGES says."""
  changes = {"agent": comparison.REFERENCE} | CHANGES[name]
  quantizer = experiment.base.quantizer
  assignment = changes.pop("sid_assignment", quantizer.assignment)
  return dataclasses.replace(
    experiment.with_agent(**changes),
    quantizer=dataclasses.replace(quantizer, assignment=assignment),
  )
