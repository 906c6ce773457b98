"""What runs each experiment, by the name of its --mode."""

from collections.abc import Callable, Collection

from hsrl_jax.config import ExperimentConfig
from hsrl_jax.experiments import (
  ab,
  compare,
  document,
  entrants,
  tuning,
  worlds,
)
from hsrl_jax.studies import (
  after_supervised,
  catalogue_size,
  changing_catalogue,
  closed_loop,
  conservatism,
  off_policy,
)

RUN = {
  "benchmark": compare.benchmark,
  "ablation": compare.ablation,
  "world": worlds.run,
  "tune": tuning.run,
  "changing_catalogue": changing_catalogue.run,
  "catalogue_size": catalogue_size.run,
  "ab": ab.run,
  "off_policy": off_policy.run,
  "conservatism": conservatism.run,
  "closed_loop": closed_loop.run,
  "after_supervised": after_supervised.run,
  "results": document.run,
}

# The agents that an experiment trains, where they are others than --agent.
COMPARED: dict[str, Callable[[ExperimentConfig], Collection[str]]] = {
  "benchmark": compare.compared,
  "ablation": lambda _: entrants.agents(entrants.VARIANTS.values()),
  "world": worlds.compared,
  "tune": tuning.compared,
  "changing_catalogue": lambda _: entrants.agents(entrants.POLICIES.values()),
  "catalogue_size": lambda _: entrants.agents(entrants.POLICIES.values()),
  "ab": ab.compared,
  "conservatism": conservatism.compared,
  "closed_loop": closed_loop.compared,
  "after_supervised": lambda _: (entrants.REFERENCE,),
}

# Another task than --task that an experiment trains its agents on.
ALSO = {"after_supervised": "next_item"}
