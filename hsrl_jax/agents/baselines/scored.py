"""Shared parts of agents that score each item by a vector of the user.

logits_i = <x, w_i> + b_i, where x is the state s of the encoder, or made of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

from hsrl_jax.agents import base
from hsrl_jax.networks.critic import Critic
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.types import Array, Params, PRNGKey, Transition


class ItemLogits(nn.Module):
  """logits_i = <x, w_i> + b_i, of ONE vector x; callers vmap."""

  # Each item has a row (w_i, b_i) of its own, which says nothing of an item
  # that was never trained; else the row is a linear map of the item's features,
  # as in the public benchmark.
  free: bool = False

  @nn.compact
  def __call__(self, item_features: Array, x: Array) -> tuple[Array, Array]:
    """Returns the logits, float32 [N + 1], and the bias of responses, [].

    Args:
      item_features: float32 [N + 1, D], row 0 for padding.
      x: float32 [d].
    """
    width = x.shape[-1]
    zeros = nn.initializers.zeros
    if self.free:
      shape = (item_features.shape[0], width)
      rows = self.param("row", nn.initializers.normal(width**-0.5), shape)
      bias = self.param("bias", zeros, shape[:1])
    else:
      rows = nn.Dense(width, use_bias=False, name="row")(item_features)
      bias = nn.Dense(1, use_bias=False, kernel_init=zeros, name="bias")(
        item_features
      )[:, 0]
    return rows @ x + bias, self.param("response_bias", zeros, ())


def init(key: PRNGKey, **parts: Sequence[Any]) -> Params:
  """Parameters by name: of each part, a module and what it is called with."""
  keys = jax.random.split(key, len(parts))
  return {
    name: module.init(own, *inputs)
    for own, (name, (module, *inputs)) in zip(keys, parts.items(), strict=True)
  }


def response_loss(logits: Array, bias: Array, transition: Transition) -> Array:
  """BCE of the responses to a slate, []; see ItemLogits."""
  return optax.sigmoid_binary_cross_entropy(
    logits[transition.slate] + bias, transition.response
  ).mean()


class States(NamedTuple):
  """Encoder and critic; the parameters of each are under its name."""

  encoder: Encoder
  critic: Critic

  def state(self, params, catalogue, observation, key=None) -> Array:
    """s, [d]; `key` is of the dropout."""
    return base.encoded(self.encoder, params, catalogue, observation, key)

  def value(self, params, state) -> Array:
    """V(s), []."""
    return self.critic.apply(params["critic"], state[None])[0]

  def look(
    self, params, target_params, catalogue, transition, key
  ) -> tuple[Array, Array, Array, Array]:
    """A transition; `key` is of the dropout.

    Returns:
      s and s', [d], V(s) and V'(s'), []. s' and V' are those of the target
      network.
    """
    state = self.state(params, catalogue, transition.observation, key)
    after = self.state(target_params, catalogue, transition.next_observation)
    value = self.value(params, state)
    return state, after, value, self.value(target_params, after)


def states(spec: base.Spec) -> States:
  """Encoder and critic of an agent."""
  return States(base.encoder(spec.network), Critic(spec.network.critic_hidden))
