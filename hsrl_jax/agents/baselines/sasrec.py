"""SASRec, supervised: learns from logged slates what a user responds to.

The "SL" baseline of the public benchmark: item i scores <s, w_i> + b_i for a
state s of the SASRec encoder, trained by BCE of the logged responses to the
slates that were shown. The published SASRec instead predicts the next item of a
sequence against sampled negatives; here the negatives are the shown items
without a positive response, so that the score is one of response. It knows
nothing of what comes after a slate.
"""

import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import scored

Settings = base.ItemLogitsSettings  # All that it reads.


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; of the losses' weights it takes none."""
  encoder, items = base.encoder(spec.network), scored.ItemLogits(settings.free)

  def score(params, catalogue, observation, key=None):
    state = base.encoded(encoder, params, catalogue, observation, key)
    return items.apply(params["items"], catalogue.features, state)

  def init(key, catalogue, observation):
    features, state = catalogue.features, jnp.zeros(spec.network.width)
    return scored.init(
      key,
      encoder=(encoder, features, *observation),
      items=(items, features, state),
    )

  def act(params, catalogue, observation, excluded, key, temperature):
    logits, _ = score(params, catalogue, observation)
    return base.choose(
      logits, catalogue.index, excluded, key, temperature, spec.slate_size
    )

  def loss(params, target_params, catalogue, transition, key, progress):
    del target_params, progress
    logits, bias = score(params, catalogue, transition.observation, key)
    loss = scored.response_loss(logits, bias, transition)
    return loss, {"loss": loss}

  return base.Agent(init, act, loss, offline=True, fixed_items=settings.free)
