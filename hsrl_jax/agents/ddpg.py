"""DDPG (Lillicrap et al., arXiv 1509.02971) on latent actions.

y = r + gamma (1 - terminated) Q'(s', pi'(s')); (Q(s, a) - y)^2; -Q(s, pi(s)).
For the rest see agents/latent.py.
"""

import functools

from hsrl_jax.agents import base, latent
from hsrl_jax.config import PolicyConfig
from hsrl_jax.networks.heads import LatentActorCritic
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition


def make(config: PolicyConfig, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  network = latent.network(config)
  return base.Agent(
    init=functools.partial(latent.init, network),
    act=functools.partial(latent.act, network, spec.slate_size),
    loss=functools.partial(_loss, network, config),
  )


def _loss(
  network: LatentActorCritic,
  config: PolicyConfig,
  params: Params,
  target_params: Params,
  catalogue: base.Catalogue,
  transition: Transition,
  key: PRNGKey,
  progress: Array,
) -> tuple[Array, Metrics]:
  """See base.Agent.loss."""
  del progress
  step = latent.look(network, params, target_params, catalogue, transition, key)
  target = latent.next_target(network, config, target_params, transition, step)
  (value,) = network.apply(
    params, step.state, transition.latent, method="values"
  )
  return latent.total(
    network,
    config,
    params,
    catalogue,
    transition,
    step,
    target,
    critic=(value - target) ** 2,
  )
