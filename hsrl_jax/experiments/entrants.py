"""Configurations that experiments compare, as changes to that of the flags.

Changes are named by field. Every agent of the benchmark has the flags' encoder,
simulator, users, iterations, batch and evaluation; what differs was tuned on
the validation split alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hsrl_jax.config import Config

# What the public benchmark's A2C and HSRL have in common.
AS_PUBLISHED = {
  "item_credit": False,
  "behaviour_weight": 0.0,
  "actor_weight": 1.0,
  "entropy_weight": 0.1,
  "entropy_weight_end": 0.1,
  "temperature": 1.0,
  "temperature_end": 1.0,
  "explore_no_repeat": False,
}
# Of the benchmark, by agent.
OVERRIDES = {
  # At HSRL's 0.01 the behaviour loss decides nearly everything, and the critic,
  # which makes these agents what they are, next to nothing: see the variant
  # "ddpg".
  **{
    name: {"actor_weight": 0.1}
    for name in ("ddpg", "td3", "wolpertinger", "hac", "pgra")
  },
  # At the flags' rate it overfits the logs after 500 iterations.
  "sasrec": {"learning_rate": 5e-4},
  # As published; the variant "flat_features" is A2C with HSRL's losses.
  "a2c": AS_PUBLISHED,
}
# Of the ablation, by variant.
VARIANTS = {
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
  "collided_sids": {"assignment": "plain"},
  # Tokens of like codebook vectors learn nothing from each other ...
  "free_tokens": {"semantic_tokens": False, "item_residual": False},
  # ... and, on top, SIDs mean nothing. (With codebook vectors that are other
  # items' the tokens would learn what is wrong, not nothing.)
  "random_sids": {
    "assignment": "shuffled",
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
  # As launch/flags/paper.flags.
  "paper": {
    **AS_PUBLISHED,
    "semantic_tokens": False,
    "item_residual": False,
    "compose_slates": False,
    "critic_gradient": True,
  },
}
# HSRL against policies with one logit for each item, where the catalogue grows
# or changes: changes and label.
POLICIES = {
  "hsrl": {},
  "features": VARIANTS["flat_features"],
  "free": VARIANTS["flat_free"],
}
LABELS = {
  "hsrl": "HSRL",
  "features": "one logit per item, of its features",
  "free": "one logit per item, free",
}
# Fields of other stages that changes may name; the rest are of `policy`.
_STAGES = {"quantizer": ("assignment",), "simulator": ("protocol",)}


def vary(base: Config, changes: Mapping[str, Any]) -> Config:
  """The configuration with some fields changed.

  Args:
    base: what is changed.
    changes: field to value.

  Raises:
    TypeError: a configuration has no such field.
    ValueError: a value is out of range.
  """
  changes, stages = dict(changes), {}
  for stage, fields in _STAGES.items():
    stages[stage] = {k: changes.pop(k) for k in fields if k in changes}
  stages["policy"] = changes
  return dataclasses.replace(
    base,
    **{
      stage: dataclasses.replace(getattr(base, stage), **fields)
      for stage, fields in stages.items()
    },
  )


def agent(base: Config, name: str) -> Config:
  """The configuration of an agent in the benchmark."""
  return vary(base, {"agent": name} | OVERRIDES.get(name, {}))


def changed(base: Config, config: Config) -> dict[str, Any]:
  """The fields of quantizer and policy in which a configuration differs."""
  differing = {}
  for stage in ("quantizer", "policy"):
    old = dataclasses.asdict(getattr(base, stage))
    new = dataclasses.asdict(getattr(config, stage))
    differing |= {f"{stage}.{k}": x for k, x in new.items() if x != old[k]}
  return differing
