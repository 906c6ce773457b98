"""The functions of an agent, and parts that agents share."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.checked import Checked, setting
from hsrl_jax.config import NetworkConfig, TrainConfig
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.ops import masking, policy_gradient, returns, sampling
from hsrl_jax.sid.index import Catalogue, SidIndex
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  Params,
  PRNGKey,
  Transition,
)

# Of agents, which a comparison may leave out; see PartsSettings.
PARTS = (
  *("residual", "semantic_tokens", "item_residual", "level_critics"),
  *("item_prior", "critic_state"),
)
ADVANTAGE_CLIP = 1.0  # Bound of the advantage of a replayed or logged slate.


@dataclasses.dataclass(frozen=True)
class Settings(Checked):
  """An agent's own flags, beside TrainConfig and NetworkConfig.

  Every agent has such a dataclass. Each field is a flag, with its help in the
  docstring; agents may have fields in common, with the same default.
  """


@dataclasses.dataclass(frozen=True)
class PartsSettings(Settings):
  """Of agents of which a comparison leaves out parts.

  Attributes:
    without: parts that are left out: `residual`, without which each level sees
      the state, instead of what the last one left; `semantic_tokens`, by which
      tokens share what they learn by their codebook vectors; `item_residual`,
      by which what a SID loses of an item's features counts when items are
      ranked; `level_critics`, a value of each level instead of the state alone;
      `item_prior`, by which log pi of a token begins with the estimates of all
      items below it, instead of that of what the token means; `critic_state`,
      the simulator's state, such as patience and boredom, for the critic.
  """

  without: tuple[str, ...] = setting((), among=PARTS)
  # Those of PARTS that the agent has.
  parts: ClassVar[tuple[str, ...]] = ()

  def has(self, part: str) -> bool:
    """Whether the agent keeps a part."""
    return part in self.parts and part not in self.without


@dataclasses.dataclass(frozen=True)
class DiscountSettings(Settings):
  """Of agents that look ahead.

  Attributes:
    discount: gamma, of what the next slate earns. A user who left earns nothing
      more; a step limit is no end.
  """

  discount: float = setting(0.9, least=0, most=1)


@dataclasses.dataclass(frozen=True)
class ValueSettings(DiscountSettings):
  """Of agents with an actor and a critic.

  Attributes:
    actor_weight: of the actor's loss.
    critic_weight: of the critic's loss.
    behaviour_weight: of the behaviour loss.
  """

  actor_weight: float = setting(0.01, least=0)
  critic_weight: float = setting(1.0, least=0)
  behaviour_weight: float = setting(1.0, least=0)


@dataclasses.dataclass(frozen=True)
class PolicySettings(ValueSettings):
  """Of agents whose actor follows a policy gradient.

  Attributes:
    importance_clip: truncation of the importance weights of replayed or
      logged actions; 0 turns the weights off.
  """

  importance_clip: float = setting(0.0, least=0)


@dataclasses.dataclass(frozen=True)
class EntropySettings(Settings):
  """Of agents with a softmax over items or tokens.

  Attributes:
    entropy_weight: beta at the start; 0, with the other, for none.
    entropy_weight_end: beta at the end (geometric in between).
  """

  entropy_weight: float = setting(0.01, least=0)
  entropy_weight_end: float = setting(1e-4, least=0)

  def __post_init__(self):
    super().__post_init__()
    self.require(
      "entropy_weight_end",
      (self.entropy_weight_end > 0) == (self.entropy_weight > 0),
      "above 0, or 0 where entropy_weight is 0",
    )


@dataclasses.dataclass(frozen=True)
class ActorCriticSettings(PolicySettings, EntropySettings):
  """Of those that learn by replay, or from logs; see `actor_critic`."""


@dataclasses.dataclass(frozen=True)
class OnPolicySettings(ValueSettings, EntropySettings, PartsSettings):
  """Of agents that learn on-policy, see `engine.on_policy`.

  Attributes:
    trace: lambda of the advantages, from slate to slate.
    credit: what has an advantage of its own: a whole `slate`, each `slot` of
      it, or each `token` (docs/policy.md, Sequential slates).
  """

  trace: float = setting(0.9, least=0, most=1)
  credit: str = setting("slate", among=("slate", "slot", "token"))
  parts = ("critic_state",)


@dataclasses.dataclass(frozen=True)
class ItemLogitsSettings(Settings):
  """Of agents with one logit for each item.

  Attributes:
    item_logits: what scores an item in agents without SIDs: `features`, a
      linear map of its features, or `free`, a row of its own.
  """

  item_logits: str = setting("features", among=("features", "free"))

  @property
  def free(self) -> bool:
    """Whether each item has a row of its own."""
    return self.item_logits == "free"


class Spec(NamedTuple):
  """The problem that an agent is built for."""

  levels: int  # L of the catalogue's SIDs.
  vocab_size: int  # V.
  slate_size: int  # K.
  reward: Reward  # Of slates, and of the items in them.
  # In the catalogue in training. An agent that is exported acts as it did
  # there, whatever the served catalogue's size.
  items: int
  network: NetworkConfig  # Sizes of the networks.
  train: TrainConfig  # Of the training, for what changes in its course.
  # The policy of the next item that it goes on from, a `next_item.Start`; None:
  # it starts afresh.
  supervised: Any = None


class Ranked(NamedTuple):
  """Items among which a slate was chosen; where it is served, one is drawn."""

  items: Array  # int32 [M].
  # float32 [M], without noise: the K largest are the greedy slate, but for one
  # that was composed.
  scores: Array
  allowed: Array  # bool [M], which of them may be shown.


class Action(NamedTuple):
  """A slate, and what its agent says of it."""

  slate: Array  # int32 [K], distinct items.
  # float32 [K], log-probability of each item, up to a constant of the state:
  # log pi of a greedy slate; of a sampled one that of the distribution that was
  # drawn from, see `draw`. What the item was chosen by where there is no pi; 0
  # where nothing was.
  log_prob: Array
  latent: Array  # float32 [A], see Transition.
  # What the agent wants to know of it when it learns on-policy; any pytree of
  # arrays.
  notes: Any = None
  # What a greedy slate was chosen from; None where the agent draws place by
  # place.
  ranked: Ranked | None = None
  # float32 [K], where the agent draws place by place: the probability of each
  # item at the temperature, given those before it.
  propensity: Array | None = None


class Choices(NamedTuple):
  """The choices that made a slate: P in each of its K places."""

  log_probs: Array  # float32 [K, P], of each choice.
  values: Array  # float32 [K, P], of the state and the choices before each.
  entropy: Array  # float32 [], nats, mean over the choices.
  loss: Array  # float32 [], what is learned beside actor and critic.
  metrics: Metrics  # float32 [] each.


class OnPolicy(NamedTuple):
  """The functions that the on-policy engine calls."""

  # (params, catalogue, transition, key) -> Choices; with key None there is no
  # dropout.
  choices: Callable[..., Choices]
  # (params, catalogue, observation, hidden) -> V(s), float32 [].
  value: Callable[..., Array]
  settings: "OnPolicySettings"  # Of the objective.
  clip: float = 0.2  # How far from 1 a choice's ratio of probabilities counts.
  epochs: int = 3  # Over a segment.


class Learning(NamedTuple):
  """How an agent learns that has optimizers of its own, or needs whole batches.

  The engine then has no optimizer and averages no parameters: target networks
  are part of the parameters, and what is evaluated are the parameters.
  """

  init: Callable[[Params], Any]  # params -> state of the optimizers, a pytree.
  # (params, state, catalogue, batch, keys, axis_name) -> (params, state,
  # metrics). `batch` has leaves [U, R, ...], `keys` are [U, R]; `axis_name` is
  # of the devices that share the users, on all of which the results must be the
  # same; None for one device.
  step: Callable[..., tuple[Params, Any, Metrics]]
  warm_up: int = 0  # Transitions that are collected before the first step.


class Agent(NamedTuple):
  """An algorithm as pure functions, all of ONE user; the engine vmaps."""

  # (key, catalogue, observation) -> params; `catalogue` is a Catalogue.
  init: Callable[[PRNGKey, Catalogue, Observation], Params]
  # (params, catalogue, observation, excluded, key, exploration) -> Action. With
  # key None the slate is greedy; else it is sampled without replacement.
  # `exploration` says how far from the greedy slate: the temperature of a
  # softmax, or the standard deviation of a latent action's noise. `excluded`,
  # int32 [T], holds ids that may not be shown; 0 is ignored.
  act: Callable[..., Action]
  # (params, target_params, catalogue, transition, key, progress) -> (loss [],
  # metrics). `progress` in [0, 1] drives schedules. None where there is nothing
  # to learn, or `learning` does.
  loss: Callable[..., tuple[Array, Metrics]] | None
  offline: bool = False  # Learns from the logged slates instead of its own.
  reads_popularity: bool = False  # Needs `Catalogue.popularity`.
  # Has no greedy slate, so it gets a key in evaluation too.
  draws: bool = False
  fixed_items: bool = False  # Scores no items but those of its training.
  # Width of the beam search by which it finds items; 0: it scores each.
  beams: int = 0
  # Keys of the parameters, a dict, that are neither trained nor averaged.
  frozen: tuple[str, ...] = ()
  # How it learns on-policy; None: it does not, but by `loss`.
  on_policy: OnPolicy | None = None
  # How it learns with optimizers of its own, in place of `loss`.
  learning: Learning | None = None
  # (params, catalogue, observation) -> [N + 1], by which items rank for a user
  # of whom no more is known; None: by what `act` says of them.
  scores: Callable[[Params, Catalogue, Observation], Array] | None = None
  # Whether `act` draws each place of a slate by a softmax of its own, at
  # temperature 0 too, with propensities; else it says `ranked`.
  place_by_place: bool = False
  # (params, env, users, catalogue, key) -> params, estimates from training
  # users of the simulator, in place of training; None: `init` says all.
  fit: Callable[..., Params] | None = None
  # (params, catalogue, packed rows, key) -> (loss [] summed over their targets,
  # targets []), of agents that learn from sequences of likes.
  sequence_loss: Callable[..., tuple[Array, Array]] | None = None
  # Steps of training -> optimizer; None: see `engine.core`.
  optimizer: Callable[[int], optax.GradientTransformation] | None = None

  @property
  def learns(self) -> bool:
    """Whether there is anything to learn."""
    return bool(self.loss or self.on_policy or self.learning)


class Algorithm(NamedTuple):
  """An entry of the registry."""

  settings: type[Settings]  # The dataclass of its settings.
  make: Callable[[Any, Spec], Agent]  # (settings, spec) -> Agent.
  # By which it is trained, see TrainConfig; the first one where a comparison
  # has another.
  recipes: tuple[str, ...] = ("replay",)


def encoder(sizes: NetworkConfig) -> Encoder:
  """The encoder of histories, the same for every agent."""
  return Encoder(*sizes.encoder)


def encoded(module, params, catalogue, observation, key=None) -> Array:
  """The state by an encoder, float32 [d], whose parameters are `encoder`.

  `key` is of the dropout.
  """
  return module.apply(params["encoder"], catalogue.features, *observation, key)


def actor_critic(
  settings: ActorCriticSettings,
  spec: Spec,
  transition: Transition,
  progress: Array,
  *,
  value: Array,
  next_value: Array,
  log_probs: Array,
  drawn: Array,
  entropy: Array,
  behaviour: Array,
) -> tuple[Array, Metrics]:
  """The weighted sum of an actor-critic's losses (docs/policy.md, Losses).

  Args:
    settings: for the weights.
    spec: for the items' shares of the reward.
    transition: what is learned from.
    progress: float32 [], in [0, 1], of the entropy's schedule.
    value: float32 [], V(s).
    next_value: float32 [], the target network's V(s').
    log_probs: float32 [K, P], of each item's P choices.
    drawn: float32 [K], log-probability of each item when it was chosen.
    entropy: float32 [], nats.
    behaviour: float32 [], the behaviour loss.

  Returns:
    The loss, float32 [], and metrics.
  """
  target = returns.td_target(
    transition.reward, transition.terminated, next_value, settings.discount
  )
  advantages = returns.item_advantages(
    target,
    value[None],
    spec.reward.shares(transition.response),
    clip=ADVANTAGE_CLIP,
  )
  actor = policy_gradient.actor_loss(
    log_probs, advantages, drawn, settings.importance_clip
  )
  critic = (value - target) ** 2
  entropy_weight = policy_gradient.geometric(
    settings.entropy_weight, settings.entropy_weight_end, progress
  )
  loss = (
    settings.critic_weight * critic
    + settings.actor_weight * (actor - entropy_weight * entropy)
    + settings.behaviour_weight * behaviour
  )
  return loss, {
    "loss": loss,
    "critic_loss": critic,
    "actor_loss": actor,
    "behaviour_loss": behaviour,
    "entropy": entropy,
    "value": value,
    "advantage": target - value,
  }


def permitted(active: Array, excluded: Array) -> Array:
  """Whether each item may be shown, bool [N + 1].

  `active`, bool [N + 1], is of the catalogue's index, False for padding;
  `excluded`, int32 [T], holds ids that may not be shown, and 0 is ignored.
  """
  return active.at[excluded].set(False)


def usable(active: Array, scores: Array, excluded: Array) -> Array:
  """Scores of all items, [N + 1]; `masking.NEGATIVE` where not `permitted`."""
  return jnp.where(permitted(active, excluded), scores, masking.NEGATIVE)


def top(scores: Array, count: int) -> Array:
  """The ids of the largest scores, int32 [count]."""
  return jax.lax.top_k(scores, count)[1].astype(jnp.int32)


def draw(
  log_pi: Array,
  allowed: Array,
  noise: Array | None,
  temperature: Array | float,
  weighed: bool = True,
) -> tuple[Array, Array]:
  """Ranks items: the K that rank highest are the slate.

  With noise they are a sample without replacement from
  softmax(log pi / temperature): the Gumbel-top-K trick (arXiv 1903.06059).

  Args:
    log_pi: float32 [M], need not be normalised.
    allowed: bool [M], which items may be shown.
    noise: float32 [M], standard Gumbel; None: the largest log pi rank highest.
    temperature: of the sample.
    weighed: whether log-probabilities are wanted, a pass over all items; or 0.

  Returns:
    Ranks, float32 [M], `masking.NEGATIVE` where not allowed; and the items'
    log-probabilities, [M]. A sample's lack the constant that log pi lacks to be
    normalised, so that pi / mu is the exponential of a difference.
  """
  if noise is None:
    return jnp.where(allowed, log_pi, masking.NEGATIVE), log_pi
  scaled = log_pi / temperature
  log_prob = jnp.zeros_like(log_pi)
  if weighed:
    log_prob = scaled - masking.log_sum(scaled, allowed)
    log_prob = log_prob + masking.log_sum(log_pi, allowed)
  # NEGATIVE swallows the noise; fused with the product above it would be slow.
  return jnp.where(allowed, scaled, masking.NEGATIVE) + noise, log_prob


def choose(
  log_pi: Array,
  index: SidIndex,
  excluded: Array,
  key: PRNGKey | None,
  temperature: Array | float,
  slate_size: int,
  weighed: bool = True,
) -> Action:
  """A slate out of all items, exactly: top-K, or with a key Gumbel-top-K.

  Args:
    log_pi: float32 [N + 1], by which items are ranked.
    index: says which items may be recommended.
    excluded, key: see Agent.act.
    temperature: of the draw, which is without replacement.
    slate_size: K.
    weighed: see `draw`.
  """
  noise = None if key is None else sampling.gumbel(key, log_pi.shape)
  allowed = permitted(index.active, excluded)
  ranks, log_prob = draw(log_pi, allowed, noise, temperature, weighed)
  slate = top(ranks, slate_size)
  ranked = Ranked(jnp.arange(len(log_pi)), log_pi, allowed)
  return Action(slate, log_prob[slate], jnp.zeros(0), ranked=ranked)
