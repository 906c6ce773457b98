"""HSRL that learns on-policy, and whose slates know themselves.

An item is chosen token by token, a slate slot after slot, each choice out of
the tokens that lead to an item which may be shown (docs/policy.md, Sequential
slates). So the log-probability of a slate is exact. The baseline of all choices
is the value of the state; with `credit` by slot or token they have one of their
own, the value of the state and of what was chosen before.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl import item_softmax, supervised
from hsrl_jax.agents.hsrl.settings import (
  OnPolicySettings,
  SlateSettings,
  SupervisedTokens,
)
from hsrl_jax.agents.hsrl.supervised import Beginning
from hsrl_jax.networks import leaving
from hsrl_jax.networks import slate_policy as slates
from hsrl_jax.networks.slate_critic import PrefixCritic
from hsrl_jax.networks.slate_policy import SlatePolicy, StatePolicy, Tokens
from hsrl_jax.ops import masking, plackett_luce, sampling
from hsrl_jax.sid.index import (
  Catalogue,
  child,
  children,
  item_of,
  live_children,
  sid_of,
)
from hsrl_jax.sim import observed
from hsrl_jax.types import Array


class Notes(NamedTuple):
  """Parts of a slate that are kept for learning."""

  allowed: Array  # bool [K, L, V], the tokens there were to choose from.
  estimate: slates.Estimate  # What the policy knew of the response head.
  # float32 [K, L, V], what the items below each token added to its logit; of no
  # level without `item_prior`.
  prior: Array


class Slates(NamedTuple):
  """Shared parts of agents whose slates know themselves; see base.Agent.

  A subclass has `act`, `scores` and `choices`, see base.OnPolicy.
  """

  policy: StatePolicy  # SlatePolicy or FlatPolicy.
  critic: PrefixCritic  # Of slates.
  # Tokens of the first level whose counts in a slate the critic sees.
  counted: int
  settings: SlateSettings  # Of the agent.
  spec: base.Spec  # Of the agent.

  @property
  def nothing(self) -> tuple[slates.Chosen, Array]:
    """The critic's input before the first choice: counts, vectors above."""
    chosen = slates.none_chosen(self.counted, 1)
    return chosen, jnp.zeros((1, 1, chosen.vectors.shape[-1]))

  def agent(self) -> base.Agent:
    """The agent of these functions."""
    return base.Agent(
      self.init,
      self.act,
      None,
      scores=self.scores,
      on_policy=base.OnPolicy(self.choices, self.value, self.settings),
      place_by_place=True,
      frozen=() if self.spec.supervised is None else (supervised.KEY,),
    )

  def bound(self, params, catalogue, observation):
    """The policy with its parameters, and what it knows of tokens and user."""
    policy = self.policy.bind(params["policy"])
    return policy, tokens_of(catalogue), observed.seen(observation)

  def looks_back(self, params, catalogue, transition, key):
    """`bound`, and the start, at a slate that was shown; the critic's key."""
    policy, tokens, observation = self.bound(
      params, catalogue, transition.observation
    )
    keys = (None, None) if key is None else sampling.split(key, 2)
    estimate = transition.notes.estimate
    start = policy.start(tokens, observation, keys[0], estimate)
    return (policy, tokens, observation), start, keys[1]

  def beginning(self, params, catalogue, observation) -> Beginning | None:
    """See Beginning; None where the agent starts afresh."""
    start = self.spec.supervised
    if start is None:
      return None
    return supervised.beginning(
      self.settings, start, params, catalogue, observed.seen(observation)
    )

  def init(self, key, catalogue, observation, hidden=None):
    """See base.Agent; `hidden` is what the critic alone sees, [Z]."""
    keys, tokens = jax.random.split(key), tokens_of(catalogue)
    observation = observed.seen(observation)
    policy = self.policy.init(keys[0], tokens, observation)
    start = self.policy.apply(policy, tokens, observation, method="start")
    hidden = jnp.zeros(0) if hidden is None else hidden
    critic = self.critic.init(
      keys[1], tokens, observation, hidden, start.user, *self.nothing
    )
    params = {"policy": policy, "critic": critic}
    if self.spec.supervised is not None:
      # Those of the first part take their place: no program need draw others.
      first = self.spec.supervised.agent.init
      shapes = jax.eval_shape(first, key, catalogue, observation)
      params[supervised.KEY] = jax.tree.map(jnp.zeros_like, shapes)
    return params

  def value(self, params, catalogue, observation, hidden):
    """See base.OnPolicy."""
    policy, tokens, observation = self.bound(params, catalogue, observation)
    user = policy.start(tokens, observation).estimate.user
    return self.critic.apply(
      params["critic"], tokens, observation, hidden, user, *self.nothing
    )[0, 0]

  def judged(
    self, params, catalogue, transition, found, start, before, chances, key
  ) -> base.Choices:
    """The choices made, with values and the losses of both heads.

    Empty places count nothing.

    Args:
      params: of the agent.
      catalogue: the items.
      transition: the slate, int32 [K], and its responses.
      found: float32 [K, P] each, log-probability of each choice, and of what
        it was drawn from entropy and divergence from its anchor, nats.
      start: the policy's view of the state.
      before: what was chosen before each choice, as `nothing`; None: all have
        the value of the state.
      chances: float32 [K], logits of a like.
      key: of the critic's dropout.
    """
    settings, there = self.settings, transition.slate > 0
    log_probs, entropy, divergence = (
      jnp.where(there[:, None], x, 0.0) for x in found
    )
    tokens = tokens_of(catalogue)
    values = self.critic.apply(
      params["critic"],
      tokens,
      observed.seen(transition.observation),
      transition.hidden,
      *jax.lax.stop_gradient((start.estimate.user, *(before or self.nothing))),
      key,
    )
    loss = optax.sigmoid_binary_cross_entropy(chances, transition.response)
    losses = {"behaviour_loss": jnp.where(there, loss, 0.0).mean()}
    if start.leaving is not None:
      features = tokens.features[transition.slate]
      hazards = leaving.hazards(start.leaving, features)
      losses["leave_loss"] = leaving.loss(
        jnp.where(there, hazards, masking.NEGATIVE),
        start.leaving.anyway,
        transition.terminated,
      )
    loss = settings.behaviour_weight * sum(losses.values())
    if settings.anchor_weight:
      losses["divergence"] = divergence.mean()
      loss += settings.anchor_weight * losses["divergence"]
    return base.Choices(
      log_probs,
      jnp.broadcast_to(values, log_probs.shape),
      entropy.mean(),
      loss,
      losses,
    )


