"""The worlds of SARDINE, whose users tire of topics (docs/method.md)."""

from hsrl_jax.sim.sardine.world import (
  WORLDS,
  Catalogue,
  Sardine,
  SardineState,
  World,
  make,
  pool,
  taste,
)

__all__ = [
  "WORLDS",
  "Catalogue",
  "Sardine",
  "SardineState",
  "World",
  "make",
  "pool",
  "taste",
]
