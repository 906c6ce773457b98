"""HSRL (arXiv 2510.09167) as an Agent: how it acts, and its losses.

The policy chooses the tokens of a semantic ID, level by level; a slate is the
items whose tokens, and item residual, have the largest log pi. The critic has a
value for each level. The losses are those of docs/policy.md.

Candidates of a slate are all items, or what a beam search over SIDs finds.
Either way a sampled slate is a draw without replacement from
softmax(log pi / temperature) over the items that may be shown, where log pi has
the item residual: each item has ONE Gumbel noise, and the K largest sums are
shown (arXiv 1903.06059).

Of all items that is exact. The search draws the same noise top-down, so that it
finds the beams that rank highest under its proposal, which knows neither the
item residual nor how much is left below a prefix; then the item's own noise is
added to the item's own log pi. With as many beams as items that is exact too.
With fewer, an item that the proposal ranks below all beams is never shown, and
log-probabilities are normalised over the beams.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl.settings import Settings
from hsrl_jax.networks.critic import Critic
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.networks.hierarchy import PolicyNetwork
from hsrl_jax.ops import masking, policy_gradient, sampling
from hsrl_jax.sid.beam_search import beam_search
from hsrl_jax.sid.index import sid_of
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Array

SEARCH_FROM = 100_000  # Items; fewer are scored, which is faster.


class _Hsrl(NamedTuple):
  """The agent's functions (base.Agent), and what they are made of.

  The parameters of each of the three modules are under its name. `beams` of a
  search find a slate; 0: all items are scored.
  """

  encoder: Encoder
  policy: PolicyNetwork
  critic: Critic
  settings: Settings
  spec: base.Spec
  beams: int

  def init(self, key, catalogue, observation):
    keys = jax.random.split(key, 3)
    encoder = self.encoder.init(keys[0], catalogue.features, *observation)
    state = self.state({"encoder": encoder}, catalogue, observation)
    levels = self.spec.levels + 1 if self.settings.has("level_critics") else 1
    contexts = jnp.broadcast_to(state, (levels, *state.shape))
    return {
      "encoder": encoder,
      "policy": self.policy.init(keys[1], catalogue.codebooks, state),
      "critic": self.critic.init(keys[2], contexts),
    }

  def state(self, params, catalogue, observation, key=None):
    """c_0, [d]; `key` is of the dropout."""
    return base.encoded(self.encoder, params, catalogue, observation, key)

  def expected(self, params, catalogue, state):
    """All levels with the expected residual, a Hierarchy."""
    return self.policy.apply(
      params["policy"], catalogue.codebooks, state, method="expected"
    )

  def lost(self, params, catalogue, state, items):
    """Scores of what SIDs lose of items' features, int32 [M] -> float32 [M]."""
    of_items, of_tokens = self.meanings(
      params, catalogue, state, catalogue.features[items]
    )
    tokens = sid_of(catalogue.index, items)
    return of_items - masking.pick(of_tokens[None], tokens).sum(-1)

  def meanings(self, params, catalogue, state, features):
    """PolicyNetwork.meaning of features, [M, D] -> [M], and of tokens, [L, V].

    No item's codebook vectors are put together.
    """
    return [
      self.policy.apply(params["policy"], x, state, method="meaning")
      for x in (features, catalogue.codebooks)
    ]

  def of_items(self, params, catalogue, state, levels):
    """Sums of levels [L, V] along SIDs, and what these lose, [N + 1]."""
    of_items, index = jnp.zeros(()), catalogue.index
    if self.settings.item_residual:
      of_items, of_tokens = self.meanings(
        params, catalogue, state, catalogue.features
      )
      levels = levels - of_tokens
    return policy_gradient.token_sum(levels, index.tokens) + of_items

  def value(self, params, contexts):
    """V(s), [], of contexts [L + 1, d]."""
    valued = contexts if self.settings.has("level_critics") else contexts[:1]
    return self.critic.apply(params["critic"], valued)[0]

  def act(self, params, catalogue, observation, excluded, key, temperature):
    state, index = self.state(params, catalogue, observation), catalogue.index
    logits = self.expected(params, catalogue, state).logits
    # The logit of a like minus log pi, one number per state.
    offset = jax.nn.logsumexp(logits, -1).sum() + _response_bias(params)
    log_probs = jax.nn.log_softmax(logits)
    if self.beams:
      # All prefixes share the logits of their level.
      found = beam_search(
        index,
        (),
        lambda context, level: log_probs[level],
        lambda context, token, level: context,
        beams=self.beams,
        excluded=excluded,
        key=key,
        temperature=temperature,
      )
      items, log_pi, allowed = found.items, found.log_probs, found.valid
      if self.settings.item_residual:
        log_pi = log_pi + self.lost(params, catalogue, state, items)
      noise = None if key is None else found.noise
    else:
      log_pi = self.of_items(params, catalogue, state, log_probs)
      items = jnp.arange(len(log_pi))
      allowed = base.permitted(index.active, excluded)
      noise = None if key is None else sampling.gumbel(key, log_pi.shape)
    ranks, log_prob = base.draw(
      log_pi,
      allowed,
      noise,
      temperature,
      weighed=self.settings.importance_clip > 0,
    )
    if not self.spec.reward.is_mean:
      best = _composed(self.spec, ranks, log_pi + offset)
    else:
      best = base.top(ranks, self.spec.slate_size)
    ranked = base.Ranked(items, log_pi, allowed)
    return base.Action(items[best], log_prob[best], jnp.zeros(0), ranked=ranked)

  def scores(self, params, catalogue, observation):
    """log pi of each item, whether a search finds it."""
    state = self.state(params, catalogue, observation)
    logits = self.expected(params, catalogue, state).logits
    return self.log_pi(params, catalogue, state, logits)

  def log_pi(self, params, catalogue, state, logits):
    """log pi of all items, [N + 1], by the levels' logits, [L, V].

    It is not normalised over items, and `masking.NEGATIVE` of what is not
    active.
    """
    log_pi = jax.nn.log_softmax(logits)
    log_pi = self.of_items(params, catalogue, state, log_pi)
    return jnp.where(catalogue.index.active, log_pi, masking.NEGATIVE)

  def loss(self, params, target_params, catalogue, transition, key, progress):
    settings = self.settings
    state = self.state(params, catalogue, transition.observation, key)
    hierarchy = self.expected(params, catalogue, state)
    contexts = jax.lax.stop_gradient(hierarchy.contexts)
    after = self.state(target_params, catalogue, transition.next_observation)
    after = self.expected(target_params, catalogue, after).contexts

    # Of the levels on the way to each item, [K, L]; 0 where it has no SID.
    tokens = sid_of(catalogue.index, transition.slate)
    log_probs = jax.nn.log_softmax(hierarchy.logits)
    chosen, scores = (
      masking.pick(x[None], tokens) for x in (log_probs, hierarchy.logits)
    )
    scores = scores.sum(-1) + _response_bias(params)
    drawn = transition.log_prob
    if settings.item_residual:
      lost = self.lost(params, catalogue, state, transition.slate)
      scores = scores + lost
      # The weights compare log pi, which has the residual, with what was drawn.
      drawn = drawn - jax.lax.stop_gradient(lost)
    if self._weighs_logs:
      log_pi = self.log_pi(params, catalogue, state, hierarchy.logits)
      drawn += jax.lax.stop_gradient(jax.nn.logsumexp(log_pi))
    return base.actor_critic(
      settings,
      self.spec,
      transition,
      progress,
      value=self.value(params, contexts),
      next_value=self.value(target_params, after),
      log_probs=chosen,
      drawn=drawn,
      entropy=policy_gradient.entropy(hierarchy.logits).sum(),
      # The scores are not normalised, so they need no importance weights.
      behaviour=optax.sigmoid_binary_cross_entropy(
        scores, transition.response
      ).mean(),
    )

  @property
  def _weighs_logs(self):
    """Whether log pi is to be a probability of items, as propensities are.

    What the agent shows itself needs no such constant. Where items are found by
    a search, SIDs of no item are left in the sum, and the weights are too
    small.
    """
    weighs = self.spec.train.from_logs and self.settings.importance_clip > 0
    return weighs and not self.beams


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; how it acts depends on the items in training."""
  sizes = spec.network
  searches = spec.items >= SEARCH_FROM
  hsrl = _Hsrl(
    base.encoder(sizes),
    PolicyNetwork(
      spec.levels,
      spec.vocab_size,
      sizes.width,
      settings.has("semantic_tokens"),
      settings.has("residual"),
    ),
    Critic(sizes.critic_hidden),
    settings,
    spec,
    max(settings.beams, spec.slate_size) if searches else 0,
  )
  return base.Agent(
    hsrl.init, hsrl.act, hsrl.loss, beams=hsrl.beams, scores=hsrl.scores
  )


def _response_bias(params) -> Array:
  """b of the behaviour loss, float32 []."""
  return params["policy"]["params"]["response_bias"]


def _composed(spec: base.Spec, ranks: Array, response_logits: Array) -> Array:
  """Positions of a slate for a reward with a sweet point, int32 [K]."""
  best = base.top(ranks, spec.slate_size)
  last = base.top(
    jnp.where(ranks > masking.NEGATIVE, -ranks, masking.NEGATIVE)[::-1],
    spec.slate_size,
  )
  # Turned round, so that among equals the last comes first and none is both.
  both = jnp.concatenate([best, len(ranks) - 1 - last])
  logits = response_logits[both].reshape(2, -1)
  return both[compose_slate(*logits, spec.reward)]


def compose_slate(
  best_scores: Array, worst_scores: Array, reward: Reward
) -> Array:
  """Positions of the slate that earns most in expectation, int32 [K].

  The best K items overshoot a sweet point. The candidates are the first K - n
  of the best items and the first n of the worst, n = 0..K. A score is the logit
  of a positive response.

  Args:
    best_scores: float32 [K], of the items that are wanted most, best first.
    worst_scores: float32 [K], of those that are wanted least, worst first.
    reward: of slates.

  Returns:
    Positions in the best items followed by the worst.
  """
  count = len(best_scores)
  place = jnp.arange(count)[None]
  worst_from = count - jnp.arange(count + 1)[:, None]  # K - n.
  slates = jnp.where(place < worst_from, place, 2 * count - 1 - place)
  probabilities = jax.nn.sigmoid(jnp.concatenate([best_scores, worst_scores]))
  rewards = jax.vmap(reward.expected)(probabilities[slates])
  return slates[jnp.argmax(rewards)]
