"""Configurations that experiments compare, as changes to that of the flags.

Changes are named by field. Every agent of the benchmark has the flags' encoder,
simulator, users, iterations, batch and evaluation; what differs was tuned on
the validation split alone.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hsrl_jax import files
from hsrl_jax.agents import AGENTS, RULES, configure, needs_logs, reads
from hsrl_jax.config import Config, TrainConfig
from hsrl_jax.errors import InputError, reading
from hsrl_jax.experiments import jobs
from hsrl_jax.stages.run import Run

REFERENCE = "hsrl"  # To which all others are compared.
PLAYLIST = "best_playlist"  # The same for everybody.
# Of the benchmark, by agent.
OVERRIDES = {
  # At HSRL's 0.01 the behaviour loss decides nearly everything, and the critic,
  # which makes these agents what they are, next to nothing: see the variant
  # "ddpg".
  **{
    name: {"actor_weight": 0.1}
    for name in ("ddpg", "td3", "wolpertinger", "hac", "pgra")
  },
  # Of three rates, on validation users of movielens_leave after 600 iterations;
  # there 0.01 was better yet for categories.
  **{
    name: {"learning_rate": 3e-3}
    for name in ("ppo", "ppo_categories", "a2c_sequential")
  },
  # At the flags' rate it overfits the logs after 500 iterations.
  "sasrec": {"learning_rate": 5e-4},
  # Its scores are rewards of items, so that a temperature is one too. Its
  # targets are values alone, which may follow fast.
  "planner": {
    "learning_rate": 3e-3,
    "polyak": 0.05,
    "temperature": 0.02,
  },
  # The variant "flat_features" is A2C with HSRL's losses.
  "a2c": {
    "behaviour_weight": 0.0,
    "actor_weight": 1.0,
    "entropy_weight": 0.1,
    "entropy_weight_end": 0.1,
    "temperature": 1.0,
    "explore_no_repeat": False,
  },
}
# Of the ablation, by variant.
VARIANTS = {
  # All levels see the state.
  "no_residual": {"without": ("residual",)},
  # The value of the state alone, instead of one of each level's context.
  "one_critic": {"without": ("level_critics",)},
  "no_entropy": {"entropy_weight": 0.0, "entropy_weight_end": 0.0},
  "no_behaviour_loss": {"behaviour_weight": 0.0},
  # What SIDs lose of the features stays lost.
  "no_item_residual": {"without": ("item_residual",)},
  # Residual k-means as it is: items that collide share their probability.
  "collided_sids": {"assignment": "plain"},
  # Tokens of like codebook vectors learn nothing from each other, nor do items
  # by what SIDs lose ...
  "free_tokens": {"without": ("semantic_tokens",)},
  # ... and, on top, SIDs mean nothing. (With codebook vectors that are other
  # items' the tokens would learn what is wrong, not nothing.)
  "random_sids": {"assignment": "shuffled", "without": ("semantic_tokens",)},
  "repeats_in_training": {"explore_no_repeat": False},
  "temperature_1": {"temperature": 1.0},
  # One logit for each item, with HSRL's losses: of its features, or its own.
  "flat_features": {"agent": "a2c", "item_logits": "features"},
  "flat_free": {"agent": "a2c", "item_logits": "free"},
  # The strongest latent agent with the weights of HSRL's losses.
  "ddpg": {"agent": "ddpg"},
}
# Of the experiment `world`: HSRL that does not look ahead, and HSRL that only
# learns what is liked now.
TWINS = {
  "hsrl_gamma_0": {"discount": 0.0},
  "hsrl_no_actor": {"actor_weight": 0.0},
}
# The variants of `world`, on-policy: parts that can matter where tomorrow
# counts. A new one is an entry here; HSRL without tokens is the agent `ppo`,
# without its lower levels `ppo_categories`.
FORESIGHT = {
  # Each choice has an advantage of its own, over what was chosen before it.
  "token_credit": {"credit": "token"},
  # What tokens begin with is not of the items below them.
  "no_item_prior": {"without": ("item_prior",)},
  # What drives a user away is learned by RL alone.
  "no_leave_penalty": {"leave_penalty": 0.0},
  # Nothing holds log pi to what it begins with.
  "no_anchor": {"anchor_weight": 0.0},
  # Training begins with no penalty on what was liked lately.
  "no_lately_penalty": {"lately_penalty": 0.0},
  # All levels see the state.
  "no_residual": {"without": ("residual",)},
  # Neither the penalties nor the network see the earlier slots of a slate.
  "independent_slates": {"slates": "independent"},
  # SIDs of other items, and tokens that mean nothing; the response head, and
  # with it what tokens begin with, keeps the items' features.
  "random_sids": {"assignment": "shuffled", "without": ("semantic_tokens",)},
  # Tokens of like codebook vectors learn nothing from each other.
  "free_tokens": {"without": ("semantic_tokens",)},
  # The critic sees no more of a user than the policy.
  "blind_critic": {"without": ("critic_state",)},
  # What more training earns.
  "twice_as_long": {"times": 2},
}
# Fields of other stages that changes may name.
_STAGES = {"quantizer": ("assignment",), "simulator": ("protocol",)}


def vary(experiment: jobs.Experiment, changes: Mapping[str, Any]) -> Config:
  """The flags' configuration with some fields changed.

  Args:
    experiment: with the configuration of the flags.
    changes: field to value; `agent` is HSRL where none is named, and `times` is
      how often the flags' iterations are done.

  Raises:
    TypeError: a configuration has no such field.
    ValueError: a value is out of range.
  """
  changes, stages = {"agent": REFERENCE} | dict(changes), {}
  if "times" in changes:
    changes["iterations"] = (
      changes.pop("times") * experiment.base.train.iterations
    )
  for stage, fields in _STAGES.items():
    values = {k: changes.pop(k) for k in fields if k in changes}
    stages[stage] = dataclasses.replace(
      getattr(experiment.base, stage), **values
    )
  return dataclasses.replace(experiment.with_agent(**changes), **stages)


def under(config: Config, protocol: str) -> Config:
  """The configuration under another protocol.

  Raises:
    InputError: the world decides its own.
  """
  try:
    simulator = dataclasses.replace(config.simulator, protocol=protocol)
  except ValueError as error:
    raise InputError(
      f"protocol {protocol!r} of the experiment: {error}"
    ) from error
  return dataclasses.replace(config, simulator=simulator)


def agent(
  experiment: jobs.Experiment, name: str, own: Mapping[str, Any] | None = None
) -> Config:
  """The configuration of an agent in the benchmark, with what tuning found."""
  known = {"agent": name} | OVERRIDES.get(name, {})
  return vary(experiment, known | dict(own or {}))


def able(experiment: jobs.Experiment, agents: Collection[str]) -> list[str]:
  """Those of the agents that can learn here; says who is left out.

  Raises:
    InputError: an agent is unknown.
  """
  if unknown := sorted(set(agents) - set(AGENTS)):
    raise InputError(
      f"--experiment_agents has {unknown[0]!r}; expected at least one of "
      f"{tuple(AGENTS)}"
    )
  base = Run(experiment.base, experiment.workdir)
  without = {name for name in agents if needs_logs(agent(experiment, name))}
  if base.without_slates and without:
    print(
      f"left out: {', '.join(sorted(without))}, which learn from logs; "
      f"{base.name} has none"
    )
    return [name for name in agents if name not in without]
  return list(agents)


def variants(
  names: Collection[str],
  known: Mapping[str, Mapping[str, Any]] = VARIANTS,
) -> dict[str, Mapping[str, Any]]:
  """Changes of the named variants.

  Raises:
    InputError: a variant is unknown.
  """
  for name in names:
    if name not in known:
      raise InputError(
        f"variants has {name!r}; expected some of {', '.join(known)}"
      )
  return {name: known[name] for name in names}


def tuned(paths: Collection[str] | None) -> dict[str, dict[str, Any]]:
  """Agent to the changes that earned most when it was tuned, if it was.

  Args:
    paths: of results.json that the experiment `tune` left.

  Raises:
    InputError: a file is none that the experiment `tune` left, or two files
      have the same agent.
  """
  found: dict[str, dict[str, Any]] = {}
  for path in paths or ():
    where = f"experiment_tuned={path}"
    with reading(where, "the results.json of a tune"):
      best = dict(files.read_json(pathlib.Path(path), jobs.FORMAT)["best"])
    if again := sorted(found.keys() & best):
      raise InputError(f"{where} has {again[0]} again; expected it in one file")
    found |= best
  return found


def best_rule(
  paths: Collection[str] | None,
) -> tuple[str, dict[str, Any]] | None:
  """The rule that earned most of validation users, and by which settings.

  None where no rule was tried. `PLAYLIST` is none of them: it is a row of its
  own.

  Args:
    paths: that `tuned` reads.
  """
  tried = []
  for path in paths or ():
    left = files.read_json(pathlib.Path(path), jobs.FORMAT)
    for name, rows in left.get("trials", {}).items():
      if name in RULES and name != PLAYLIST:
        tried += [(name, row) for row in rows]
  if not tried:
    return None
  name, row = max(tried, key=lambda x: x[1]["total_reward"]["mean"])
  return name, dict(row["changes"])


def varied(
  experiment: jobs.Experiment,
  changes: Mapping[str, Mapping[str, Any]],
  own: Mapping[str, Any],
) -> dict[str, Config]:
  """HSRL with some fields changed, by name.

  Args:
    experiment: with the configuration of the flags.
    changes: name to field to value; see `vary`.
    own: what tuning found for HSRL; a variant that is another agent takes of it
      what it reads.
  """
  found = {}
  for name, x in changes.items():
    recipe = x.get("recipe", experiment.base.train.recipe)
    read = reads(x.get("agent", REFERENCE), recipe)
    known = {
      field: value
      for field, value in own.items()
      if hasattr(TrainConfig, field) or field in read
    }
    found[name] = vary(experiment, known | dict(x))
  return found


def agents(changes: Iterable[Mapping[str, Any]]) -> set[str]:
  """The agents that several changes train."""
  return {x.get("agent", REFERENCE) for x in changes} | {REFERENCE}


def changed(base: Config, config: Config) -> dict[str, Any]:
  """The fields of quantizer and policy in which a configuration differs.

  A field that only the other agent reads counts where it is not the default.
  """
  old = configure(base, config.agent)
  parts = [("quantizer", old.quantizer, config.quantizer)] + [
    ("policy", getattr(old, name), getattr(config, name))
    for name in ("network", "train", "settings")
  ]
  differing = {
    f"{stage}.{field}": value
    for stage, before, after in parts
    for field, value in dataclasses.asdict(after).items()
    if value != getattr(before, field)
  }
  if base.agent != config.agent:
    differing["policy.agent"] = config.agent
  return differing
