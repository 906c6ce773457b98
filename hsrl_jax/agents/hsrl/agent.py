"""HSRL (arXiv 2510.09167) as an Agent: how it acts, and its losses.

The policy chooses the tokens of a semantic ID, level by level; a slate is the
items whose tokens, and item residual, have the largest log pi (`acting`). The
critic has a value for each level (`networks`). The losses are those of
docs/policy.md.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl import acting, networks
from hsrl_jax.agents.hsrl.networks import Networks
from hsrl_jax.agents.hsrl.settings import PUBLISHED, Settings
from hsrl_jax.agents.hsrl.slate_view import SlateView
from hsrl_jax.ops import policy_gradient, returns
from hsrl_jax.sid.index import Catalogue, sid_of
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition

__all__ = ["PUBLISHED", "Settings", "make"]


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; how it acts depends on the items in training."""
  modules = networks.make(settings, spec)
  beams = 0
  if acting.searches(spec.items):
    beams = max(settings.beams, spec.slate_size)
  return base.Agent(
    init=modules.init,
    act=functools.partial(acting.act, modules, settings, spec, beams),
    loss=functools.partial(_loss, modules, settings, spec),
    beams=beams,
    scores=functools.partial(acting.scores, modules, settings),
  )


def _loss(
  modules: Networks,
  settings: Settings,
  spec: base.Spec,
  params: Params,
  target_params: Params,
  catalogue: Catalogue,
  transition: Transition,
  key: PRNGKey,
  progress: Array,
) -> tuple[Array, Metrics]:
  """See base.Agent.loss."""
  state = modules.state(params, catalogue, transition.observation, key)
  hierarchy = modules.expected(params, catalogue, state)
  contexts = hierarchy.contexts
  if not settings.critic_gradient:
    contexts = jax.lax.stop_gradient(contexts)
  value, _ = modules.value(params, contexts)
  target = _target(
    modules, settings.discount, target_params, catalogue, transition
  )
  advantages = returns.item_advantages(
    target,
    value[None],
    spec.reward.shares(transition.response) if settings.item_credit else None,
    clip=settings.advantage_clip,
  )

  tokens = sid_of(catalogue.index, transition.slate)
  logits = jnp.broadcast_to(
    hierarchy.logits, (len(tokens), *hierarchy.logits.shape)
  )
  view = SlateView(logits, tokens)
  scores = view.scores() + networks.response_bias(params)
  behaviour_log_prob = transition.log_prob
  if settings.item_residual:
    refined = modules.refine(params, catalogue, state, transition.slate)
    scores = scores + refined
    # The weights compare log pi, which has the residual, with what was drawn.
    behaviour_log_prob = behaviour_log_prob - jax.lax.stop_gradient(refined)
  if _weighs_logs(settings, spec):
    behaviour_log_prob += jax.lax.stop_gradient(
      _log_sum(modules, settings, params, catalogue, state, hierarchy.logits)
    )
  return base.actor_critic(
    settings,
    progress,
    critic=(value - target) ** 2,
    actor=policy_gradient.actor_loss(
      view.log_probs(),
      advantages,
      behaviour_log_prob,
      settings.importance_clip,
    ),
    entropy=view.entropy(),
    # The scores are not normalised, so they need no importance weights.
    behaviour=optax.sigmoid_binary_cross_entropy(
      scores, transition.response
    ).mean(),
    value=value,
    target=target,
  )


def _weighs_logs(settings: Settings, spec: base.Spec) -> bool:
  """Whether log pi is to be a probability of items, as propensities are.

  What the agent shows itself needs no such constant. Where items are found by a
  search, SIDs of no item are left in the sum, and the weights are too small.
  """
  weighs = spec.train.from_logs and settings.importance_clip > 0
  return weighs and not acting.searches(spec.items)


def _log_sum(
  modules: Networks,
  settings: Settings,
  params: Params,
  catalogue: Catalogue,
  state: Array,
  logits: Array,
) -> Array:
  """log of the sum over all items of pi as it is before it sums up to 1, []."""
  log_pi = acting.of_sids(catalogue.index, jax.nn.log_softmax(logits))
  return jax.nn.logsumexp(
    acting.of_items(modules, settings, params, catalogue, state, log_pi)
  )


def _target(
  modules: Networks,
  discount: float,
  target_params: Params,
  catalogue: Catalogue,
  transition: Transition,
) -> Array:
  """y = r + gamma (1 - terminated) V_target(s'), float32 []."""
  state = modules.state(target_params, catalogue, transition.next_observation)
  contexts = modules.expected(target_params, catalogue, state).contexts
  next_value, _ = modules.value(target_params, contexts)
  return returns.td_target(
    transition.reward, transition.terminated, next_value, discount
  )
