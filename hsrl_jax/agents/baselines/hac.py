"""HAC, Hyper-Actor Critic (Liu et al., arXiv 2302.03431).

The hyper action Z is drawn from a normal distribution around the actor's mean;
the kernel <Z, e_i> turns it into the effect action, the slate. The inverse
module h goes back: Z_hat is the direction of the mean embedding of the slate.
One critic serves both, (Q(s, Z) - y)^2 and (Q(s, Z_hat) - y)^2, with
y = r + gamma (1 - terminated) Q'(s', pi'(s')). The alignment ||Z - Z_hat||^2
(here its mean over coordinates) is of the Z that was drawn and the slate that
it became. It trains the embeddings, hence h and the kernel; the drawn Z is a
constant, so that the actor is not pulled to what it did long ago. -Q(s, Z) and
the supervision by BCE are those of latent.py.
"""

import jax

from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import latent
from hsrl_jax.types import Array, Metrics

ALIGNMENT_WEIGHT = 0.1
Settings = base.ValueSettings  # All that it reads.


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  return latent.make(settings, spec, _loss)


def _loss(step: latent.Step) -> tuple[Array, Metrics]:
  (next_value,) = step.next_values()
  target = step.td_target(next_value)
  drawn, inferred = step.transition.latent, step.own.of_slate(step.shown)
  critic = sum(
    (step.own.critic(step.state, action)[0] - target) ** 2
    for action in (drawn, jax.lax.stop_gradient(inferred))
  )
  loss, metrics = latent.total(step, target, critic)
  alignment = ((drawn - inferred) ** 2).mean()
  loss = loss + ALIGNMENT_WEIGHT * alignment
  return loss, metrics | {"loss": loss, "alignment_loss": alignment}
