"""The networks of HSRL: encoder, hierarchical policy, multi-level critic."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.agents.hsrl.settings import Settings
from hsrl_jax.networks.critic import Critic
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.networks.hierarchy import Hierarchy, PolicyNetwork
from hsrl_jax.sid.index import Catalogue, sid_of
from hsrl_jax.sid.quantizer import reconstruct
from hsrl_jax.types import Array, Observation, Params, PRNGKey


class Networks(NamedTuple):
  """Three flax modules; the parameters of each are under its name.

  Attributes:
    encoder: a history to c_0.
    policy: c_0 to token logits and contexts, level by level.
    critic: contexts to values.
    valued: how many of the contexts c_0 .. c_L have a value.
  """

  encoder: Encoder
  policy: PolicyNetwork
  critic: Critic
  valued: int

  def init(
    self,
    key: PRNGKey,
    catalogue: Catalogue,
    observation: Observation,
  ) -> Params:
    """See base.Agent.init."""
    keys = jax.random.split(key, 3)
    encoder = self.encoder.init(keys[0], catalogue.features, *observation)
    state = self.state({"encoder": encoder}, catalogue, observation)
    contexts = jnp.broadcast_to(state, (self.valued, *state.shape))
    return {
      "encoder": encoder,
      "policy": self.policy.init(keys[1], catalogue.codebooks, state),
      "critic": self.critic.init(keys[2], contexts),
    }

  def state(
    self,
    params: Params,
    catalogue: Catalogue,
    observation: Observation,
    key: PRNGKey | None = None,
  ) -> Array:
    """c_0, float32 [d]; `key` is of the dropout."""
    return self.encoder.apply(
      params["encoder"], catalogue.features, *observation, key
    )

  def expected(
    self, params: Params, catalogue: Catalogue, state: Array
  ) -> Hierarchy:
    """All levels with the expected residual."""
    return self.policy.apply(
      params["policy"], catalogue.codebooks, state, method="expected"
    )

  def refine(
    self,
    params: Params,
    catalogue: Catalogue,
    state: Array,
    items: Array,
  ) -> Array:
    """PolicyNetwork.refine of items, int32 [M] -> float32 [M]."""
    seen = reconstruct(catalogue.codebooks, sid_of(catalogue.index, items))
    lost = catalogue.features[items] - seen
    return self.policy.apply(params["policy"], lost, state, method="refine")

  def value(self, params: Params, contexts: Array) -> tuple[Array, Array]:
    """V(s), [], and the values of the levels, of contexts [L + 1, d]."""
    return self.critic.apply(params["critic"], contexts[: self.valued])


def make(settings: Settings, spec: base.Spec) -> Networks:
  """The networks that the settings describe."""
  return Networks(
    base.encoder(spec.network),
    PolicyNetwork(
      spec.levels,
      spec.vocab_size,
      spec.network.width,
      settings.semantic_tokens,
      settings.residual,
    ),
    Critic(spec.network.critic_hidden, settings.train_level_weights),
    valued=spec.levels + 1 if settings.level_critics else 1,
  )


def response_bias(params: Params) -> Array:
  """b of the behaviour loss, float32 []."""
  return params["policy"]["params"]["response_bias"]
