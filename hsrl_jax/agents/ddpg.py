"""DDPG (Lillicrap et al., arXiv 1509.02971) on latent actions.

y = r + gamma (1 - terminated) Q'(s', pi'(s')); (Q(s, a) - y)^2; -Q(s, pi(s)).
For the rest see agents/latent.py.
"""

import functools

from hsrl_jax.agents import base, latent
from hsrl_jax.networks.heads import LatentActorCritic
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition

Settings = base.ValueSettings  # All that it reads.


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  network = latent.network(spec.network)
  return base.Agent(
    init=functools.partial(latent.init, network),
    act=functools.partial(latent.act, network, spec.slate_size),
    loss=functools.partial(_loss, network, settings, spec.train.from_logs),
  )


def _loss(
  network: LatentActorCritic,
  settings: Settings,
  from_logs: bool,
  params: Params,
  target_params: Params,
  catalogue: Catalogue,
  transition: Transition,
  key: PRNGKey,
  progress: Array,
) -> tuple[Array, Metrics]:
  """See base.Agent.loss."""
  del progress
  step = latent.look(network, params, target_params, catalogue, transition, key)
  target = latent.next_target(
    network, settings, target_params, transition, step
  )
  action = transition.latent
  if from_logs:  # Which say what was shown alone.
    action = latent.of_slate(
      network, target_params, catalogue, transition.slate
    )
  (value,) = network.apply(params, step.state, action, method="values")
  return latent.total(
    network,
    settings,
    params,
    catalogue,
    transition,
    step,
    target,
    critic=(value - target) ** 2,
  )
