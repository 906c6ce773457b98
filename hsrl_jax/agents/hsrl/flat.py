"""PPO with one logit for each item: on-policy HSRL without its hierarchy.

As `sequential`, whose encoders, response head, slates, critic and objective it
has, so that what differs is the tokens alone. A choice is an item; its
log-probability is exact.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl import sequential, supervised
from hsrl_jax.agents.hsrl.settings import SlateSettings
from hsrl_jax.agents.hsrl.supervised import Beginning
from hsrl_jax.errors import InputError
from hsrl_jax.networks import flat_policy as flat
from hsrl_jax.networks.flat_policy import FlatPolicy
from hsrl_jax.networks.slate_policy import WIDTH, Chosen, Estimate
from hsrl_jax.ops import masking, plackett_luce
from hsrl_jax.types import Array


class _Notes(NamedTuple):
  """Parts of a slate that are kept for learning."""

  allowed: Array  # bool [N + 1], the items there were to choose from.
  estimate: Estimate  # What the policy knew of the response head.


class _Flat(sequential.Slates):
  """PPO, item by item; the notes of its actions are _Notes."""

  def act(self, params, catalogue, observation, excluded, key, temperature):
    policy, tokens, observation = self.bound(params, catalogue, observation)
    start = policy.start(tokens, observation)
    begins = self.beginning(params, catalogue, observation)
    allowed = base.permitted(catalogue.index.active, excluded)
    if begins is not None:
      start = _beginning(start, begins, allowed)

    def slot(chosen, place):
      logits = policy.logits(start, chosen, place)
      if begins is not None:
        logits = _held(start, logits, begins.free)

      def after(item, may):
        one = policy.one_chosen(start, item, place)
        log_prob = masking.log_softmax(logits, may)[item]
        return jax.tree.map(jnp.add, chosen, one), log_prob

      return logits, after

    slate, propensity, log_prob = plackett_luce.in_turn(
      slot,
      flat.none_chosen(catalogue.features.shape[1]),
      allowed,
      self.spec.slate_size,
      key,
      temperature,
    )
    notes = _Notes(allowed, start.estimate)
    return base.Action(
      slate, log_prob, jnp.zeros(0), notes, propensity=propensity
    )

  def scores(self, params, catalogue, observation):
    """log pi of each item in the first slot."""
    begins = self.beginning(params, catalogue, observation)
    if begins is not None and self.settings.hold_logged != "none":
      return begins.log_pi + begins.response
    policy, tokens, observation = self.bound(params, catalogue, observation)
    start = policy.start(tokens, observation)
    if begins is not None:
      start = _beginning(start, begins, catalogue.index.active)
    nothing = flat.none_chosen(catalogue.features.shape[1])
    logits = policy.logits(start, nothing, jnp.int32(0))
    return masking.log_softmax(logits, catalogue.index.active)

  def choices(self, params, catalogue, transition, key):
    """See base.OnPolicy; P is 1."""
    slate, notes = transition.slate, transition.notes
    (policy, _, observation), start, key = self.looks_back(
      params, catalogue, transition, key
    )

    # A cache holds an array as long as the catalogue, and not K of them.
    @jax.checkpoint
    def slot(carry, inputs):
      chosen, allowed = carry
      item, place = inputs
      logits = policy.logits(start, chosen, place)
      anchor = policy.anchor(start, chosen)
      if self.spec.supervised is not None:
        free = supervised.free(self.settings, observation, 1)
        logits, anchor = (_held(start, x, free) for x in (logits, anchor))
      log_pi, anchor = (
        masking.log_softmax(x, allowed) for x in (logits, anchor)
      )
      one = policy.one_chosen(start, item, place)
      carry = jax.tree.map(jnp.add, chosen, one), allowed.at[item].set(False)
      found = (
        masking.pick(log_pi, item),
        masking.entropy(log_pi, allowed),
        masking.divergence(log_pi, anchor, allowed),
      )
      return carry, (found, chosen.vectors)

    carry = flat.none_chosen(catalogue.features.shape[1]), notes.allowed
    _, (found, vectors) = jax.lax.scan(
      slot, carry, (slate, jnp.arange(len(slate)))
    )
    before = None
    if self.settings.credit != "slate":
      # Nothing of tokens above: an item is a single choice.
      above = jnp.zeros((len(slate), 1, WIDTH))
      before = Chosen(jnp.zeros((len(slate), 2, 0)), vectors), above
    return self.judged(
      params,
      catalogue,
      transition,
      [x[:, None] for x in found],
      start,
      before,
      policy.chances(start, start.vectors[slate]),
      key,
    )


def make(settings: SlateSettings, spec: base.Spec) -> base.Agent:
  """Builds the agent.

  Raises:
    InputError: the first slot alone is to be held.
  """
  if spec.supervised is not None and settings.hold_logged == "slot":
    raise InputError(
      "hold_logged is 'slot'; expected slate or none: the flat agent keeps "
      "what the items of one slot begin with"
    )
  policy = FlatPolicy(**sequential.shared(settings, spec))
  critic = sequential.critic_of(spec, 1)
  return _Flat(policy, critic, 0, settings, spec).agent()


def make_a2c(settings: SlateSettings, spec: base.Spec) -> base.Agent:
  """Builds the same agent for A2C: one epoch over a segment, nothing clipped.

  The objective is a plain policy gradient by the advantages of GAE: before a
  segment's first step all ratios are 1. Its other minibatches come after steps
  on the ones before, and the ratio weighs what they have moved.
  """
  agent = make(settings, spec)
  learning = agent.on_policy._replace(clip=math.inf, epochs=1)
  return agent._replace(on_policy=learning)


def _beginning(
  start: flat.Start, begins: Beginning, allowed: Array
) -> flat.Start:
  """A state's start with what the policy of the next item says of it."""
  likes = start.estimate.likes
  logits = begins.logits(likes, jnp.arange(len(likes)), allowed)
  return start._replace(
    prior=start.prior + logits - likes,
    estimate=start.estimate._replace(likes=logits),
  )


def _held(start: flat.Start, logits: Array, free: Array) -> Array:
  """Logits of which RL's part counts `free` times."""
  return start.estimate.likes + free * (logits - start.estimate.likes)
