"""The semantic action space: quantizer, unique SIDs, index, beam search."""

from hsrl_jax.sid.beam_search import Beams, beam_search
from hsrl_jax.sid.index import Catalogue, SidIndex, lookup, sid_of, valid_tokens
from hsrl_jax.sid.quantizer import encode, fit, reconstruct, relative_error
from hsrl_jax.sid.resolve import check_capacity, encode_unique
from hsrl_jax.sid.store import load_index, save_index
from hsrl_jax.sid.trie import (
  add_items,
  build_index,
  from_arrays,
  remove_items,
  to_arrays,
)

__all__ = [
  "Beams",
  "Catalogue",
  "SidIndex",
  "add_items",
  "beam_search",
  "build_index",
  "check_capacity",
  "encode",
  "encode_unique",
  "fit",
  "from_arrays",
  "load_index",
  "lookup",
  "reconstruct",
  "relative_error",
  "remove_items",
  "save_index",
  "sid_of",
  "to_arrays",
  "valid_tokens",
]
