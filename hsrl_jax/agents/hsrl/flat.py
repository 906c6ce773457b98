"""PPO with one logit for each item: on-policy HSRL without its hierarchy.

As `sequential`, whose encoders, response head, slates, critic and objective it
has, so that what differs is the tokens alone. A choice is an item; its
log-probability is exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl import sequential, supervised
from hsrl_jax.agents.hsrl.settings import SlateSettings
from hsrl_jax.agents.hsrl.supervised import Beginning
from hsrl_jax.networks import flat_policy as flat
from hsrl_jax.networks import slate_policy as policy
from hsrl_jax.networks.flat_policy import FlatPolicy
from hsrl_jax.ops import masking, plackett_luce, sampling
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import observed
from hsrl_jax.types import Array, Observation, Params, PRNGKey, Transition


class _Notes(NamedTuple):
  """What is kept of a slate for learning.

  Attributes:
    allowed: bool [N + 1], the items there were to choose from.
    estimate: what the policy knew of the response head.
  """

  allowed: Array
  estimate: policy.Estimate


def make(settings: SlateSettings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  actor = FlatPolicy(**sequential.shared(settings, spec))
  critic = sequential.critic_of(spec, 1)
  parts = sequential.Functions(actor, critic, 0, settings, spec)
  return sequential.bound(parts, _act, _scores, _choices)


def _act(
  parts: sequential.Functions,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
  excluded: Array,
  key: PRNGKey | None,
  temperature: Array | float,
) -> base.Action:
  """See base.Agent.act; the notes are _Notes."""
  actor = parts.policy.bind(params["policy"])
  tokens = sequential.tokens_of(catalogue)
  observation = observed.seen(observation)
  start = actor.start(tokens, observation)
  begins = parts.beginning(params, catalogue, observation)
  allowed = base.permitted(catalogue.index.active, excluded)
  if begins is not None:
    start = _beginning(start, begins, allowed)

  def slot(chosen, place):
    logits = actor.logits(start, chosen, place)
    if begins is not None:
      logits = _held(start, logits, begins.free)

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


def _scores(
  parts: sequential.Functions,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
) -> Array:
  """See base.Agent.scores: log pi of each item in the first slot."""
  observation = observed.seen(observation)
  begins = parts.beginning(params, catalogue, observation)
  if begins is not None and parts.settings.hold_logged:
    return begins.log_pi + begins.response
  actor = parts.policy.bind(params["policy"])
  tokens = sequential.tokens_of(catalogue)
  start = actor.start(tokens, observation)
  if begins is not None:
    start = _beginning(start, begins, catalogue.index.active)
  nothing = flat.none_chosen(len(catalogue.features))
  logits = actor.logits(start, nothing, jnp.int32(0))
  return masking.log_softmax(logits, catalogue.index.active)


def _choices(
  parts: sequential.Functions,
  params: Params,
  catalogue: Catalogue,
  transition: Transition,
  key: PRNGKey | None,
) -> base.Choices:
  """See base.OnPolicy; P is 1."""
  actor, settings = parts.policy.bind(params["policy"]), parts.settings
  keys = (None, None) if key is None else sampling.split(key, 2)
  observation = observed.seen(transition.observation)
  slate, notes = transition.slate, transition.notes
  tokens = sequential.tokens_of(catalogue)
  start = actor.start(tokens, observation, keys[0], notes.estimate)

  # A cache holds an array as long as the catalogue, and not K of them.
  @jax.checkpoint
  def slot(carry, inputs):
    chosen, allowed = carry
    item, place = inputs
    logits = actor.logits(start, chosen, place)
    if parts.spec.supervised is not None:
      logits = _held(start, logits, supervised.free(settings, observation))
    log_pi = masking.log_softmax(logits, allowed)
    entropy = masking.entropy(log_pi, allowed)
    one = actor.one_chosen(start, item, place)
    carry = jax.tree.map(jnp.add, chosen, one), allowed.at[item].set(False)
    return carry, (masking.pick(log_pi, item), entropy, chosen.vectors)

  carry = flat.none_chosen(len(notes.allowed)), notes.allowed
  slots = jnp.arange(len(slate))
  _, found = jax.lax.scan(slot, carry, (slate, slots))
  of_choice, entropy, vectors = found
  before = sequential.nothing(parts)
  if settings.credit != "slate":
    # Nothing of tokens above: an item is a single choice.
    above = jnp.zeros((len(slate), 1, policy.WIDTH))
    before = policy.Chosen(jnp.zeros((len(slate), 2, 0)), vectors), above
  values = parts.critic.apply(
    params["critic"],
    tokens,
    observation,
    transition.hidden,
    start.estimate.user,
    *before,
    keys[1],
  )
  return sequential.judged(
    settings,
    transition,
    of_choice[:, None],
    entropy[:, None],
    values,
    actor.chances(start, start.vectors[slate]),
  )
