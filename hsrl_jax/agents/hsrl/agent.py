"""HSRL: encoder, hierarchical policy and multi-level critic as an Agent."""

import functools

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl.composition import compose_slate
from hsrl_jax.agents.hsrl.slate_view import SlateView
from hsrl_jax.config import PolicyConfig
from hsrl_jax.networks import critic as critic_lib
from hsrl_jax.networks import encoder as encoder_lib
from hsrl_jax.networks import policy as policy_lib
from hsrl_jax.ops import masking, policy_gradient, returns
from hsrl_jax.sid.beam_search import beam_search
from hsrl_jax.sid.index import SidIndex, sid_of
from hsrl_jax.sid.quantizer import reconstruct
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  Params,
  PRNGKey,
  Transition,
)

SEARCH_FROM = 100_000  # Items.


def make(config: PolicyConfig, spec: base.Spec) -> base.Agent:
  """Builds the agent; `config.residual_mode` picks the residual."""
  networks = _Networks(
    encoder_lib.Encoder(
      config.width, config.layers, config.heads, config.dropout
    ),
    policy_lib.PolicyNetwork(
      spec.levels,
      spec.vocab_size,
      config.width,
      config.semantic_tokens,
      config.residual,
    ),
    critic_lib.Critic(config.critic_hidden, config.train_level_weights),
    config.level_critics,
  )
  return base.Agent(
    init=functools.partial(_init, networks),
    act=functools.partial(_act, networks, config, spec),
    loss=functools.partial(_loss, networks, config, spec.reward),
  )


class _Networks:
  """The three modules, applied by name."""

  def __init__(self, encoder, policy, critic, level_critics):
    self.encoder, self.policy, self.critic = encoder, policy, critic
    self.valued = policy.levels + 1 if level_critics else 1

  def state(self, params, catalogue, observation, key=None) -> Array:
    return self.encoder.apply(
      params["encoder"],
      catalogue.features,
      observation.profile,
      observation.history,
      key,
    )

  def expected(self, params, catalogue, state) -> policy_lib.Hierarchy:
    return self.policy.apply(
      params["policy"], catalogue.codebooks, state, method="expected"
    )

  def refine(self, params, catalogue, state, items) -> Array:
    """See PolicyNetwork.refine; of `items`, int32 [M]."""
    seen = reconstruct(catalogue.codebooks, sid_of(catalogue.index, items))
    lost = catalogue.features[items] - seen
    return self.policy.apply(params["policy"], lost, state, method="refine")

  def value(self, params, contexts) -> tuple[Array, Array]:
    return self.critic.apply(params["critic"], contexts[: self.valued])


def _init(
  networks: _Networks,
  key: PRNGKey,
  catalogue: base.Catalogue,
  observation: Observation,
) -> Params:
  keys = jax.random.split(key, 3)
  encoder = networks.encoder.init(keys[0], catalogue.features, *observation)
  state = networks.state({"encoder": encoder}, catalogue, observation)
  contexts = jnp.broadcast_to(state, (networks.valued, *state.shape))
  return {
    "encoder": encoder,
    "policy": networks.policy.init(keys[1], catalogue.codebooks, state),
    "critic": networks.critic.init(keys[2], contexts),
  }


def _act(
  networks: _Networks,
  config: PolicyConfig,
  spec: base.Spec,
  params: Params,
  catalogue: base.Catalogue,
  observation: Observation,
  excluded: Array,
  key: PRNGKey | None,
  temperature: Array | float,
) -> base.Action:
  """See base.Agent.act."""
  state = networks.state(params, catalogue, observation)
  compose = config.compose_slates and not spec.reward.is_mean
  if config.residual_mode == "sampled":
    # Each beam has a context of its own.
    policy = networks.policy.bind(params["policy"])
    tokens = policy.tokens(catalogue.codebooks)
    context = state

    def log_prob_fn(context, level):
      return jax.nn.log_softmax(tokens.logits(context, state, level))

    def advance_fn(context, token, level):
      return policy.advance(tokens, context, token, level)

  else:
    logits = networks.expected(params, catalogue, state).logits
    log_probs = jax.nn.log_softmax(logits)
    # What an item's log pi lacks to be the logit of a positive response.
    lack = (
      jax.nn.logsumexp(logits, -1).sum()
      + params["policy"]["params"]["response_bias"]
    )
    if not searches(config, catalogue.index):
      log_pi = policy_gradient.token_values(
        log_probs, catalogue.index.tokens.astype(jnp.int32)
      ).sum(-1)
      if config.item_residual:
        log_pi = log_pi + networks.refine(
          params, catalogue, state, jnp.arange(len(catalogue.features))
        )
      ranks = base.usable(
        catalogue.index.active, base.noisy(log_pi, key, temperature), excluded
      )
      slate = _slate(spec, ranks, log_pi + lack if compose else None)
      return base.Action(slate, log_pi[slate], jnp.zeros(0))
    context = ()

    def log_prob_fn(context, level):
      del context
      return log_probs[level]

    def advance_fn(context, token, level):
      del token, level
      return context

  found = beam_search(
    catalogue.index,
    context,
    log_prob_fn,
    advance_fn,
    beams=max(config.beams, spec.slate_size),
    excluded=excluded,
    temperature=temperature,
    key=key,
  )
  log_pi = found.log_probs
  ranks = -jnp.arange(len(log_pi), dtype=jnp.float32)  # As they were found.
  if config.item_residual:
    log_pi = log_pi + networks.refine(params, catalogue, state, found.items)
    # The search folds in its levels, 0..L-1.
    levels = found.tokens.shape[-1]
    ranks = base.noisy(
      log_pi,
      None if key is None else jax.random.fold_in(key, levels),
      temperature,
    )
  best = _slate(
    spec,
    jnp.where(found.valid, ranks, masking.NEGATIVE),
    log_pi + lack if compose and config.residual_mode == "expected" else None,
  )
  return base.Action(found.items[best], log_pi[best], jnp.zeros(0))


