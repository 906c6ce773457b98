"""A2C with a flat softmax: one logit per item, one value per state.

pi(i|s) = softmax_i(<s, w_i> + b_i) over the active items. The losses are those
of HSRL with one level whose tokens are the items (docs/method.md), and their
weights mean the same: with HSRL's the agent is HSRL without its semantic action
space; with item_credit=False, behaviour_weight=0 and a constant entropy bonus
it is A2C as published.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.networks.critic import Critic
from hsrl_jax.networks.heads import ItemLogits
from hsrl_jax.ops import masking, policy_gradient, returns


@dataclasses.dataclass(frozen=True)
class Settings(base.ActorCriticSettings, base.ItemLogitsSettings):
  """Of A2C."""


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; `settings.item_logits` says where w_i comes from."""
  encoder = base.encoder(spec.network)
  items = ItemLogits(settings.free)
  critic = Critic(spec.network.critic_hidden)

  def encode(params, catalogue, observation, key=None):
    return encoder.apply(
      params["encoder"], catalogue.features, *observation, key
    )

  def value_of(params, state):
    return critic.apply(params["critic"], state[None])[0]

  def policy(params, catalogue, state):
    """Logits, bias of responses, log pi."""
    logits, bias = items.apply(params["items"], catalogue.features, state)
    return logits, bias, masking.log_softmax(logits, catalogue.index.active)

  def init(key, catalogue, observation):
    keys = jax.random.split(key, 3)
    state = jnp.zeros(spec.network.width)
    return {
      "encoder": encoder.init(keys[0], catalogue.features, *observation),
      "items": items.init(keys[1], catalogue.features, state),
      "critic": critic.init(keys[2], state[None]),
    }

  def act(params, catalogue, observation, excluded, key, temperature):
    state = encode(params, catalogue, observation)
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
    state = encode(params, catalogue, transition.observation, key)
    value = value_of(params, state)
    next_state = encode(target_params, catalogue, transition.next_observation)
    target = returns.td_target(
      transition.reward,
      transition.terminated,
      value_of(target_params, next_state),
      settings.discount,
    )
    logits, bias, log_pi = policy(params, catalogue, state)
    advantages = returns.item_advantages(
      target,
      value[None],
      spec.reward.shares(transition.response) if settings.item_credit else None,
      clip=settings.advantage_clip,
    )
    actor = policy_gradient.actor_loss(
      log_pi[transition.slate][:, None],
      advantages,
      transition.log_prob,
      settings.importance_clip,
    )
    active = catalogue.index.active
    behaviour = optax.sigmoid_binary_cross_entropy(
      logits[transition.slate] + bias, transition.response
    ).mean()
    return base.actor_critic(
      settings,
      progress,
      critic=(value - target) ** 2,
      actor=actor,
      entropy=masking.entropy(log_pi, active),
      behaviour=behaviour,
      value=value,
      target=target,
    )

  return base.Agent(init, act, loss, fixed_items=settings.free)
