"""A2C with a flat softmax: one logit per item, one value per state.

pi(i|s) = softmax_i(<s, w_i> + b_i) over the active items. The losses are those
of HSRL with one level whose tokens are the items (docs/policy.md), and their
weights mean the same: with HSRL's the agent is HSRL without its semantic action
space; with behaviour_weight=0 and a constant entropy bonus it is A2C, but for
the items' shares of an advantage.
"""

import dataclasses

import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import scored
from hsrl_jax.ops import masking


@dataclasses.dataclass(frozen=True)
class Settings(base.ActorCriticSettings, base.ItemLogitsSettings):
  """Of A2C."""


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; `settings.item_logits` says where w_i comes from."""
  states, items = scored.states(spec), scored.ItemLogits(settings.free)

  def policy(params, catalogue, state):
    """Logits, bias of responses, log pi."""
    logits, bias = items.apply(params["items"], catalogue.features, state)
    return logits, bias, masking.log_softmax(logits, catalogue.index.active)

  def init(key, catalogue, observation):
    features, state = catalogue.features, jnp.zeros(spec.network.width)
    return scored.init(
      key,
      encoder=(states.encoder, features, *observation),
      items=(items, features, state),
      critic=(states.critic, state[None]),
    )

  def act(params, catalogue, observation, excluded, key, temperature):
    state = states.state(params, catalogue, observation)
    _, _, log_pi = policy(params, catalogue, state)
    return base.choose(
      log_pi,
      catalogue.index,
      excluded,
      key,
      temperature,
      spec.slate_size,
      weighed=settings.importance_clip > 0,
    )

  def loss(params, target_params, catalogue, transition, key, progress):
    state, _, value, next_value = states.look(
      params, target_params, catalogue, transition, key
    )
    logits, bias, log_pi = policy(params, catalogue, state)
    return base.actor_critic(
      settings,
      spec,
      transition,
      progress,
      value=value,
      next_value=next_value,
      log_probs=log_pi[transition.slate][:, None],
      drawn=transition.log_prob,
      entropy=masking.entropy(log_pi, catalogue.index.active),
      behaviour=scored.response_loss(logits, bias, transition),
    )

  return base.Agent(init, act, loss, fixed_items=settings.free)
