"""Shared parts of agents with latent actions: the items near are shown.

The action a is a direction among item embeddings e_i = Dense(item features):
the slate is the items of the largest <a, e_i>. Actions have a root mean square
of 1. Exploration adds normal noise of standard deviation `noise` to each
coordinate and scales back, so that the angle to the actor's own choice is about
atan(noise), whatever the width: 17 degrees at 0.3.

No gradient of Q reaches the embeddings, since a slate is no smooth function of
them. They learn from the behaviour loss, BCE of the observed responses on
<pi(s), e_i> + b, as in the behaviour-supervised variants of the public
benchmark; it also trains the actor. With `behaviour_weight` 0 the embeddings
stay a random projection of the features.

An agent of this kind is `make` with its loss of a `Step`, and may have another
ranking of the items, or another next action.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.networks.critic import Value
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.ops import masking, returns, sampling
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array, Metrics, Observation, PRNGKey, Transition

_EPSILON = 1e-6


def normalise(x: Array) -> Array:
  """Scales vectors to a root mean square of 1, [..., d] -> [..., d]."""
  square = (x * x).mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(square + _EPSILON)


def explore(action: Array, key: PRNGKey, noise: Array | float) -> Array:
  """Adds normal noise of standard deviation `noise`; see the network."""
  return normalise(action + noise * sampling.normal(key, action.shape))


class ActionCritic(nn.Module):
  """Q_c(s, a) by C critics that differ in their initialisation alone."""

  hidden: Sequence[int] = (256, 64)  # Widths of the hidden layers.
  critics: int = 1  # C.

  @nn.compact
  def __call__(self, state: Array, action: Array) -> Array:
    """Values of ONE state and action, [d], [A] -> [C]; callers vmap."""
    return nn.vmap(
      Value,
      in_axes=None,
      axis_size=self.critics,
      variable_axes={"params": 0},
      split_rngs={"params": True},
    )(self.hidden, name="value")(jnp.concatenate([state, action]))


class Network(nn.Module):
  """State s, action a, embeddings e_i and Q(s, a) of ONE user; callers vmap.

  Attributes:
    sizes: of the Encoder: width, layers, heads, dropout; the width is that of
      actions and embeddings too.
    critic_hidden: hidden widths of each critic.
    critics: C.

  Its parts are `encoder`; `actor`; `item`, features to e_i; `critic`, s and a
  to Q_c(s, a), [C]; `response_bias`, b of the behaviour loss (docs/policy.md).
  """

  sizes: tuple[int, int, int, float]
  critic_hidden: Sequence[int]
  critics: int = 1

  def setup(self):
    self.encoder = Encoder(*self.sizes)
    self.actor = nn.Dense(self.sizes[0])
    self.item = nn.Dense(self.sizes[0])
    self.critic = ActionCritic(self.critic_hidden, self.critics)
    self.response_bias = self.param("response_bias", nn.initializers.zeros, ())

  def act(self, state: Array) -> Array:
    """pi(s), [d]."""
    return normalise(self.actor(state))

  def of_slate(self, features: Array) -> Array:
    """The latent action that a slate stands for, [K, D] -> [d].

    It is the direction of the mean of the items' embeddings.
    """
    return normalise(self.item(features).mean(0))

  def __call__(self, features: Array, observation: Observation) -> Array:
    """For initialisation: touches every parameter."""
    state = self.encoder(features, *observation)
    values = self.critic(state, self.act(state))
    return values.sum() + self.item(features[:1]).sum()


class Step(NamedTuple):
  """A transition as the networks see it."""

  settings: base.ValueSettings  # Of the agent.
  spec: base.Spec  # What it was built for.
  own: Network  # The network with its parameters.
  held: Network  # The same, without a gradient of them.
  target: Network  # The target network.
  catalogue: Catalogue  # The items.
  transition: Transition  # What happened.
  progress: Array  # float32 [], of the training, in [0, 1].
  state: Array  # float32 [d], s.
  action: Array  # float32 [d], pi(s).
  next_state: Array  # float32 [d], s' by the target network.
  next_action: Array  # float32 [d], pi'(s') of the target network.

  @property
  def shown(self) -> Array:
    """Features of the slate, [K, D]."""
    return self.catalogue.features[self.transition.slate]

  def next_values(self) -> Array:
    """Q'_c(s', pi'(s')), [C]."""
    return self.target.critic(self.next_state, self.next_action)

  def td_target(self, next_value: Array) -> Array:
    """y = r + gamma (1 - terminated) of a next value, []; no gradient."""
    return returns.td_target(
      self.transition.reward,
      self.transition.terminated,
      next_value,
      self.settings.discount,
    )


# Of network, catalogue, state, action and excluded items: what is ranked.
Rank = Callable[[Network, Catalogue, Array, Array, Array], base.Ranked]


def nearest(
  own: Network,
  catalogue: Catalogue,
  state: Array,
  action: Array,
  excluded: Array,
) -> base.Ranked:
  """All items by <a, e_i>."""
  del state
  scores = own.item(catalogue.features) @ action
  allowed = base.permitted(catalogue.index.active, excluded)
  return base.Ranked(jnp.arange(len(scores)), scores, allowed)


def best(ranked: base.Ranked, count: int) -> Array:
  """Where in `ranked` the largest scores are that are allowed, [count]."""
  scores = jnp.where(ranked.allowed, ranked.scores, masking.NEGATIVE)
  return base.top(scores, count)


def make(
  settings: base.ValueSettings,
  spec: base.Spec,
  loss: Callable[[Step], tuple[Array, Metrics]],
  *,
  critics: int = 1,
  rank: Rank = nearest,
  smooth: Callable[[Array, PRNGKey], Array] | None = None,
) -> base.Agent:
  """Builds an agent with a latent action.

  Args:
    settings: of the agent.
    spec: what it is built for.
    loss: of a step; see `total`.
    critics: C.
    rank: of the items, the best of which are the slate.
    smooth: what the critics see in place of pi'(s'), drawn by a key.
  """
  sizes = spec.network
  network = Network(sizes.encoder, sizes.critic_hidden, critics)

  def init(key, catalogue, observation):
    return network.init(key, catalogue.features, observation)

  def act(params, catalogue, observation, excluded, key, noise):
    own = network.bind(params)
    state = own.encoder(catalogue.features, *observation)
    action = own.act(state)
    if key is not None:
      action = explore(action, key, noise)
    ranked = rank(own, catalogue, state, action, excluded)
    place = best(ranked, spec.slate_size)
    slate, score = ranked.items[place], ranked.scores[place]
    return base.Action(slate, score, action, ranked=ranked)

  def loss_of(params, target_params, catalogue, transition, key, progress):
    own, target = network.bind(params), network.bind(target_params)
    if smooth is not None:
      key, noise_key = sampling.split(key, 2)
    features = catalogue.features
    state = own.encoder(features, *transition.observation, key)
    next_state = target.encoder(features, *transition.next_observation)
    next_action = target.act(next_state)
    if smooth is not None:
      next_action = smooth(next_action, noise_key)
    step = Step(
      settings,
      spec,
      own,
      network.bind(jax.lax.stop_gradient(params)),
      target,
      catalogue,
      transition,
      progress,
      state,
      own.act(state),
      next_state,
      next_action,
    )
    return loss(step)

  return base.Agent(init, act, loss_of)


def total(
  step: Step, target: Array, critic: Array, actor_weight: Array | float = 1.0
) -> tuple[Array, Metrics]:
  """The critic's loss, the actor's, -Q(s, pi(s)), and the behaviour loss.

  In the actor's loss critic and state are held: the encoder learns to find
  good actions, not to make states look good.

  Args:
    step: what is learned from.
    target: float32 [], the critic's, for the metrics.
    critic: float32 [], its loss.
    actor_weight: float32 [], multiplies the actor's loss.

  Returns:
    The loss, float32 [], and metrics.
  """
  settings = step.settings
  state = jax.lax.stop_gradient(step.state)
  value = step.held.critic(state, step.action)[0]
  logits = step.own.item(step.shown) @ step.action + step.own.response_bias
  behaviour = optax.sigmoid_binary_cross_entropy(
    logits, step.transition.response
  ).mean()
  loss = (
    settings.critic_weight * critic
    - settings.actor_weight * actor_weight * value
    + settings.behaviour_weight * behaviour
  )
  return loss, {
    "loss": loss,
    "critic_loss": critic,
    "actor_loss": -value,
    "behaviour_loss": behaviour,
    "value": value,
    "target": target,
  }
