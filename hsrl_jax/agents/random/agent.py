"""Random: every item that may be shown is as likely as any other."""

import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.config import PolicyConfig


def make(config: PolicyConfig, spec: base.Spec) -> base.Agent:
  """Builds the agent, which has no parameters and learns nothing."""
  del config

  def act(params, catalogue, observation, excluded, key, temperature):
    del params, observation
    scores = jnp.zeros(len(catalogue.features))
    return base.choose(
      scores, catalogue.index, excluded, key, temperature, spec.slate_size
    )

  return base.Agent(init=lambda *_: {}, act=act, loss=None)
