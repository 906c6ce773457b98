"""TD3 (Fujimoto et al., arXiv 1802.09477) on latent actions.

DDPG with twin critics, whose smaller value is the target, at a next action with
clipped noise; and with an actor's loss that counts in every second iteration
only. In the others its gradient is zero, yet Adam's moments still move the
actor a little, and so does the behaviour loss: what is delayed is the critic's
word. The target networks follow in every iteration, as for all agents. For the
rest see agents/latent.py.
"""

import functools

import jax.numpy as jnp

from hsrl_jax.agents import base, latent
from hsrl_jax.networks.heads import LatentActorCritic, normalise
from hsrl_jax.ops import returns, sampling
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition

SMOOTHING, SMOOTHING_CLIP = 0.2, 0.5  # As published; per coordinate.
DELAY = 2
Settings = base.ValueSettings  # All that it reads.


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  network = latent.network(spec.network, critics=2)
  return base.Agent(
    init=functools.partial(latent.init, network),
    act=functools.partial(latent.act, network, spec.slate_size),
    loss=functools.partial(_loss, network, settings, spec.train.iterations),
  )


def _loss(
  network: LatentActorCritic,
  settings: Settings,
  iterations: int,
  params: Params,
  target_params: Params,
  catalogue: Catalogue,
  transition: Transition,
  key: PRNGKey,
  progress: Array,
) -> tuple[Array, Metrics]:
  """See base.Agent.loss."""
  key, noise_key = sampling.split(key, 2)
  step = latent.look(network, params, target_params, catalogue, transition, key)
  noise = SMOOTHING * sampling.normal(noise_key, step.next_action.shape)
  noise = jnp.clip(noise, -SMOOTHING_CLIP, SMOOTHING_CLIP)
  next_values = network.apply(
    target_params,
    step.next_state,
    normalise(step.next_action + noise),
    method="values",
  )
  target = returns.td_target(
    transition.reward,
    transition.terminated,
    next_values.min(),
    settings.discount,
  )
  values = network.apply(params, step.state, transition.latent, method="values")
  iteration = jnp.round(progress * iterations).astype(jnp.int32)
  return latent.total(
    network,
    settings,
    params,
    catalogue,
    transition,
    step,
    target,
    critic=((values - target) ** 2).sum(),
    actor_weight=(iteration % DELAY == 0).astype(jnp.float32),
  )
