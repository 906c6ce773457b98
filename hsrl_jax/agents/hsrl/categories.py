"""PPO over categories: a slot draws one, then shows the best item of it.

The first level of on-policy HSRL, see `sequential`, with categories as tokens:
all else it has in common with HSRL. An item counts by the rarest of its
categories; those without any are one more category. Below a category nothing is
drawn: of its items that may be shown, the one with the largest estimate of a
like is. So a choice is a category, and its log-probability is exact.
"""

import dataclasses

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl import sequential
from hsrl_jax.agents.hsrl.settings import SlateSettings
from hsrl_jax.networks.slate_policy import SlatePolicy
from hsrl_jax.ops import masking, plackett_luce
from hsrl_jax.sid.categories import categories, rarest
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array

KINDS = "kinds"  # Of its parameters: the items' categories, as in training.


class _Categories(sequential.Sequential):
  """The agent's functions, of a catalogue by `_by_category`."""

  def act(self, params, catalogue, observation, excluded, key, temperature):
    count, kinds = self.spec.slate_size, self.spec.vocab_size
    policy, tokens, observation = self.bound(params, catalogue, observation)
    start = policy.start(tokens, observation)
    estimates = self._estimates(policy, start, tokens)
    allowed = base.permitted(catalogue.index.active, excluded)
    noise, tempered = plackett_luce.perturbation(
      key, (count, kinds), temperature
    )

    def slot(carry, inputs):
      chosen, allowed = carry
      place, noise = inputs
      prior, may = self._best(estimates, tokens, allowed)
      logits = policy.logits(start, chosen, None, place, 0) + prior
      kind = jnp.argmax(jnp.where(may, logits + noise, -jnp.inf))
      own = allowed & (tokens.first == kind)
      item = jnp.argmax(jnp.where(own, estimates, -jnp.inf)).astype(jnp.int32)
      vector = policy.item_vectors(tokens, item)
      likes = policy.likes(start, vector, place)
      one = policy.one_chosen(tokens.first[item], vector, likes)
      log_prob = masking.log_softmax(logits, may)[kind]
      propensity = plackett_luce.of_choice(logits, may, kind, tempered)
      carry = jax.tree.map(jnp.add, chosen, one), allowed.at[item].set(False)
      return carry, (item, log_prob, propensity, may[None], prior[None])

    _, (slate, log_prob, propensity, may, prior) = jax.lax.scan(
      slot, (self._none_chosen, allowed), (jnp.arange(count), noise)
    )
    notes = sequential.Notes(may, start.estimate, prior)
    return base.Action(
      slate, log_prob, jnp.zeros(0), notes, propensity=propensity
    )

  def scores(self, params, catalogue, observation):
    """log pi of a category's best item in the first slot.

    Its others rank below it by their estimates.
    """
    policy, tokens, observation = self.bound(params, catalogue, observation)
    start = policy.start(tokens, observation)
    estimates = self._estimates(policy, start, tokens)
    prior, may = self._best(estimates, tokens, catalogue.index.active)
    logits = policy.logits(start, self._none_chosen, None, 0, 0) + prior
    log_pi = masking.log_softmax(logits, may)
    return estimates + (log_pi - prior)[tokens.first]

  def _estimates(self, policy, start, tokens):
    """The logit with which each item starts, [N + 1]."""
    return policy.item_estimates(start, tokens, jnp.arange(len(tokens.first)))

  def _best(self, estimates, tokens, allowed):
    """The largest estimate of each category, and whether it has items, [C]."""
    kinds = jnp.arange(self.spec.vocab_size)[:, None]
    own = allowed[None] & (tokens.first[None] == kinds)
    best = jnp.where(own, estimates[None], -jnp.inf).max(1)
    may = own.any(1)
    return jnp.where(may, best, 0.0), may


def make(settings: SlateSettings, spec: base.Spec) -> base.Agent:
  """Builds the agent; how many categories there are the catalogue says."""

  def known(catalogue, kinds):
    count = kinds.shape[1]
    policy = SlatePolicy(
      levels=1,
      vocab_size=count,
      item_prior=True,
      **sequential.shared(settings, spec),
    )
    critic = sequential.critic_of(spec, 1)
    own = spec._replace(levels=1, vocab_size=count)
    made = _Categories(policy, critic, count, settings, own)
    return made, _by_category(catalogue, kinds)

  def init(key, catalogue, observation, hidden=None):
    kinds = _kinds(catalogue)
    made, own = known(catalogue, kinds)
    return made.init(key, own, observation, hidden) | {KINDS: kinds}

  def of(method):
    def function(params, catalogue, *args):
      made, own = known(catalogue, params[KINDS])
      return method(made, params, own, *args)

    return function

  return base.Agent(
    init,
    of(_Categories.act),
    None,
    fixed_items=True,
    frozen=(KINDS,),
    scores=of(_Categories.scores),
    on_policy=base.OnPolicy(
      of(_Categories.choices), of(_Categories.value), settings
    ),
    place_by_place=True,
  )


def _kinds(catalogue: Catalogue) -> Array:
  """The one category of each item, float32 [N + 1, C + 1]; the last is none."""
  kinds = rarest(categories(catalogue))
  none = catalogue.index.known[:, None] - kinds.sum(1, keepdims=True)
  return jnp.concatenate([kinds, none], 1)


def _by_category(catalogue: Catalogue, kinds: Array) -> Catalogue:
  """The catalogue with categories as first tokens, and no others.

  A token means the mean features of its items. One without items means the mean
  of the others, so that it is like none and moves none.
  """
  kind, index = kinds.argmax(1), catalogue.index
  own = jax.nn.one_hot(kind, kinds.shape[1]) * index.known[:, None]
  count = own.sum(0)[:, None]
  means = own.T @ catalogue.features / jnp.maximum(count, 1.0)
  centre = means.sum(0) / jnp.maximum((count > 0).sum(), 1)
  means = jnp.where(count > 0, means, centre[None])
  index = dataclasses.replace(index, tokens=(kind,))
  return catalogue._replace(codebooks=means[None], index=index)
