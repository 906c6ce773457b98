"""Models of the next item: SASRec, and HSRL's policy on the same encoder."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from hsrl_jax.data.sequences import Packed
from hsrl_jax.networks.sequence import ItemRows, SequenceEncoder
from hsrl_jax.networks.token_decoder import TokenDecoder
from hsrl_jax.ops import sampling, softmax
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid.beam_search import Beams
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Settings of a model of the next item."""

  length: int = 20  # T, items of a history that are looked at.
  width: int = 64  # d of all layers.
  layers: int = 2  # Transformer layers.
  heads: int = 2  # Attention heads; divides `width`.
  dropout: float = 0.5  # Rate of the encoder's dropout.
  # Whether items have tokens: embeddings in their vectors, and a decoder whose
  # cross-entropy stands beside that over all items, which SASRec has alone.
  # Then the sum of both log-probabilities ranks items (the item residual).
  tokens: bool = False
  id_inputs: bool = True  # Whether it has an embedding of its id.
  feature_inputs: bool = True  # Whether it has a linear map of its features.
  hidden: int = 256  # Width of the blocks of the token decoder.
  token_dropout: float = 0.2  # Rate of the token decoder's dropout.
  constrained: bool = True  # See TokenDecoder.


class Model:
  """Pure functions of the parameters for one catalogue's sizes.

  Attributes:
    config: the settings.
    num_items: N.
  """

  def __init__(
    self, config: ModelConfig, num_items: int, levels: int, vocab_size: int
  ):
    """Builds the networks for N items with SIDs of L tokens, V of each."""
    self.config = config
    self.num_items = num_items
    self._rows = ItemRows(
      config.width,
      num_items,
      levels if config.tokens else 0,
      vocab_size,
      config.id_inputs,
    )
    self._encoder = SequenceEncoder(
      config.width, config.layers, config.heads, config.dropout
    )
    self._decoder = TokenDecoder(
      levels,
      vocab_size,
      config.width,
      config.hidden,
      config.token_dropout,
      config.constrained,
    )

  def init(self, key: PRNGKey, catalogue: Catalogue) -> Params:
    """Initial parameters: rows, encoder and, where there is one, decoder."""
    keys = jax.random.split(key, 3)
    config = self.config
    zeros = jnp.zeros(config.length, jnp.int32)
    row = jnp.zeros((config.length, config.width))
    params = {
      "rows": self._rows.init(keys[0], zeros, *self._inputs(catalogue)),
      "encoder": self._encoder.init(keys[1], row, zeros, zeros),
    }
    if config.tokens:
      params["decoder"] = self._decoder.init(keys[2], catalogue.index, row[0])
    return params

  def rows(self, params: Params, catalogue: Catalogue) -> Array:
    """Vectors of all items, float32 [N + 1, d]; a policy's item features."""
    return self._vectors(params, catalogue, jnp.arange(self.num_items + 1))

  def loss(
    self, params: Params, catalogue: Catalogue, batch: Packed, key: PRNGKey
  ) -> tuple[Array, Array]:
    """Sum over the targets of a batch of rows, and how many targets there are.

    The key is consumed.
    """
    config = self.config
    encoder_key, decoder_key = jax.random.split(key)
    states = jax.vmap(
      lambda *row: self._encoder.apply(params["encoder"], *row)
    )(
      self._vectors(params, catalogue, batch.item),
      batch.position,
      batch.segment,
      sampling.split(encoder_key, len(batch.item)),
    ).reshape(-1, config.width)
    target = batch.target.reshape(-1)
    rows = self.rows(params, catalogue)
    total = softmax.catalogue_loss(states, rows, target)
    if config.tokens:
      index = catalogue.index
      sid = jnp.maximum(sid_index.sid_of(index, target), 0)
      log_probs = self._decoder.apply(
        params["decoder"], index, states, sid, decoder_key, method="taken"
      )
      own = jnp.take_along_axis(log_probs, sid[..., None], -1)[..., 0]
      total -= jnp.where(target > 0, own.sum(-1), 0.0).sum()
    return total, (target > 0).sum()

  def states(
    self, params: Params, catalogue: Catalogue, history: Array
  ) -> Array:
    """The state after each history, int32 [E, any] -> float32 [E, d].

    Histories are left-padded; their last `length` items are looked at.
    """
    length = self.config.length
    history = history[:, -length:]
    missing = length - history.shape[1]
    history = jnp.pad(history, ((0, 0), (missing, 0)))
    vectors = self._vectors(params, catalogue, history)
    place = jnp.arange(length)
    states = jax.vmap(
      lambda row, seen: self._encoder.apply(
        params["encoder"], row, place, seen.astype(jnp.int32)
      )
    )(vectors, history > 0)
    return states[:, -1]

  def score(
    self, params: Params, catalogue: Catalogue, state: Array, items: Array
  ) -> Array:
    """Scores of some items in ONE state, [d] and int32 [M] -> float32 [M].

    Log-probabilities of the items' tokens, with those of the items themselves
    up to a constant; where there are no tokens, the latter alone.
    """
    total = self.item_score(params, catalogue, state, items)
    if self.config.tokens:
      sid = jnp.maximum(sid_index.sid_of(catalogue.index, items), 0)
      log_probs = self.taken(params, catalogue, state, sid)
      own = jnp.take_along_axis(log_probs, sid[..., None], -1)[..., 0]
      total += own.sum(-1)
    return total

  def item_score(
    self, params: Params, catalogue: Catalogue, state: Array, items: Array
  ) -> Array:
    """The part of `score` that is no token's, float32 [M]."""
    return self._vectors(params, catalogue, items) @ state

  def taken(
    self, params: Params, catalogue: Catalogue, state: Array, sid: Array
  ) -> Array:
    """TokenDecoder.taken of ONE state [d] along SIDs [M, L]: [M, L, V]."""
    states = jnp.broadcast_to(state, (len(sid), len(state)))
    return self._decoder.apply(
      params["decoder"], catalogue.index, states, sid, method="taken"
    )

  def search(
    self,
    params: Params,
    catalogue: Catalogue,
    state: Array,
    beams: int,
    **how: Any,
  ) -> Beams:
    """Constrained beam search in ONE state [d].

    Log-probabilities are those of the tokens. `how`: keywords of `beam_search`.
    """
    return self._decoder.apply(
      params["decoder"], catalogue.index, state, beams, method="search", **how
    )

  def _vectors(self, params, catalogue, item):
    return self._rows.apply(params["rows"], item, *self._inputs(catalogue))

  def _inputs(self, catalogue):
    features = catalogue.features if self.config.feature_inputs else None
    tokens = catalogue.index.tokens if self.config.tokens else None
    return tokens, features
