"""Stage `quantize`, and what changes a catalogue after it."""

from hsrl_jax.stages.quantize.fitting import (
  Encoded,
  Source,
  check_finite,
  encode,
  fit,
  fit_or_resume,
)
from hsrl_jax.stages.quantize.items import add_items, remove_items
from hsrl_jax.stages.quantize.stage import (
  KIND,
  load,
  of_dataset,
  run,
  source_of,
)

__all__ = [
  "KIND",
  "Encoded",
  "Source",
  "add_items",
  "check_finite",
  "encode",
  "fit",
  "fit_or_resume",
  "load",
  "of_dataset",
  "remove_items",
  "run",
  "source_of",
]
