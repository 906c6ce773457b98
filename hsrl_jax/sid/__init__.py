"""The semantic action space: quantizer, unique SIDs, index, beam search."""

from hsrl_jax.sid.beam_search import Beams, beam_search
from hsrl_jax.sid.index import SidIndex, lookup, sid_of, valid_tokens
from hsrl_jax.sid.index import build as build_index
from hsrl_jax.sid.quantizer import encode, fit, reconstruct, relative_error
from hsrl_jax.sid.resolve import check_capacity, encode_unique

__all__ = [
  "Beams",
  "SidIndex",
  "beam_search",
  "build_index",
  "check_capacity",
  "encode",
  "encode_unique",
  "fit",
  "lookup",
  "reconstruct",
  "relative_error",
  "sid_of",
  "valid_tokens",
]
