"""HAC, Hyper-Actor Critic (Liu et al., arXiv 2302.03431).

The hyper action Z is drawn from a normal distribution around the actor's mean;
the kernel <Z, e_i> turns it into the effect action, the slate. The inverse
module h goes back: Z_hat is the direction of the mean embedding of the slate.
One critic serves both, (Q(s, Z) - y)^2 and (Q(s, Z_hat) - y)^2, with
y = r + gamma (1 - terminated) Q'(s', pi'(s')). The alignment ||Z - Z_hat||^2
(here its mean over coordinates) is of the Z that was drawn and the slate that
it became. It trains the embeddings, hence h and the kernel; the drawn Z is a
constant, so that the actor is not pulled to what it did long ago. -Q(s, Z) and
the supervision by BCE are those of agents/latent.py.
"""

import functools

import jax

from hsrl_jax.agents import base, latent
from hsrl_jax.networks.heads import LatentActorCritic, normalise
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition

ALIGNMENT_WEIGHT = 0.1
Settings = base.ValueSettings  # All that it reads.


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  network = latent.network(spec.network)
  return base.Agent(
    init=functools.partial(latent.init, network),
    act=functools.partial(latent.act, network, spec.slate_size),
    loss=functools.partial(_loss, network, settings),
  )


def _loss(
  network: LatentActorCritic,
  settings: Settings,
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
  embedded = network.apply(
    params, catalogue.features[transition.slate], method="embed"
  )
  inferred = normalise(embedded.mean(0))
  critic = sum(
    (network.apply(params, step.state, action, method="values")[0] - target)
    ** 2
    for action in (transition.latent, jax.lax.stop_gradient(inferred))
  )
  loss, metrics = latent.total(
    network, settings, params, catalogue, transition, step, target, critic
  )
  alignment = ((transition.latent - inferred) ** 2).mean()
  loss = loss + ALIGNMENT_WEIGHT * alignment
  return loss, metrics | {"loss": loss, "alignment_loss": alignment}
