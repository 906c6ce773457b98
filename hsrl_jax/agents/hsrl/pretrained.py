"""HSRL that goes on by RL from its policy of the next item (--continue_from).

It has the networks of that policy, acts as it does (`agents.next_item`), and
learns as HSRL does (docs/method.md, RL after supervised training): the critic
looks at the decoder's expected contexts, the actor follows the gradient of the
log-probabilities of the tokens that were taken, and the behaviour loss is what
the policy was trained on before, the cross-entropy of what was liked. A KL
divergence holds the policy near the one it started from.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base, next_item
from hsrl_jax.agents.hsrl.settings import ContinuedSettings
from hsrl_jax.agents.hsrl.slate_view import SlateView
from hsrl_jax.config import Config
from hsrl_jax.networks.critic import Critic
from hsrl_jax.ops import masking, policy_gradient, returns, sampling
from hsrl_jax.sid.index import sid_of
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition

__all__ = ["FROZEN", "ContinuedSettings", "make"]

# Parameters that no loss changes: the model that training started from, and
# the click model, with its weight, by which the policy ranks items too.
FROZEN = ("start", "response", "response_weight")


class _Parts(NamedTuple):
  """What the losses are made of; all of it is static.

  Attributes:
    policy: of the next item.
    critic: contexts c_0 .. c_{L-1} to values.
    settings: of the agent.
    spec: of the agent.
  """

  policy: next_item.Policy
  critic: Critic
  settings: ContinuedSettings
  spec: base.Spec

  def value(self, params: Params, state: Array) -> Array:
    """V(s), float32 []; its gradient trains the critic alone."""
    contexts = self.policy.model.contexts(params["model"], state)
    contexts = jax.lax.stop_gradient(contexts)
    return self.critic.apply(params["critic"], contexts)[0]


def make(config: Config, spec: base.Spec) -> base.Agent:
  """Builds the agent.

  Its parameters are a dict: those of `next_item.Policy`; `critic`; and `start`,
  the policy's `model` before any RL.

  Args:
    config: with the sizes of the policy of the next item.
    spec: of the agent.
  """
  supervised = next_item.make(config, spec.slate_size, spec.items)
  parts = _Parts(
    next_item.policy(config, spec.slate_size, spec.items),
    Critic(spec.network.critic_hidden),
    config.settings,
    spec,
  )

  def init(key, catalogue, observation):
    params = supervised.init(key, catalogue, observation)
    contexts = jnp.zeros((spec.levels, spec.network.width))
    critic = parts.critic.init(jax.random.fold_in(key, 2), contexts)
    return params | {"critic": critic, "start": params["model"]}

  return supervised._replace(
    init=init, loss=functools.partial(_loss, parts), frozen=FROZEN
  )


def _loss(
  parts: _Parts,
  params: Params,
  target_params: Params,
  catalogue: base.ActionSpace,
  transition: Transition,
  key: PRNGKey,
  progress: Array,
) -> tuple[Array, Metrics]:
  """See base.Agent.loss."""
  settings, policy = parts.settings, parts.policy
  tokens = sid_of(catalogue.index, transition.slate)
  keys = sampling.split(key, 2)
  state, view = _seen(parts, params["model"], catalogue, transition, keys)
  value = parts.value(params, state)
  next_state = policy.state(
    target_params, catalogue, transition.next_observation
  )
  target = returns.td_target(
    transition.reward,
    transition.terminated,
    parts.value(target_params, next_state),
    settings.discount,
  )
  shares = parts.spec.reward.shares(transition.response)
  advantages = returns.item_advantages(
    target,
    value[None],
    shares if settings.item_credit else None,
    clip=settings.advantage_clip,
  )
  drawn = transition.log_prob
  if settings.importance_clip:
    # What was drawn has more than the tokens, with which it is compared.
    drawn = drawn - jax.lax.stop_gradient(
      _beside_tokens(policy, params, catalogue, transition, state)
    )
  loss, metrics = base.actor_critic(
    settings,
    progress,
    critic=(value - target) ** 2,
    actor=policy_gradient.actor_loss(
      view.log_probs(), advantages, drawn, settings.importance_clip
    ),
    entropy=view.entropy(),
    behaviour=_cross_entropy(
      policy, params, catalogue, transition, state, view
    ),
    value=value,
    target=target,
  )
  if settings.kl_weight:
    # By the same dropout, so that equal parameters are no distance apart.
    _, start = _seen(parts, params["start"], catalogue, transition, keys)
    kl = divergence(view.logits, jax.lax.stop_gradient(start.logits), tokens)
    loss = loss + settings.kl_weight * kl
    metrics = metrics | {"loss": loss, "kl": kl}
  return loss, metrics


def _seen(
  parts: _Parts,
  model: Params,
  catalogue: base.ActionSpace,
  transition: Transition,
  keys: PRNGKey,
) -> tuple[Array, SlateView]:
  """The state, [d], and what a model says of the slate; keys of the dropout."""
  policy = parts.policy
  state = policy.state(
    {"model": model}, catalogue, transition.observation, keys[0]
  )
  tokens = sid_of(catalogue.index, transition.slate)
  log_probs = policy.model.taken(
    model,
    policy.catalogue(catalogue),
    state,
    jnp.maximum(tokens, 0),
    keys[1],
  )
  return state, SlateView(log_probs, tokens)


def _cross_entropy(
  policy: next_item.Policy,
  params: Params,
  catalogue: base.ActionSpace,
  transition: Transition,
  state: Array,
  view: SlateView,
) -> Array:
  """-log pi of the liked items, as in training before; mean over the slate."""
  model, log_pi = policy.model, view.log_probs().sum(-1)
  if model.config.item_weight:
    rows = model.rows(params["model"], policy.catalogue(catalogue))
    of_items = masking.log_softmax(rows @ state, catalogue.index.active)
    log_pi += model.config.item_weight * of_items[transition.slate]
  return -(transition.response * log_pi).mean()


def _beside_tokens(
  policy: next_item.Policy,
  params: Params,
  catalogue: base.ActionSpace,
  transition: Transition,
  state: Array,
) -> Array:
  """What items rank by beside log pi of their tokens, float32 [K]."""
  return policy.model.item_score(
    params["model"], policy.catalogue(catalogue), state, transition.slate
  ) + policy.response(
    params, catalogue, transition.observation, transition.slate
  )


def divergence(log_probs: Array, start: Array, tokens: Array) -> Array:
  """KL(p || start) of the tokens' distributions, summed over the levels.

  Args:
    log_probs: float32 [K, L, V], of p along K SIDs.
    start: float32 [K, L, V], of the other.
    tokens: int32 [K, L], the SIDs; -1 where an item has none.

  Returns:
    float32 [], nats; the mean over K.
  """
  kl = (jnp.exp(log_probs) * (log_probs - start)).sum(-1)
  return jnp.where(tokens < 0, 0.0, kl).sum(-1).mean()
