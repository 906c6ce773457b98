"""HSRL that goes on by replay from its policy of the next item.

It has the networks of that policy, acts as it does (`agents.next_item`), and
learns as HSRL does (docs/next_item.md, RL after supervised training): the
critic looks at the decoder's expected contexts, the actor follows the gradient
of the log-probabilities of the tokens that were taken, and the behaviour loss
is the supervised one, the cross-entropy of what was liked. A KL
divergence holds the policy near the one it started from. The flat twin, which
was trained without tokens, has the same losses of its softmax over all items.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base, next_item
from hsrl_jax.agents.hsrl.settings import NearStartSettings
from hsrl_jax.agents.hsrl.slate_view import SlateView
from hsrl_jax.networks.critic import Critic
from hsrl_jax.ops import masking, policy_gradient, returns, sampling
from hsrl_jax.sid.index import Catalogue, sid_of
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition

__all__ = ["FROZEN", "NearStartSettings", "divergence", "make"]

# Parameters that are not trained: the model that training started from, and
# what `next_item.Policy` has beside its model.
FROZEN = ("start", "interactions", "response", "response_weight")


class _Parts(NamedTuple):
  """What the losses are made of; all of it is static."""

  policy: next_item.Policy
  critic: Critic
  settings: NearStartSettings
  spec: base.Spec

  def contexts(self, params: Params, state: Array) -> Array:
    """Of the critic, c_0 .. c_{L-1}, [L, d]; of the flat twin c_0, [1, d]."""
    if not self.policy.model.config.token_weight:
      return state[None]
    return self.policy.model.contexts(params["model"], state)

  def value(self, params: Params, state: Array) -> Array:
    """V(s), float32 []; its gradient trains the critic alone."""
    contexts = jax.lax.stop_gradient(self.contexts(params, state))
    return self.critic.apply(params["critic"], contexts)[0]


class _Seen(NamedTuple):
  """What a model says of a user and of the slate that was shown.

  Attributes:
    state: float32 [d], c_0.
    tokens: of the slate, with log-probabilities as logits; None in the flat
      twin.
    items: float32 [N + 1], log softmax of the items' scores; None where items
      rank by their tokens alone.
  """

  state: Array
  tokens: SlateView | None
  items: Array | None

  def log_probs(self, slate: Array) -> Array:
    """Log-probabilities of the parts of each choice, [K, P].

    The parts are its L tokens, and the item itself; or one of both.
    """
    parts = [] if self.tokens is None else [self.tokens.log_probs()]
    if self.items is not None:
      parts.append(self.items[slate][:, None])
    return jnp.concatenate(parts, -1)

  def entropy(self, active: Array) -> Array:
    """Of the tokens' distributions, else of the items', float32 [], nats."""
    if self.tokens is None:
      return masking.entropy(self.items, active)
    return self.tokens.entropy()


def make(settings: NearStartSettings, spec: base.Spec) -> base.Agent:
  """Builds the agent.

  Its parameters are a dict: those of `next_item.Policy`; `critic`; and `start`,
  the policy's `model` before any RL.
  """
  start = spec.supervised
  critic = Critic(spec.network.critic_hidden)
  parts = _Parts(start.policy, critic, settings, spec)

  def init(key, catalogue, observation):
    params = start.agent.init(key, catalogue, observation)
    contexts = parts.contexts(
      params, jnp.zeros(start.policy.model.config.width)
    )
    critic = parts.critic.init(jax.random.fold_in(key, 2), contexts)
    return params | {"critic": critic, "start": params["model"]}

  return start.agent._replace(
    init=init,
    loss=functools.partial(_loss, parts),
    frozen=FROZEN,
    logged_share=settings.logged_share,
  )


def _loss(
  parts: _Parts,
  params: Params,
  target_params: Params,
  catalogue: Catalogue,
  transition: Transition,
  key: PRNGKey,
  progress: Array,
) -> tuple[Array, Metrics]:
  """See base.Agent.loss."""
  settings, policy, slate = parts.settings, parts.policy, transition.slate
  keys = sampling.split(key, 2)
  seen = _seen(parts, params, catalogue, transition, keys)
  value = parts.value(params, seen.state)
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
  log_probs, drawn = seen.log_probs(slate), transition.log_prob
  if settings.importance_clip:
    drawn = drawn - _beside(policy, params, catalogue, transition, seen)
  loss, metrics = base.actor_critic(
    settings,
    progress,
    critic=(value - target) ** 2,
    actor=policy_gradient.actor_loss(
      log_probs, advantages, drawn, settings.importance_clip
    ),
    entropy=seen.entropy(catalogue.index.active),
    behaviour=_cross_entropy(policy, log_probs, transition.response),
    value=value,
    target=target,
  )
  if settings.kl_weight:
    # By the same dropout, so that equal parameters are no distance apart.
    start = params | {"model": params["start"]}
    start = _seen(parts, start, catalogue, transition, keys)
    kl = _distance(seen, start, catalogue.index.active)
    loss = loss + settings.kl_weight * kl
    metrics = metrics | {"loss": loss, "kl": kl}
  return loss, metrics


def _seen(
  parts: _Parts,
  params: Params,
  catalogue: Catalogue,
  transition: Transition,
  keys: PRNGKey,
) -> _Seen:
  """See _Seen; the two keys are of the dropout."""
  policy, model = parts.policy, parts.policy.model
  known = policy.catalogue(params, catalogue)
  state = policy.state(params, catalogue, transition.observation, keys[0])
  view = items = None
  if model.config.token_weight:
    tokens = sid_of(catalogue.index, transition.slate)
    log_probs = model.taken(
      params["model"], known, state, jnp.maximum(tokens, 0), keys[1]
    )
    view = SlateView(log_probs, tokens)
  if model.config.item_weight:
    scores = model.rows(params["model"], known) @ state
    items = masking.log_softmax(scores, catalogue.index.active)
  return _Seen(state, view, items)


def _cross_entropy(
  policy: next_item.Policy, log_probs: Array, response: Array
) -> Array:
  """-log pi of the liked items, weighed as before RL; mean over the slate."""
  weights = jnp.full(log_probs.shape[1], policy.model.config.token_weight)
  if policy.model.config.item_weight:
    weights = weights.at[-1].set(policy.model.config.item_weight)
  return -(response * (log_probs @ weights)).mean()


def _beside(
  policy: next_item.Policy,
  params: Params,
  catalogue: Catalogue,
  transition: Transition,
  seen: _Seen,
) -> Array:
  """What the slate was drawn by beside `_Seen.log_probs`, [K], no gradient.

  It is the click model's part, and the constant of the items' softmax.
  """
  slate = transition.slate
  beside = policy.response(params, catalogue, transition.observation, slate)
  if seen.items is not None:
    known = policy.catalogue(params, catalogue)
    beside += policy.model.item_score(params["model"], known, seen.state, slate)
    beside -= seen.items[slate]
  return jax.lax.stop_gradient(beside)


def _distance(seen: _Seen, start: _Seen, active: Array) -> Array:
  """KL divergence from what the policy started from, which gets no gradient."""
  start, kl = jax.lax.stop_gradient(start), jnp.float32(0)
  if seen.tokens is not None:
    own = seen.tokens
    kl += divergence(own.logits, start.tokens.logits, own.tokens)
  if seen.items is not None:
    # Without what is not active, whose exponential may be no number.
    own, before = (jnp.where(active, x.items, 0.0) for x in (seen, start))
    kl += (jnp.exp(own) * (own - before)).sum()
  return kl


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
