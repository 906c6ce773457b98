"""The beginning of HSRL that goes on by RL, on-policy, from the next item.

Its policy of the next item stays as it was. In a state that logs know, in which
nothing was shown yet, HSRL has its probabilities whatever RL learns. Later in a
session the items below a token begin with its log pi beside the estimate of a
like, and nothing holds what RL adds (docs/next_item.md, RL after supervised
training). What that policy says of items is its softmax over all of them; its
tokens, by which each item costs as much as a state, have no part in it. As with
tokens, those that it finds first are ranked with the click model's part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import next_item
from hsrl_jax.agents.hsrl.settings import SupervisedSettings
from hsrl_jax.ops import masking
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array, Observation, Params

KEY = "supervised"  # Of its parameters among those of the agent.
_BELOW = 1e3  # What is not found ranks below all that is.


class Beginning(NamedTuple):
  """The supervised policy at a state, which its logits begin with."""

  # float32 [], 1 once something was shown, else 0: what RL's logits of the
  # first slot are multiplied by.
  free: Array
  log_pi: Array  # float32 [N + 1], of the next item, by active items.
  response: Array  # float32 [N + 1], the click model's part.
  beams: int  # How many items are found as long as `free` is 0.
  weight: float  # Of `log_pi`, once it is 1.

  def logits(self, estimates: Array, items: Array, allowed: Array) -> Array:
    """Logits that items, int32 [...], begin with, float32 [...].

    Args:
      estimates: float32 [...], of a like.
      items: int32 [...].
      allowed: bool [N + 1], what may be shown.
    """
    log_pi = jnp.where(allowed, self.log_pi, masking.NEGATIVE)
    found = masking.largest(log_pi, self.beams)
    both = self.log_pi + self.response
    logged = jnp.where(found, both, self.log_pi - _BELOW)
    later = estimates + self.weight * self.log_pi[items]
    return jnp.where(self.free > 0, later, logged[items])


def beginning(
  settings: SupervisedSettings,
  start: next_item.Start,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
) -> Beginning:
  """The supervised policy at a state; no gradient flows into it.

  Args:
    settings: of the agent.
    start: the policy of the next item.
    params: of the agent.
    catalogue: the items.
    observation: of ONE user, with `shown`.
  """
  policy, own = start.policy, params[KEY]
  plain = observation._replace(shown=None)
  known = policy.catalogue(own, catalogue)
  items = jnp.arange(len(catalogue.features))
  state = policy.state(own, catalogue, plain)
  score = policy.model.item_score(own["model"], known, state, items)
  log_pi = masking.log_softmax(score, catalogue.index.active)
  response = policy.response(own, catalogue, plain, items)
  shown = free(settings, observation, 1)[0]
  found = jax.lax.stop_gradient((shown, log_pi, response))
  return Beginning(*found, start.beams, settings.supervised_weight)


def free(
  settings: SupervisedSettings, observation: Observation, slots: int
) -> Array:
  """Factors of RL's logits by slot, float32 [K]: 0 where a slot is held."""
  if settings.hold_logged == "none":
    return jnp.ones(slots)
  shown = (observation.shown.items > 0).any()
  later = jnp.arange(slots) > 0 if settings.hold_logged == "slot" else False
  return jnp.broadcast_to(shown | later, slots).astype(jnp.float32)