class Sequential(Slates):
  """HSRL, token by token; the notes of its actions are Notes."""

  def act(self, params, catalogue, observation, excluded, key, temperature):
    spec, index = self.spec, catalogue.index
    policy, tokens, observation = self.bound(params, catalogue, observation)
    start = policy.start(tokens, observation)
    begins = self.beginning(params, catalogue, observation)
    free = jnp.ones(spec.slate_size)
    if begins is not None:
      free = supervised.free(self.settings, observation, spec.slate_size)
    sizes = (spec.slate_size, spec.levels, spec.vocab_size)
    noise, tempered = plackett_luce.perturbation(key, sizes, temperature)
    banned = sid_of(index, _distinct(excluded, index.active))
    below = self._below(policy, start, catalogue, excluded, begins)
    if splits := begins is not None and self.settings.hold_logged == "slot":
      begins = begins._replace(free=jnp.float32(1))
      after_first = self._below(policy, start, catalogue, excluded, begins)

    root = children(index, jnp.int32(0), 0)

    def slot(carry, inputs):
      chosen, taken, below = carry
      place, noise = inputs
      node, partial = jnp.int32(0), jnp.zeros(start.vectors.shape[-1])
      barred, same = ((x >= 0).all(-1) for x in (banned, taken))
      log_prob, propensity = jnp.float32(0), jnp.float32(1)
      allowed, prior, path, sid = [], [], [], []
      for level in range(spec.levels):
        logits = policy.logits(start, chosen, partial, place, level)
        logits *= free[place]
        nodes = children(index, node, level) if level else root
        if below is not None:
          prior.append(item_softmax.token_logits(index, below, nodes, level))
          logits += prior[-1]
        used = jnp.zeros(spec.vocab_size, jnp.int32)
        used = used.at[banned[:, level]].add(barred.astype(jnp.int32))
        here = taken[:, level, None] == jnp.arange(spec.vocab_size)[None]
        used += (here & same[:, None]).sum(0)
        may = live_children(index, nodes, level) > used
        token = jnp.argmax(jnp.where(may, logits + noise[level], -jnp.inf))
        log_prob += masking.pick(masking.log_softmax(logits, may), token)
        propensity *= plackett_luce.of_choice(logits, may, token, tempered)
        barred &= banned[:, level] == token
        same &= taken[:, level] == token
        node = masking.pick(jnp.where(*nodes, -1), token)
        partial += start.vectors[level].at[token].get(mode="clip")
        allowed.append(may)
        path.append(node)
        sid.append(token)
      allowed = jnp.stack(allowed)
      there = allowed.any(1).all()
      item = jnp.where(there, item_of(index, node), 0)
      sid = jnp.where(there, jnp.stack(sid), -1)
      vector = policy.item_vectors(tokens, item)
      likes = policy.likes(start, vector, place)
      one = policy.one_chosen(sid[0], vector, likes)
      chosen = jax.tree.map(jnp.add, chosen, one)
      here = jnp.arange(spec.slate_size) == place
      taken = jnp.where(here[:, None], sid[None], taken)
      if splits:
        below = jax.tree.map(
          lambda x, y: jnp.where(place == 0, x, y), after_first, below
        )
      if below is not None:
        below = item_softmax.without(index, below, path)
      kept = item, log_prob, propensity, allowed, jnp.array(prior)
      return (chosen, taken, below), kept

    taken = jnp.full((spec.slate_size, spec.levels), -1)
    _, (slate, log_prob, propensity, allowed, prior) = jax.lax.scan(
      slot,
      (self._none_chosen, taken, below),
      (jnp.arange(spec.slate_size), noise),
    )
    notes = Notes(allowed, start.estimate, prior)
    return base.Action(
      slate, log_prob, jnp.zeros(0), notes, propensity=propensity
    )

  @property
  def _none_chosen(self):
    return jax.tree.map(lambda x: x[0], self.nothing[0])

  def scores(self, params, catalogue, observation):
    """log pi of each item in the first slot."""
    index = catalogue.index
    begins = self.beginning(params, catalogue, observation)
    if begins is not None and self.settings.hold_logged != "none":
      return begins.log_pi + begins.response
    policy, tokens, observation = self.bound(params, catalogue, observation)
    start, chosen = policy.start(tokens, observation), self._none_chosen
    items = jnp.arange(len(index.known))
    sids = jnp.maximum(sid_of(index, items), 0)
    node = jnp.zeros(len(items), jnp.int32)
    partial = jnp.zeros((len(items), start.vectors.shape[-1]))
    nobody = jnp.zeros(1, jnp.int32)
    below = self._below(policy, start, catalogue, nobody, begins)
    log_pi = jnp.zeros(len(items))
    for level in range(self.spec.levels):
      # Once for each prefix, of which there are fewer than items.
      an_item = jnp.zeros(len(index.first_child[level]), jnp.int32)
      an_item = an_item.at[node].set(items)

      def of_prefix(number, partial, level=level):
        logits = policy.logits(start, chosen, partial, 0, level)
        nodes = children(index, number, level)
        if below is not None:
          logits += item_softmax.token_logits(index, below, nodes, level)
        may = live_children(index, nodes, level) > 0
        return masking.log_softmax(logits, may)

      table = jax.vmap(of_prefix)(jnp.arange(len(an_item)), partial[an_item])
      log_pi += table[node, sids[:, level]]
      partial += start.vectors[level, sids[:, level]]
      follow = jax.vmap(child, (None, 0, 0, None))
      node = jnp.maximum(follow(index, node, sids[:, level], level), 0)
    return log_pi

  def _below(self, policy, start, catalogue, excluded, begins):
    """See item_softmax.weights_below; None without `item_prior`."""
    if not policy.item_prior:
      return None
    index = catalogue.index
    rows = item_softmax.rows_of(index)
    tokens = tokens_of(catalogue)
    logits = policy.item_estimates(start, tokens, rows.item)
    if begins is not None:
      allowed = base.permitted(index.active, excluded)
      logits = begins.logits(logits, rows.item, allowed)
    return item_softmax.weights_below(index, rows, logits, excluded)

  def choices(self, params, catalogue, transition, key):
    """See base.OnPolicy."""
    spec, notes = self.spec, transition.notes
    (policy, tokens, observation), start, key = self.looks_back(
      params, catalogue, transition, key
    )
    slots = jnp.arange(spec.slate_size)
    sids = sid_of(catalogue.index, transition.slate)
    vectors = policy.item_vectors(tokens, transition.slate)
    likes = jax.vmap(policy.likes, (None, 0, 0))(start, vectors, slots)
    chosen = policy.chosen_before(sids[:, 0], vectors, likes)
    # Sums of the vectors of the tokens above each level, [K, L, W].
    above = start.vectors[jnp.arange(spec.levels), jnp.maximum(sids, 0)]
    partial = jnp.cumsum(above, 1) - above
    of_slots = jax.vmap(policy.logits, (None, 0, 0, 0, None))
    logits = jnp.stack(
      [
        of_slots(start, chosen, partial[:, level], slots, level)
        for level in range(spec.levels)
      ],
      1,
    )
    anchor = jax.vmap(policy.anchor, (None, 0))(start, chosen)
    if spec.supervised is not None:
      free = supervised.free(self.settings, observation, spec.slate_size)
      logits, anchor = (x * free[:, None, None] for x in (logits, anchor))
    if policy.item_prior:
      logits, anchor = (x + notes.prior for x in (logits, anchor))
    log_probs, anchor = (
      masking.log_softmax(x, notes.allowed) for x in (logits, anchor)
    )
    found = (
      masking.pick(log_probs, sids),
      masking.entropy(log_probs, notes.allowed),
      masking.divergence(log_probs, anchor, notes.allowed),
    )
    by_slate = self.settings.credit == "slate"
    return self.judged(
      params,
      catalogue,
      transition,
      found,
      start,
      None if by_slate else (chosen, partial),
      policy.chances(start, vectors),
      key,
    )


