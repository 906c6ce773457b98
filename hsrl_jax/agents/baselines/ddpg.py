"""DDPG (Lillicrap et al., arXiv 1509.02971) on latent actions.

y = r + gamma (1 - terminated) Q'(s', pi'(s')); (Q(s, a) - y)^2; -Q(s, pi(s)).
For the rest see latent.py.
"""

import jax

from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import latent
from hsrl_jax.types import Array, Metrics

Settings = base.ValueSettings  # All that it reads.


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  return latent.make(settings, spec, _loss)


def _loss(step: latent.Step) -> tuple[Array, Metrics]:
  (next_value,) = step.next_values()
  target = step.td_target(next_value)
  action = step.transition.latent
  if step.spec.train.from_logs:  # Which say what was shown alone.
    action = jax.lax.stop_gradient(step.target.of_slate(step.shown))
  (value,) = step.own.critic(step.state, action)
  return latent.total(step, target, (value - target) ** 2)
