"""SASRec, supervised: learns from logged slates what a user responds to.

The "SL" baseline of the public benchmark: item i scores <s, w_i> + b_i for a
state s of the SASRec encoder, trained by BCE of the logged responses to the
slates that were shown. The published SASRec instead predicts the next item of a
sequence against sampled negatives; here the negatives are the shown items
without a positive response, so that the score is one of response. It knows
nothing of what comes after a slate.
"""

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.networks.heads import ItemLogits

Settings = base.ItemLogitsSettings  # All that it reads.


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; of the losses' weights it takes none."""
  encoder = base.encoder(spec.network)
  items = ItemLogits(settings.free)

  def score(params, catalogue, observation, key=None):
    features = catalogue.features
    state = encoder.apply(params["encoder"], features, *observation, key)
    return items.apply(params["items"], features, state)

  def init(key, catalogue, observation):
    keys = jax.random.split(key)
    return {
      "encoder": encoder.init(keys[0], catalogue.features, *observation),
      "items": items.init(
        keys[1], catalogue.features, jnp.zeros(spec.network.width)
      ),
    }

  def act(params, catalogue, observation, excluded, key, temperature):
    logits, _ = score(params, catalogue, observation)
    return base.choose(
      logits, catalogue.index, excluded, key, temperature, spec.slate_size
    )

  def loss(params, target_params, catalogue, transition, key, progress):
    del target_params, progress
    logits, bias = score(params, catalogue, transition.observation, key)
    loss = optax.sigmoid_binary_cross_entropy(
      logits[transition.slate] + bias, transition.response
    ).mean()
    return loss, {"loss": loss}

  return base.Agent(init, act, loss, offline=True, fixed_items=settings.free)