def make(
  settings: OnPolicySettings | SupervisedTokens, spec: base.Spec
) -> base.Agent:
  """Builds the agent."""
  policy = SlatePolicy(
    levels=spec.levels,
    vocab_size=spec.vocab_size,
    semantic=settings.has("semantic_tokens"),
    residual=settings.has("residual"),
    item_prior=spec.supervised is not None or settings.has("item_prior"),
    **shared(settings, spec),
  )
  critic = critic_of(spec, spec.levels)
  return Sequential(policy, critic, spec.vocab_size, settings, spec).agent()


def shared(settings: SlateSettings, spec: base.Spec) -> dict[str, Any]:
  """The fields of StatePolicy."""
  return {
    "encoder": spec.network.encoder,
    "sequential": settings.slates == "sequential",
    "prior_temperature": settings.prior_temperature,
    "repeat_penalty": settings.repeat_penalty,
    "lately_penalty": settings.lately_penalty,
    "leave_penalty": settings.leave_penalty,
  }


def critic_of(spec: base.Spec, levels: int) -> PrefixCritic:
  """The critic of slates, of which an item is made of `levels` choices."""
  sizes = spec.network
  return PrefixCritic(levels, sizes.encoder, sizes.critic_hidden)


def tokens_of(catalogue: Catalogue) -> Tokens:
  """Tokens and items of the catalogue, as policy and critic know them."""
  first = catalogue.index.tokens[0].astype(jnp.int32)
  first = jnp.where(catalogue.index.known, first, -1)
  return Tokens(catalogue.codebooks, catalogue.features, first)


def _distinct(items: Array, active: Array) -> Array:
  """Each active item once, the rest 0; int32 [T] -> [T]."""
  items = jnp.sort(items)
  again = jnp.concatenate([jnp.zeros(1, bool), items[1:] == items[:-1]])
  return jnp.where(again[: len(items)] | ~active[items], 0, items)
