"""TD3 (Fujimoto et al., arXiv 1802.09477) on latent actions.

DDPG with twin critics, whose smaller value is the target, at a next action with
clipped noise; and with an actor's loss that counts in every second iteration
only. In the others its gradient is zero, yet Adam's moments still move the
actor a little, and so does the behaviour loss: what is delayed is the critic's
word. The target networks follow in every iteration, as for all agents. For the
rest see latent.py.
"""

import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import latent
from hsrl_jax.ops import sampling
from hsrl_jax.types import Array, Metrics, PRNGKey

SMOOTHING, SMOOTHING_CLIP = 0.2, 0.5  # As published; per coordinate.
DELAY = 2
Settings = base.ValueSettings  # All that it reads.


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent."""
  return latent.make(settings, spec, _loss, critics=2, smooth=_smooth)


def _smooth(action: Array, key: PRNGKey) -> Array:
  noise = SMOOTHING * sampling.normal(key, action.shape)
  noise = jnp.clip(noise, -SMOOTHING_CLIP, SMOOTHING_CLIP)
  return latent.normalise(action + noise)


def _actor_weight(progress: Array, iterations: int) -> Array:
  iteration = jnp.round(progress * iterations).astype(jnp.int32)
  return (iteration % DELAY == 0).astype(jnp.float32)


def _loss(step: latent.Step) -> tuple[Array, Metrics]:
  target = step.td_target(step.next_values().min())
  values = step.own.critic(step.state, step.transition.latent)
  weight = _actor_weight(step.progress, step.spec.train.iterations)
  return latent.total(step, target, ((values - target) ** 2).sum(), weight)
