"""How HSRL finds a slate: candidates with their log pi, then the best of them.

Candidates are all items, or what a beam search over SIDs finds. Either way a
sampled slate is a draw without replacement from softmax(log pi / temperature)
over the items that may be shown, where log pi has the item residual: each item
has ONE Gumbel noise, and the K largest sums are shown (arXiv 1903.06059).

Of all items that is exact. The search draws the same noise top-down, so that it
finds the beams that rank highest under its proposal, which knows neither the
item residual nor how much is left below a prefix; then the item's own noise is
added to the item's own log pi. With as many beams as items that is exact too.
With fewer, an item that the proposal ranks below all beams is never shown, and
log-probabilities are normalised over the beams.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl.composition import compose_slate
from hsrl_jax.agents.hsrl.networks import Networks, response_bias
from hsrl_jax.agents.hsrl.settings import Settings
from hsrl_jax.ops import masking, policy_gradient, sampling
from hsrl_jax.sid.beam_search import Beams, beam_search
from hsrl_jax.sid.index import Catalogue, SidIndex
from hsrl_jax.types import Array, Observation, Params, PRNGKey

SEARCH_FROM = 100_000  # Items; fewer are scored, which is faster.


class _Policy(NamedTuple):
  """The policy in one state, c_0, float32 [d]."""

  networks: Networks
  params: Params
  catalogue: Catalogue
  state: Array

  def expected(self) -> tuple[Array, Array]:
    """Log-probabilities of the tokens, [L, V], and the click offset, []."""
    logits = self.networks.expected(
      self.params, self.catalogue, self.state
    ).logits
    normalisers = jax.nn.logsumexp(logits, -1)
    offset = normalisers.sum() + response_bias(self.params)
    return jax.nn.log_softmax(logits), offset


class _Candidates(NamedTuple):
  """Items of which a slate is chosen.

  Attributes:
    items: int32 [M].
    log_pi: float32 [M], without the item residual, not normalised over items.
    allowed: bool [M], which of them may be shown.
    noise: float32 [M], standard Gumbel; None for a greedy slate.
    click_offset: float32 [], what log pi is less than the logit of a positive
      response, the same for all items of a state; None where it is unknown.
  """

  items: Array
  log_pi: Array
  allowed: Array
  noise: Array | None
  click_offset: Array | None


def searches(items: int) -> bool:
  """Whether a policy that is trained on so many items acts by beam search."""
  return items >= SEARCH_FROM


def act(
  networks: Networks,
  settings: Settings,
  spec: base.Spec,
  beams: int,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
  excluded: Array,
  key: PRNGKey | None,
  temperature: Array | float,
) -> base.Action:
  """See base.Agent.act; `beams` is 0 where all items are scored."""
  state = networks.state(params, catalogue, observation)
  policy = _Policy(networks, params, catalogue, state)
  if not beams:
    candidates = _all_items(policy, excluded, key)
  else:
    candidates = _search(
      policy, beams=beams, excluded=excluded, key=key, temperature=temperature
    )
  log_pi = candidates.log_pi
  if settings.item_residual:
    log_pi = log_pi + networks.refine(
      params, catalogue, state, candidates.items
    )
  ranks, log_prob = base.draw(
    log_pi,
    candidates.allowed,
    candidates.noise,
    temperature,
    weighed=settings.importance_clip > 0,
  )
  compose = settings.compose_slates and not spec.reward.is_mean
  if compose and candidates.click_offset is not None:
    best = _composed(spec, ranks, log_pi + candidates.click_offset)
  else:
    best = base.top(ranks, spec.slate_size)
  ranked = base.Ranked(candidates.items, log_pi, candidates.allowed)
  return base.Action(
    candidates.items[best], log_prob[best], jnp.zeros(0), ranked=ranked
  )


def scores(
  networks: Networks,
  settings: Settings,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
) -> Array:
  """See base.Agent.scores: log pi of each item, whether a search finds it."""
  state, index = networks.state(params, catalogue, observation), catalogue.index
  logits = networks.expected(params, catalogue, state).logits
  log_pi = of_sids(index, jax.nn.log_softmax(logits))
  return of_items(networks, settings, params, catalogue, state, log_pi)


def of_sids(index: SidIndex, log_probs: Array) -> Array:
  """log pi of each item's SID, [N + 1], of its tokens' log-probabilities.

  Args:
    index: of the items.
    log_probs: float32 [L, V], the same for all prefixes.
  """
  return policy_gradient.token_sum(log_probs, index.tokens)


def of_items(
  networks: Networks,
  settings: Settings,
  params: Params,
  catalogue: Catalogue,
  state: Array,
  log_pi: Array,
) -> Array:
  """log pi of each item, [N + 1]; `masking.NEGATIVE` if it is not active.

  Args:
    networks: of the agent.
    settings: whether there is an item residual.
    params: of the networks.
    catalogue: the items.
    state: float32 [d], c_0.
    log_pi: float32 [N + 1], without the item residual.
  """
  if settings.item_residual:
    items = jnp.arange(len(log_pi))
    log_pi = log_pi + networks.refine(params, catalogue, state, items)
  return jnp.where(catalogue.index.active, log_pi, masking.NEGATIVE)


def _all_items(
  policy: _Policy, excluded: Array, key: PRNGKey | None
) -> _Candidates:
  """Each item of the catalogue, scored."""
  log_probs, click_offset = policy.expected()
  index = policy.catalogue.index
  log_pi = of_sids(index, log_probs)
  return _Candidates(
    jnp.arange(len(log_pi)),
    log_pi,
    base.permitted(index.active, excluded),
    None if key is None else sampling.gumbel(key, log_pi.shape),
    click_offset,
  )


def _search(policy: _Policy, **how: Any) -> _Candidates:
  """A search where all prefixes share the logits of their level."""
  log_probs, click_offset = policy.expected()
  completed = beam_search(
    policy.catalogue.index,
    (),
    lambda context, level: log_probs[level],
    lambda context, token, level: context,
    **how,
  )
  return _of_beams(completed, how["key"], click_offset)


def _of_beams(
  beams: Beams, key: PRNGKey | None, click_offset: Array | None
) -> _Candidates:
  return _Candidates(
    beams.items,
    beams.log_probs,
    beams.valid,
    None if key is None else beams.noise,
    click_offset,
  )


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
