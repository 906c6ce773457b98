"""Residual k-means: vectors to tokens, coarse to fine (docs/policy.md).

r_0 = x;  z_l = argmin_v ||r_{l-1} - C_l[v]||;  r_l = r_{l-1} - C_l[z_l]

The vectors are an array, or any object with `.shape` whose slices x[a:b] are
float32 arrays, such as `hsrl_jax.data.embeddings.open_npy`. Such an object is
read piece by piece.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hsrl_jax.sid import kmeans
from hsrl_jax.types import Array, PRNGKey

_BATCH = 65_536  # Rows of a streamed array that are on the device at once.
_RUN = 256  # Neighbouring rows that are read together, at most ...
_RUNS = 64  # ... and such runs in a batch, at least.


def fit(
  key: PRNGKey,
  x: Any,
  *,
  levels: int,
  vocab_size: int,
  iterations: int = 15,
  restarts: int = 4,
  batch_size: int | None = None,
  initial: Array | None = None,
  on_level: Callable[[np.ndarray], None] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Array:
  """Fits the codebooks of `x`.

  Each level is k-means on the residual of the levels before it: k-means++
  seeding, then over-relaxed Lloyd iterations, first on a random sample that
  grows (1/8, 1/4, 1/2 of the rows, but at least 64 a code and 16,384), then
  on all rows; empty codes move to badly fitted rows. The result does not
  depend on the number of devices.

  >>> x = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
  >>> codebooks = fit(jax.random.key(0), x, levels=2, vocab_size=16)
  >>> codebooks.shape
  (2, 16, 3)
  >>> vectors = reconstruct(codebooks, encode(codebooks, x))
  >>> bool(relative_error(x, vectors) < 0.05)
  True

  Memory beside `x`: up to three copies of an array. Otherwise one batch of
  rows is held at a time (65,536 or batch_size), in up to four copies, and 16
  bytes for each run of rows that are read together (256 at most).

  Args:
    key: of the seeding and of the order of the rows. It is consumed.
    x: float32 [N, D], finite, or rows to stream (see above).
    levels: L.
    vocab_size: V.
    iterations: Lloyd iterations per level.
    restarts: seedings per level; the one with the least error is kept, judged
      after a third of the iterations, or at the end of up to 16,384 rows.
    batch_size: rows of one iteration, other rows each time, until all had
      their turn; codes are then running means in which later batches weigh
      more. None for all rows.
    initial: float32 [l, V, D], codebooks of the first l levels, fitted
      already.
    on_level: called with all codebooks so far, float32 [l, V, D], after each.
    devices: of the rows, all local ones by default; as many are used as
      divide the 8 lanes.

  Returns:
    Codebooks, float32 [L, V, D].

  Raises:
    ValueError: an argument is out of range or of another shape.
  """
  x = np.asarray(x) if isinstance(x, jax.Array) else x
  _check(x, levels, vocab_size, iterations, restarts, batch_size)
  codebooks = _initial(initial, levels, vocab_size, x.shape[1])
  mesh = kmeans.lane_mesh(devices)
  order = jax.random.fold_in(key, 0)
  residuals = _Residuals(order, x, codebooks, vocab_size, batch_size, mesh)
  for level in range(len(codebooks), levels):
    turn = level * iterations
    codes = kmeans.fit_level(
      jax.random.fold_in(key, level + 1),
      lambda i, wanted, turn=turn: residuals.blocks(turn + i, wanted),
      x.shape[0],
      vocab_size,
      iterations=iterations,
      restarts=restarts,
      running=batch_size is not None,
      mesh=mesh,
    )
    residuals.subtract(codes)
    codebooks.append(codes)
    if on_level is not None:
      on_level(np.stack(codebooks))
  return jnp.asarray(np.stack(codebooks))


class _Residuals:
  """Rows minus their codes of the levels fitted so far, as blocks on devices.

  An array that is fitted as a whole stays on the devices as one block.
  Otherwise each block is read anew, and all codes are subtracted from it.
  """

  def __init__(
    self,
    key: PRNGKey,
    x: Any,
    codebooks: Sequence[np.ndarray],
    vocab_size: int,
    batch_size: int | None,
    mesh: Mesh,
  ):
    """Cuts the rows into batches.

    Args:
      key: of the order of the rows. It is consumed.
      x: see `fit`.
      codebooks: of the levels fitted already, each [V, D].
      vocab_size: V.
      batch_size: see `fit`.
      mesh: of the devices.
    """
    in_memory = isinstance(x, np.ndarray)
    count = x.shape[0]
    resident = in_memory and batch_size is None
    self._x, self._vocab_size, self._mesh = x, vocab_size, mesh
    self._mini_batches = batch_size is not None
    self._size = count if resident else min(count, batch_size or _BATCH)
    self._batches = _batches(key, count, self._size, in_memory)
    self._codebooks = list(codebooks)
    self._block = self._read(0)[0] if resident else None

  def blocks(self, turn: int, wanted: int) -> Iterator[tuple[Array, int]]:
    """Yields the blocks of one iteration, each with the number of its rows.

    Args:
      turn: number of the iteration, all levels counted; it chooses the
        mini-batch.
      wanted: rows of the iteration where there are no mini-batches.
    """
    if self._block is not None:
      yield self._block, wanted
    elif self._mini_batches:
      yield self._read(turn % len(self._batches))
    else:
      for batch in range(min(-(-wanted // self._size), len(self._batches))):
        yield self._read(batch)

  def subtract(self, codes: np.ndarray) -> None:
    """Adds a fitted level, [V, D]."""
    self._codebooks.append(codes)
    if self._block is not None:
      self._block = kmeans.subtract(codes, self._block, mesh=self._mesh)

  def _read(self, batch: int) -> tuple[Array, int]:
    rows = _read(self._x, self._batches[batch])
    block = kmeans.place(rows, self._size, self._vocab_size, self._mesh)
    for codes in self._codebooks:
      block = kmeans.subtract(codes, block, mesh=self._mesh)
    return block, len(rows)


def encode(codebooks: Array, x: Any) -> Array:
  """Encodes rows as tokens; several rows may share their tokens.

  A jax array may be traced. Other rows go through the device 65,536 at a
  time, so that memory is needed for the tokens and three such batches alone;
  the result is then a numpy array.

  Args:
    codebooks: float32 [L, V, D].
    x: float32 [N, D], or rows to stream (see the top of this file).

  Returns:
    int32 [N, L].
  """
  if isinstance(x, jax.Array):
    return _encode(codebooks, x)
  count, width = x.shape
  tokens = np.zeros((count, len(codebooks)), np.int32)
  for start in range(0, count, _BATCH):
    rows = x[start : start + _BATCH]
    # Few shapes, so that few programs are compiled.
    padded = np.zeros((_power_of_two(len(rows)), width), np.float32)
    padded[: len(rows)] = rows
    tokens[start : start + len(rows)] = _encode(codebooks, padded)[: len(rows)]
  return tokens


@jax.jit
def reconstruct(codebooks: Array, tokens: Array) -> Array:
  """Adds the codes of `tokens`, int32 [..., L] -> float32 [..., D].

  The token -1, which `sid_of` gives where there is no SID, adds nothing.
  """
  levels = jnp.arange(codebooks.shape[0])
  vectors = codebooks[levels, tokens]
  return jnp.where((tokens < 0)[..., None], 0.0, vectors).sum(-2)


def relative_error(x: Array, reconstruction: Array) -> Array:
  """||x - reconstruction||^2 / ||x - mean(x)||^2, both [N, D] -> []."""
  return jnp.sum((x - reconstruction) ** 2) / jnp.sum(
    (x - x.mean(0, keepdims=True)) ** 2
  )


@jax.jit
def _encode(codebooks: Array, x: Array) -> Array:
  """Tokens of rows on the device, [N, D] -> int32 [N, L], by chunks."""
  rows, width = x.shape
  chunk = kmeans.chunk_size(codebooks.shape[1], jax.default_backend())
  size = min(chunk, max(rows, 1))
  chunks = -(-rows // size)
  padded = jnp.pad(x, ((0, chunks * size - rows), (0, 0)))

  def encode_chunk(residual):
    tokens = []
    for codes in codebooks:
      nearest, _ = kmeans.nearest(residual, codes)
      residual = residual - codes[nearest]
      tokens.append(nearest)
    return jnp.stack(tokens, -1)

  tokens = jax.lax.map(encode_chunk, padded.reshape(chunks, size, width))
  return tokens.reshape(chunks * size, -1)[:rows]


def _batches(
  key: PRNGKey, rows: int, size: int, in_memory: bool
) -> list[np.ndarray]:
  """Cuts rows into random batches; int64 [n, 2] each: runs from, to.

  Every row is in one batch. Rows of a file are read in runs of neighbours.
  """
  run = 1 if in_memory else int(np.clip(size // _RUNS, 1, _RUN))
  rng = np.random.default_rng(int(jax.random.bits(key)))
  starts = run * rng.permutation(-(-rows // run))
  runs = np.stack([starts, np.minimum(starts + run, rows)], 1)
  step = size // run
  return [runs[i : i + step] for i in range(0, len(runs), step)]


def _read(x: Any, runs: np.ndarray) -> np.ndarray:
  """Reads the rows of a batch, float32 [n, D], in a random order."""
  if isinstance(x, np.ndarray):
    return np.asarray(x[runs[:, 0]], np.float32)
  rows = np.concatenate([x[start:stop] for start, stop in runs.tolist()])
  # Neighbours in a file may be alike, yet the first rows must be a sample.
  return rows[np.random.default_rng(int(runs[0, 0])).permutation(len(rows))]


def _power_of_two(number: int) -> int:
  return 1 << max(number - 1, 0).bit_length()


def _check(
  x: Any,
  levels: int,
  vocab_size: int,
  iterations: int,
  restarts: int,
  batch_size: int | None,
) -> None:
  """Raises ValueError for arguments of `fit` that are out of range."""
  if len(x.shape) != 2 or not all(x.shape):
    raise ValueError(
      f"x has shape {tuple(x.shape)}; expected [N, D] with rows and columns"
    )
  for name, value, least in (
    ("levels", levels, 1),
    ("vocab_size", vocab_size, 2),
    ("iterations", iterations, 1),
    ("restarts", restarts, 1),
    ("batch_size", 1 if batch_size is None else batch_size, 1),
  ):
    if value < least:
      raise ValueError(f"{name} is {value}; expected at least {least}")


def _initial(
  initial: Array | None, levels: int, vocab_size: int, width: int
) -> list[np.ndarray]:
  """Codebooks fitted already, by level; ValueError for another shape."""
  if initial is None:
    return []
  shape = np.shape(initial)
  if shape[1:] != (vocab_size, width) or shape[0] > levels:
    raise ValueError(
      f"initial has shape {shape}; expected at most {levels} levels of "
      f"({vocab_size}, {width})"
    )
  return list(np.asarray(initial, np.float32))
