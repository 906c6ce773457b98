"""Codebooks and SIDs of embeddings; a fit that was killed goes on."""

import hashlib
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from hsrl_jax import checked, sid
from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data import embeddings
from hsrl_jax.engine import checkpoint
from hsrl_jax.errors import InputError
from hsrl_jax.host import watch

_ITERATIONS = 30  # Of Lloyd's algorithm, per level.
_RESTARTS = 4  # Seedings per level; the best is kept.
FITS = ".fit"  # Checkpoints of fits that are not finished.
_WORTH_SAVING = 2.0  # Seconds of work that a checkpoint must save.
_BAR_AFTER = 2.0  # Seconds before a progress bar shows.


class Source(NamedTuple):
  """The inputs of SIDs."""

  name: str  # Of the file or dataset, for people.
  digest: str = ""  # Of the content; empty for a dataset, which checks itself.


class Encoded(NamedTuple):
  """Tokens of a catalogue."""

  plain: np.ndarray  # int32 [N, L], of residual k-means alone.
  unique: np.ndarray  # int32 [N, L], the SIDs.
  seconds: dict[str, float]  # That `plain` and `unique` took.


def encode(
  codebooks: np.ndarray, rows: embeddings.Rows, config: QuantizerConfig
) -> Encoded:
  """Plain tokens and unique SIDs of all rows, with the time they took."""
  count = rows.shape[0]
  plain = np.empty((count, len(codebooks)), np.int32)
  with bar_after(2 * count, "SIDs", "item") as bar:  # Each is looked at twice.
    start = time.monotonic()
    for first, block in embeddings.blocks(rows):
      plain[first : first + len(block)] = sid.encode(codebooks, block)
      bar.update(len(block))
    between = time.monotonic()
    unique = np.asarray(sid.encode_unique(codebooks, rows))
    bar.update(count)
  end = time.monotonic()
  return Encoded(
    plain, unique, {"plain": between - start, "unique": end - between}
  )


def fit(
  config: QuantizerConfig,
  rows: embeddings.Rows,
  *,
  initial: np.ndarray | None = None,
  on_level: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:
  """Codebooks, float32 [L, V, D], as the configuration has it; see sid.fit."""
  title = f"quantize: fit {config.vocab_size}x{config.levels}"
  with watch.bar(config.levels, title, "level") as bar:

    def done(codebooks):
      bar.update(len(codebooks) - bar.n)
      if on_level is not None:
        on_level(codebooks)

    return np.asarray(
      sid.fit(
        jax.random.key(0),
        rows,
        levels=config.levels,
        vocab_size=config.vocab_size,
        iterations=_ITERATIONS,
        restarts=_RESTARTS,
        batch_size=config.batch_size,
        initial=initial,
        on_level=done,
      )
    )


def fit_or_resume(
  config: QuantizerConfig,
  workdir: pathlib.Path,
  rows: embeddings.Rows,
  source: Source,
) -> np.ndarray:
  """As `fit`, or goes on with one that was stopped; float32 [L, V, D].

  Long fits leave a checkpoint after each level, below a name of its own for
  each configuration and content.
  """
  shape = (config.levels, config.vocab_size, rows.shape[1])
  content = hashlib.sha256((source.digest or source.name).encode())
  name = f"{checked.fingerprint(config)}-{content.hexdigest()[:16]}"
  like = {
    "codebooks": np.zeros(shape, np.float32),
    "levels": np.array(0, np.int32),
  }
  with checkpoint.open_directory(workdir / FITS / name) as checkpointer:
    state = checkpoint.restore_latest(checkpointer, like)
    initial = None
    if state is not None:
      initial = np.asarray(state["codebooks"])[: int(state["levels"])]
    last = time.monotonic()

    def save(codebooks):
      nonlocal last
      if time.monotonic() - last < _WORTH_SAVING:
        return
      level = len(codebooks)
      padded = np.zeros(shape, np.float32)
      padded[:level] = codebooks
      state = {"codebooks": padded, "levels": np.array(level, np.int32)}
      checkpoint.save(checkpointer, level, state)
      last = time.monotonic()

    return fit(config, rows, initial=initial, on_level=save)


def check_size(count: int, levels: int, vocab_size: int) -> None:
  """Raises InputError where V^L is too small for `count` items."""
  try:
    sid.check_capacity(count, levels, vocab_size)
  except ValueError as error:
    raise InputError(f"--sid_vocab_size, --sid_levels: {error}") from error


def check_finite(rows: embeddings.Rows, ids: np.ndarray, where: str) -> None:
  """Raises InputError where a row, [N, D], is not finite; shows progress."""
  with bar_after(len(ids), "check", "item") as bar:
    embeddings.check_finite(rows, ids, where, bar.update)


def bar_after(total: int, title: str, unit: str):
  """Returns a watch.bar of the stage that shows only where work takes long."""
  return watch.bar(total, f"quantize: {title}", unit, delay=_BAR_AFTER)
