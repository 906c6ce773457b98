"""Popularity: the items with most positive responses in the training logs."""

from hsrl_jax.agents import base
from hsrl_jax.config import PolicyConfig


def make(config: PolicyConfig, spec: base.Spec) -> base.Agent:
  """Builds the agent, which has no parameters and learns nothing.

  It shows everybody the same ranking, with or without a key; new items, which
  nobody has responded to, come last.
  """
  del config

  def act(params, catalogue, observation, excluded, key, temperature):
    del params, observation, key
    return base.choose(
      catalogue.popularity,
      catalogue.index,
      excluded,
      None,
      temperature,
      spec.slate_size,
    )

  return base.Agent(init=lambda *_: {}, act=act, loss=None)
