"""What agents share whose action is latent: the items near it are shown.

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
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.config import NetworkConfig
from hsrl_jax.networks.heads import LatentActorCritic, normalise
from hsrl_jax.ops import returns, sampling
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  Params,
  PRNGKey,
  Transition,
)


class Step(NamedTuple):
  """What the networks say of a transition.

  Attributes:
    state: float32 [d], s.
    action: float32 [d], pi(s).
    next_state: float32 [d], s' by the target network.
    next_action: float32 [d], pi'(s') of the target network.
  """

  state: Array
  action: Array
  next_state: Array
  next_action: Array


def network(sizes: NetworkConfig, critics: int = 1) -> LatentActorCritic:
  """Encoder, actor, item embeddings and critics."""
  return LatentActorCritic(
    sizes.width,
    sizes.layers,
    sizes.heads,
    sizes.dropout,
    sizes.critic_hidden,
    critics,
  )


def init(
  network: LatentActorCritic,
  key: PRNGKey,
  catalogue: Catalogue,
  observation: Observation,
) -> Params:
  """See base.Agent.init."""
  return network.init(key, catalogue.features, observation)


def explore(action: Array, key: PRNGKey, noise: Array | float) -> Array:
  """Adds normal noise of standard deviation `noise`; see the module."""
  return normalise(action + noise * sampling.normal(key, action.shape))


def act(
  network: LatentActorCritic,
  slate_size: int,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
  excluded: Array,
  key: PRNGKey | None,
  noise: Array | float,
) -> base.Action:
  """See base.Agent.act; the slate is the items of the largest <a, e_i>."""
  features = catalogue.features
  state = network.apply(params, features, observation, method="state")
  action = network.apply(params, state, method="act")
  if key is not None:
    action = explore(action, key, noise)
  scores = network.apply(params, features, method="embed") @ action
  chosen = base.choose(
    scores, catalogue.index, excluded, None, noise, slate_size
  )
  return chosen._replace(log_prob=jnp.zeros(slate_size), latent=action)


def of_slate(
  network: LatentActorCritic,
  params: Params,
  catalogue: Catalogue,
  slate: Array,
) -> Array:
  """The latent action that a logged slate is taken for, [d], no gradient.

  It is the direction of the mean of the items' embeddings.
  """
  embedded = network.apply(params, catalogue.features[slate], method="embed")
  return jax.lax.stop_gradient(normalise(embedded.mean(0)))


def look(
  network: LatentActorCritic,
  params: Params,
  target_params: Params,
  catalogue: Catalogue,
  transition: Transition,
  key: PRNGKey,
) -> Step:
  """The states and actions of a transition; `key` is of the dropout."""
  features = catalogue.features
  state = network.apply(
    params, features, transition.observation, key, method="state"
  )
  next_state = network.apply(
    target_params, features, transition.next_observation, method="state"
  )
  return Step(
    state,
    network.apply(params, state, method="act"),
    next_state,
    network.apply(target_params, next_state, method="act"),
  )


def next_target(
  network: LatentActorCritic,
  settings: base.ValueSettings,
  target_params: Params,
  transition: Transition,
  step: Step,
) -> Array:
  """y = r + gamma (1 - terminated) Q'(s', pi'(s')), []; of one critic."""
  (next_value,) = network.apply(
    target_params, step.next_state, step.next_action, method="values"
  )
  return returns.td_target(
    transition.reward, transition.terminated, next_value, settings.discount
  )


def total(
  network: LatentActorCritic,
  settings: base.ValueSettings,
  params: Params,
  catalogue: Catalogue,
  transition: Transition,
  step: Step,
  target: Array,
  critic: Array,
  actor_weight: Array | float = 1.0,
) -> tuple[Array, Metrics]:
  """The critic's loss, the actor's, -Q(s, pi(s)), and the behaviour loss.

  In the actor's loss critic and state are held: the encoder learns to find
  good actions, not to make states look good.

  Args:
    network: of the agent.
    settings: for the weights.
    params: of the network.
    catalogue: the items.
    transition: what happened.
    step: what `look` says of it.
    target: float32 [], the critic's, for the metrics.
    critic: float32 [], its loss.
    actor_weight: float32 [], multiplies the actor's loss.

  Returns:
    The loss, float32 [], and metrics.
  """
  held = jax.lax.stop_gradient((params, step.state))
  value = network.apply(*held, step.action, method="values")[0]
  logits = network.apply(
    params,
    catalogue.features[transition.slate],
    step.action,
    method="response_logits",
  )
  behaviour = optax.sigmoid_binary_cross_entropy(
    logits, transition.response
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
