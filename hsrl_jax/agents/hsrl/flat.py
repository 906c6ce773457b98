"""HSRL without its hierarchy: on-policy, with one logit for each item.

As `sequential`, whose encoders, response head, slates, critic and objective it
has, so that what differs is the tokens alone. A choice is an item; its
log-probability is exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl import sequential
from hsrl_jax.agents.hsrl.settings import Settings
from hsrl_jax.networks.slates import flat, policy
from hsrl_jax.networks.slates.critic import PrefixCritic
from hsrl_jax.networks.slates.flat import FlatPolicy
from hsrl_jax.ops import masking, plackett_luce, sampling
from hsrl_jax.sim import observed
from hsrl_jax.types import Array, Decision, Observation, Params, PRNGKey


class _Notes(NamedTuple):
  """What is kept of a slate for learning.

  Attributes:
    allowed: bool [N + 1], the items there were to choose from.
    estimate: what the policy knew of the response head.
  """

  allowed: Array
  estimate: policy.Estimate


class _Parts(NamedTuple):
  """What the agent's functions are made of; all of it is static."""

  policy: FlatPolicy
  critic: PrefixCritic
  settings: Settings
  spec: base.Spec


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  sizes = spec.network
  encoder = (sizes.width, sizes.layers, sizes.heads, sizes.dropout)
  actor = FlatPolicy(
    encoder,
    sequential=settings.slates == "sequential",
    prior_temperature=settings.prior_temperature,
    repeat_penalty=settings.repeat_penalty,
    lately_penalty=settings.lately_penalty,
  )
  critic = sequential.critic_of(settings, spec, encoder, 1)
  parts = _Parts(actor, critic, settings, spec)
  return sequential.bound(parts, _init, _act, _scores, _choices, _value)


def _init(
  parts: _Parts,
  key: PRNGKey,
  catalogue: base.ActionSpace,
  observation: Observation,
  hidden: Array | None = None,
) -> Params:
  """See base.Agent.init; `hidden` is what the critic alone sees, [Z]."""
  keys, observation = jax.random.split(key), observed.seen(observation)
  actor = parts.policy.init(keys[0], catalogue.features, observation)
  start = parts.policy.apply(
    actor, catalogue.features, observation, method="start"
  )
  critic = parts.critic.init(
    keys[1],
    sequential.tokens_of(catalogue),
    observation,
    jnp.zeros(0) if hidden is None else hidden,
    start.user,
    *_nothing(parts),
  )
  return {"policy": actor, "critic": critic}


def _nothing(parts: _Parts) -> tuple[policy.Chosen, Array]:
  """What the critic knows before the first slot."""
  return _known(policy.none_chosen(_kinds(parts), 1))


def _kinds(parts: _Parts) -> int:
  """Kinds of items that the critic sees."""
  return parts.spec.vocab_size if parts.settings.critic_sees_kinds else 0


def _known(chosen: policy.Chosen) -> tuple[policy.Chosen, Array]:
  """With nothing of tokens above: an item is a single choice."""
  return chosen, jnp.zeros((len(chosen.vectors), 1, policy.WIDTH))


def _act(
  parts: _Parts,
  params: Params,
  catalogue: base.ActionSpace,
  observation: Observation,
  excluded: Array,
  key: PRNGKey | None,
  temperature: Array | float,
) -> base.Action:
  """See base.Agent.act; the notes are _Notes."""
  actor = parts.policy.bind(params["policy"])
  start = actor.start(catalogue.features, observed.seen(observation))
  allowed = base.permitted(catalogue.index.active, excluded)

  def slot(chosen, place):
    logits = actor.logits(start, chosen, place)

    def after(item, may):
      one = actor.one_chosen(start, item, place)
      log_prob = masking.log_softmax(logits, may)[item]
      return jax.tree.map(jnp.add, chosen, one), log_prob

    return logits, after

  slate, propensity, log_prob = plackett_luce.in_turn(
    slot,
    flat.none_chosen(len(allowed)),
    allowed,
    parts.spec.slate_size,
    key,
    temperature,
  )
  notes = _Notes(allowed, start.estimate)
  return base.Action(
    slate, log_prob, jnp.zeros(0), notes, propensity=propensity
  )


def _scores(
  parts: _Parts,
  params: Params,
  catalogue: base.ActionSpace,
  observation: Observation,
) -> Array:
  """See base.Agent.scores: log pi of each item in the first slot."""
  actor = parts.policy.bind(params["policy"])
  start = actor.start(catalogue.features, observed.seen(observation))
  nothing = flat.none_chosen(len(catalogue.features))
  logits = actor.logits(start, nothing, jnp.int32(0))
  return masking.log_softmax(logits, catalogue.index.active)


def _choices(
  parts: _Parts,
  params: Params,
  catalogue: base.ActionSpace,
  decision: Decision,
  key: PRNGKey | None,
) -> base.Choices:
  """See base.OnPolicy; P is 1."""
  actor, settings = parts.policy.bind(params["policy"]), parts.settings
  keys = (None, None) if key is None else sampling.split(key, 2)
  observation = observed.seen(decision.observation)
  slate, notes = decision.slate, decision.notes
  start = actor.start(catalogue.features, observation, keys[0], notes.estimate)

  # A cache holds an array as long as the catalogue, and not K of them.
  @jax.checkpoint
  def slot(carry, inputs):
    chosen, allowed = carry
    item, place = inputs
    log_pi = masking.log_softmax(actor.logits(start, chosen, place), allowed)
    entropy = masking.entropy(log_pi, allowed)
    one = actor.one_chosen(start, item, place)
    carry = jax.tree.map(jnp.add, chosen, one), allowed.at[item].set(False)
    # An item is as like itself as can be.
    kept = one.chosen[:, item], chosen.vectors
    return carry, (log_pi[item], entropy, kept)

  carry = flat.none_chosen(len(notes.allowed)), notes.allowed
  slots = jnp.arange(len(slate))
  _, found = jax.lax.scan(slot, carry, (slate, slots))
  of_choice, entropy, (each, vectors) = found
  tokens, before = sequential.tokens_of(catalogue), _nothing(parts)
  if settings.prefix_values:
    kinds = jax.nn.one_hot(tokens.first[slate], _kinds(parts))
    counts = policy.before(each[:, :, None] * kinds[:, None])
    before = _known(policy.Chosen(counts, vectors))
  values = parts.critic.apply(
    params["critic"],
    tokens,
    observation,
    decision.hidden,
    start.estimate.user,
    *before,
    keys[1],
  )
  return sequential.judged(
    settings,
    decision,
    of_choice[:, None],
    entropy[:, None],
    values,
    actor.chances(start, start.vectors[slate]),
  )


def _value(
  parts: _Parts,
  params: Params,
  catalogue: base.ActionSpace,
  observation: Observation,
  hidden: Array,
) -> Array:
  """See base.OnPolicy."""
  observation = observed.seen(observation)
  start = parts.policy.apply(
    params["policy"], catalogue.features, observation, method="start"
  )
  return parts.critic.apply(
    params["critic"],
    sequential.tokens_of(catalogue),
    observation,
    hidden,
    start.estimate.user,
    *_nothing(parts),
  )[0, 0]