def _slate(
  spec: base.Spec, ranks: Array, response_logits: Array | None
) -> Array:
  """Positions of the items to show, int32 [K].

  Args:
    spec: of the agent.
    ranks: float32 [M]; `masking.NEGATIVE` where an item may not be shown.
    response_logits: float32 [M], for a composed slate; None for the best K.
  """
  best = base.top(ranks, spec.slate_size)
  if response_logits is None:
    return best
  last = base.top(
    jnp.where(ranks > masking.NEGATIVE, -ranks, masking.NEGATIVE)[::-1],
    spec.slate_size,
  )
  # Turned round, so that among equals the last comes first and none is both.
  both = jnp.concatenate([best, len(ranks) - 1 - last])
  logits = response_logits[both].reshape(2, -1)
  return both[compose_slate(*logits, spec.reward)]


def searches(config: PolicyConfig, index: SidIndex) -> bool:
  """Whether the agent acts by beam search, instead of scoring every item.

  In `sampled` mode it must; else from 10^5 items on, where it is faster.
  """
  return config.residual_mode == "sampled" or index.capacity >= SEARCH_FROM


def _loss(
  networks: _Networks,
  config: PolicyConfig,
  reward: Reward,
  params: Params,
  target_params: Params,
  catalogue: base.Catalogue,
  transition: Transition,
  key: PRNGKey,
  progress: Array,
) -> tuple[Array, Metrics]:
  """See base.Agent.loss."""
  # The critic's contexts are those of the expected residual in both modes,
  # since a state's value may not depend on the slate that was drawn in it.
  state = networks.state(params, catalogue, transition.observation, key)
  hierarchy = networks.expected(params, catalogue, state)
  contexts = hierarchy.contexts
  if not config.critic_gradient:
    contexts = jax.lax.stop_gradient(contexts)
  value, level_values = networks.value(params, contexts)

  next_state = networks.state(
    target_params, catalogue, transition.next_observation
  )
  next_contexts = networks.expected(
    target_params, catalogue, next_state
  ).contexts
  next_value, _ = networks.value(target_params, next_contexts)
  target = returns.td_target(
    transition.reward, transition.terminated, next_value, config.discount
  )

  tokens = sid_of(catalogue.index, transition.slate)
  if config.residual_mode == "sampled":
    taken = functools.partial(
      networks.policy.apply,
      params["policy"],
      catalogue.codebooks,
      state,
      method="taken",
    )
    logits = jax.vmap(taken)(tokens).logits
  else:
    logits = jnp.broadcast_to(
      hierarchy.logits, (len(tokens), *hierarchy.logits.shape)
    )
  view = SlateView(logits, tokens)
  advantages = returns.item_advantages(
    target,
    level_values[:-1] if config.level_advantages else value[None],
    reward.shares(transition.response) if config.item_credit else None,
    clip=config.advantage_clip,
  )
  scores = view.scores() + params["policy"]["params"]["response_bias"]
  behaviour_log_prob = transition.log_prob
  if config.item_residual:
    refined = networks.refine(params, catalogue, state, transition.slate)
    scores = scores + refined
    behaviour_log_prob = behaviour_log_prob - jax.lax.stop_gradient(refined)
  actor = policy_gradient.actor_loss(
    view.log_probs(), advantages, behaviour_log_prob, config.importance_clip
  )
  # The scores are not normalised, so they need no importance weights.
  behaviour = optax.sigmoid_binary_cross_entropy(
    scores, transition.response
  ).mean()
  return base.actor_critic(
    config,
    progress,
    critic=(value - target) ** 2,
    actor=actor,
    entropy=view.entropy(),
    behaviour=behaviour,
    value=value,
    target=target,
  )
