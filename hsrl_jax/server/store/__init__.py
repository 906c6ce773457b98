"""Slates and feedback, kept for good."""

from hsrl_jax.server.store.database import open_store
from hsrl_jax.server.store.engines import StoreError, Undecided
from hsrl_jax.server.store.records import (
  Feedback,
  Outcome,
  Slate,
  UnknownRequest,
)
from hsrl_jax.server.store.writer import Writer

__all__ = [
  "Feedback",
  "Outcome",
  "Slate",
  "StoreError",
  "Undecided",
  "UnknownRequest",
  "Writer",
  "open_store",
]
