"""HSRL that goes on by replay from its policy of the next item.

It has the networks of that policy, acts as it does (`agents.next_item`), and
learns as HSRL does (docs/next_item.md, RL after supervised training): the
critic looks at the decoder's expected contexts, the actor follows the gradient
of the log-probabilities of the tokens that were taken, and the behaviour loss
is the supervised one, the cross-entropy of what was liked. A KL
divergence holds the policy near the one it started from. The flat twin, which
was trained without tokens, has the same losses of its softmax over all items.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl.agent import SlateView
from hsrl_jax.agents.hsrl.settings import NearStartSettings
from hsrl_jax.networks.critic import Critic
from hsrl_jax.ops import masking, sampling
from hsrl_jax.sid.index import sid_of
from hsrl_jax.types import Array

__all__ = ["FROZEN", "NearStartSettings", "divergence", "make"]

# Parameters that are not trained: the model that training started from, and
# what `next_item.Policy` has beside its model.
FROZEN = ("start", "interactions", "response", "response_weight")


class _Seen(NamedTuple):
  """A model's view of a user and of the slate that was shown.

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


class _Pretrained(NamedTuple):
  """The agent's functions (base.Agent), and what they are made of.

  Its parameters are a dict: those of `next_item.Policy`; `critic`; and `start`,
  the policy's `model` before any RL.
  """

  critic: Critic
  settings: NearStartSettings
  spec: base.Spec

  @property
  def policy(self):
    return self.spec.supervised.policy

  @property
  def weights(self):
    """Of the cross-entropy of tokens, and of items, before RL."""
    config = self.policy.model.config
    return config.token_weight, config.item_weight

  def init(self, key, catalogue, observation):
    params = self.spec.supervised.agent.init(key, catalogue, observation)
    state = jnp.zeros(self.policy.model.config.width)
    contexts = self.contexts(params, state)
    critic = self.critic.init(jax.random.fold_in(key, 2), contexts)
    return params | {"critic": critic, "start": params["model"]}

  def contexts(self, params, state):
    """Of the critic, c_0 .. c_{L-1}, [L, d]; of the flat twin c_0, [1, d]."""
    if not self.weights[0]:
      return state[None]
    return self.policy.model.contexts(params["model"], state)

  def value(self, params, state):
    """V(s), float32 []; its gradient trains the critic alone."""
    contexts = jax.lax.stop_gradient(self.contexts(params, state))
    return self.critic.apply(params["critic"], contexts)[0]

  def loss(self, params, target_params, catalogue, transition, key, progress):
    settings, slate = self.settings, transition.slate
    keys = sampling.split(key, 2)
    seen = self.seen(params, catalogue, transition, keys)
    after = self.policy.state(
      target_params, catalogue, transition.next_observation
    )
    log_probs, drawn = seen.log_probs(slate), transition.log_prob
    if settings.importance_clip:
      drawn = drawn - self._beside(params, catalogue, transition, seen)
    loss, metrics = base.actor_critic(
      settings,
      self.spec,
      transition,
      progress,
      value=self.value(params, seen.state),
      next_value=self.value(target_params, after),
      log_probs=log_probs,
      drawn=drawn,
      entropy=seen.entropy(catalogue.index.active),
      behaviour=self._cross_entropy(log_probs, transition.response),
    )
    if settings.kl_weight:
      # By the same dropout, so that equal parameters are no distance apart.
      start = params | {"model": params["start"]}
      start = self.seen(start, catalogue, transition, keys)
      kl = _distance(seen, start, catalogue.index.active)
      loss = loss + settings.kl_weight * kl
      metrics = metrics | {"loss": loss, "kl": kl}
    return loss, metrics

  def seen(self, params, catalogue, transition, keys):
    """See _Seen; the two keys are of the dropout."""
    policy, model = self.policy, self.policy.model
    known = policy.catalogue(params, catalogue)
    state = policy.state(params, catalogue, transition.observation, keys[0])
    view = items = None
    of_tokens, of_items = self.weights
    if of_tokens:
      tokens = sid_of(catalogue.index, transition.slate)
      log_probs = model.taken(
        params["model"], known, state, jnp.maximum(tokens, 0), keys[1]
      )
      view = SlateView(log_probs, tokens)
    if of_items:
      scores = model.rows(params["model"], known) @ state
      items = masking.log_softmax(scores, catalogue.index.active)
    return _Seen(state, view, items)

  def _cross_entropy(self, log_probs, response):
    """-log pi of the liked items, weighed as before RL; mean over the slate."""
    of_tokens, of_items = self.weights
    weights = jnp.full(log_probs.shape[1], of_tokens)
    if of_items:
      weights = weights.at[-1].set(of_items)
    return -(response * (log_probs @ weights)).mean()

  def _beside(self, params, catalogue, transition, seen):
    """Scores of the slate beside `_Seen.log_probs`, [K], without gradient.

    It is the click model's part, and the constant of the items' softmax.
    """
    policy, slate = self.policy, transition.slate
    beside = policy.response(params, catalogue, transition.observation, slate)
    if seen.items is not None:
      known = policy.catalogue(params, catalogue)
      beside += policy.model.item_score(
        params["model"], known, seen.state, slate
      )
      beside -= seen.items[slate]
    return jax.lax.stop_gradient(beside)


def make(settings: NearStartSettings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  agent = _Pretrained(Critic(spec.network.critic_hidden), settings, spec)
  return spec.supervised.agent._replace(
    init=agent.init,
    loss=agent.loss,
    frozen=FROZEN,
    logged_share=settings.logged_share,
  )


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
