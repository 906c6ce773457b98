"""Study `after_supervised`: does RL help or hurt a supervised policy?

HSRL is trained on what users of the logs liked next. From there it goes on by
replay, held to the policy that it started from by a KL of some weights
(`kl_W`), by logged slates in its batches (`mixed`), or by both; see
`experiments.one_policy`. With the largest weight, `no_actor` is without the
actor's loss, what the regression on simulated likes does alone; `gamma_0` does
not look ahead. Beside HSRL stands its flat twin, which has a softmax over all
items and no tokens.
"""

from collections.abc import Sequence
from typing import Any

from hsrl_jax.experiments import jobs, one_policy
from hsrl_jax.experiments.entrants import REFERENCE

COMPARED = (REFERENCE,)
MIXED = 0.5  # Of a batch are logged slates.


def run(experiment: jobs.Experiment) -> None:
  """See `one_policy.run`."""
  rows = after(experiment.config.kl_weights)
  groups = {
    "": one_policy.Group({}, rows),
    "flat_": one_policy.Group({"token_weight": 0.0}, rows),
  }
  note = (
    "kl_W: RL held to the supervised policy by a KL of weight W; mixed: by "
    f"logged slates, {MIXED:.0%} of each batch; more: than that policy, of the "
    "flat twin in rows of its own. The first three measures are of held-out "
    "logs, beside simple lists; intervals over users and seeds, those of "
    "differences paired."
  )
  one_policy.go(experiment, groups, "HSRL and its flat twin, then RL", note)


def after(weights: Sequence[float]) -> dict[str, dict[str, Any]]:
  """Rows that go on from the supervised policy: name to changed flags."""
  found: dict[str, dict[str, Any]] = {
    f"kl_{x:g}": {"kl_weight": x} for x in weights
  }
  last = max(weights)
  for name, changes in (
    ("no_actor", {"actor_weight": 0.0}),
    ("gamma_0", {"discount": 0.0}),
    ("mixed", {"logged_share": MIXED}),
  ):
    found[f"kl_{last:g}_{name}"] = {"kl_weight": last} | changes
  found["mixed"] = {"kl_weight": 0.0, "logged_share": MIXED}
  return {k: {"recipe": "next_item,replay"} | x for k, x in found.items()}
