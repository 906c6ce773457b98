"""Agents without parameters, which learn nothing: random, and popularity."""

import jax.numpy as jnp

from hsrl_jax.agents import base

Settings = base.Settings  # They read none.


def make_random(settings: Settings, spec: base.Spec) -> base.Agent:
  """Every item that may be shown is as likely as any other."""
  del settings

  def act(params, catalogue, observation, excluded, key, temperature):
    del params, observation
    scores = jnp.zeros(len(catalogue.features))
    return base.choose(
      scores, catalogue.index, excluded, key, temperature, spec.slate_size
    )

  return base.Agent(init=lambda *_: {}, act=act, loss=None, draws=True)


def make_popularity(settings: Settings, spec: base.Spec) -> base.Agent:
  """The items with most positive responses in the training logs.

  It shows everybody the same ranking, with or without a key; new items, which
  nobody has responded to, come last. Where a slate is drawn from that ranking,
  at temperature 1 items come in proportion to their responses plus 1.
  """
  del settings

  def act(params, catalogue, observation, excluded, key, temperature):
    del params, observation, key
    action = base.choose(
      catalogue.popularity,
      catalogue.index,
      excluded,
      None,
      temperature,
      spec.slate_size,
    )
    ranked = action.ranked._replace(scores=jnp.log1p(catalogue.popularity))
    return action._replace(ranked=ranked)

  return base.Agent(
    init=lambda *_: {}, act=act, loss=None, offline=True, reads_popularity=True
  )
