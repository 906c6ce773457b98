"""k-means of one level, on the devices.

Rows are cut into chunks, and the chunks are dealt to 8 lanes, whatever the
number of devices. A lane sums its chunks in order on one device, and the lanes
are added in order; so the codes are the same, bit for bit, on 1, 2, 4 and 8
devices.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hsrl_jax.types import Array, PRNGKey

_LANES = 8
_SPARES = 16  # Badly fitted rows that a lane keeps for empty codes.
_SEEDS = 8  # Rows a code from which k-means++ draws the seeds.
_START = 64  # Rows a code of the first iterations, at least ...
_FEW = 16_384  # ... and rows in all.
# A seed is a single vector. In many dimensions a single vector lies much
# farther from the mean of all than the mean of a cluster does; so the seeds of
# every second restart are pulled halfway to the mean.
_SHRINK = (0.5, 1.0)
_RELAX = 1.6  # A code moves by this multiple of the way to its mean.
# TPUs and GPUs would round the factors of a product to 8 or 11 bits, and choose
# other codes than a CPU.
_EXACT = jax.lax.Precision.HIGHEST
_WIDE = 8_192  # Rows of a chunk on accelerators.
_GROWTH = (1 / 3, 8 / 15, 11 / 15)  # Parts of the iterations.


class Sums(NamedTuple):
  """Statistics of one pass over rows."""

  sums: Array  # float32 [V, D], sums of the rows nearest to each code.
  sizes: Array  # float32 [V], numbers of these rows.
  error: Array  # float32 [], sum of squared distances.
  spare_distances: Array  # float32 [S], of some badly fitted rows.
  spares: Array  # float32 [S, D], the badly fitted rows.


class Codes(NamedTuple):
  """Codes of one level while they are fitted."""

  codes: Array  # float32 [V, D].
  # float32 [V], rows in the running mean of each code (mini-batches).
  seen: Array


def fit_level(
  key: PRNGKey,
  blocks: Callable[[int, int], Iterator[tuple[Array, int]]],
  rows: int,
  vocab_size: int,
  *,
  iterations: int,
  restarts: int,
  running: bool,
  mesh: Mesh,
) -> np.ndarray:
  """Fits the codes of one level.

  Args:
    key: of the seeding. It is consumed.
    blocks: (iteration, wanted rows) -> blocks to read, each with the number of
      its rows.
    rows: N.
    vocab_size: V.
    iterations: see `quantizer.fit`.
    restarts: see `quantizer.fit`.
    running: whether codes are running means of mini-batches.
    mesh: of the devices.

  Returns:
    float32 [V, D].
  """
  first = min(rows, max(_START * vocab_size, _FEW))

  def iterate(state: Codes, iteration: int) -> tuple[Codes, Array]:
    done = iteration / iterations
    part = (8, 4, 2, 1)[sum(done >= bound for bound in _GROWTH)]
    count = max(rows // part, first)
    # Through the host: on a CPU, two programs with collectives that run at
    # the same time may wait for each other for ever.
    codes = jax.device_get(state.codes)
    sums = None
    for block, block_rows in blocks(iteration, count):
      lanes = _sum_rows(codes, block, block_rows, mesh=mesh)
      sums = _add(jax.device_get(lanes), sums)
    # The last two iterations move the codes to the means exactly.
    relax = 1.0 if running or iteration >= iterations - 2 else _RELAX
    # These weights let later batches count more, in proportion to their turn.
    keep = iteration / (iteration + 2) if running else 0.0
    return _step(state, sums, relax, keep), sums.error

  # Few rows: each restart runs to its end, since all iterations are cheap.
  trial = iterations if first == rows else -(-iterations // 3)
  sample = _sample(*next(blocks(0, rows)), _SEEDS * vocab_size)
  tries = []
  for restart in range(restarts):
    shrink = _SHRINK[restart % len(_SHRINK)]
    codes = _seed(jax.random.fold_in(key, restart), sample, vocab_size, shrink)
    state = Codes(codes, jnp.zeros(vocab_size))
    for iteration in range(trial):
      state, error = iterate(state, iteration)
    tries.append((float(error), restart, state))
  state = min(tries, key=lambda t: t[:2])[2]
  for iteration in range(trial, iterations):
    state, _ = iterate(state, iteration)
  return np.asarray(state.codes)


def nearest(x: Array, codes: Array) -> tuple[Array, Array]:
  """Finds the code of least squared distance.

  Args:
    x: float32 [C, D].
    codes: float32 [V, D].

  Returns:
    int32 [C], the code (the first of equals), and float32 [C], the distance.
  """
  offset = 0.5 * (codes**2).sum(1)
  # Largest where the distance is least.
  score = jnp.matmul(codes, x.T, precision=_EXACT) - offset[:, None]
  best = score.max(0)
  first = jax.lax.platform_dependent(
    score, best, cpu=_first, default=lambda x, _: x.argmax(0).astype(jnp.int32)
  )
  return first, jnp.maximum((x**2).sum(1) - 2.0 * best, 0.0)


def _first(score: Array, best: Array) -> Array:
  """argmax(0), three times as fast on a CPU; `best` is the maximum."""
  token = jnp.arange(len(score), dtype=jnp.int32)[:, None]
  return jnp.where(score == best[None], token, len(score) - 1).min(0)


@functools.partial(jax.jit, static_argnames="mesh")
def _sum_rows(codes: Array, block: Array, rows: Array, *, mesh: Mesh) -> Sums:
  """Sums the first `rows` rows of a block, lane by lane: fields [8, ...].

  Args:
    codes: float32 [V, D].
    block: float32 [chunks, 8, C, D], cut by its lanes over the devices.
    rows: int32 [].
    mesh: of the devices.
  """

  on_cpu = _platform(mesh) == "cpu"
  add = _add_rows if on_cpu else _add_rows_by_product

  def on_device(codes, block, rows):
    _, lanes, size, width = block.shape
    if not on_cpu:  # As they lie there: a row has fewer numbers than a tile.
      block = block.swapaxes(2, 3)
    first_lane = jax.lax.axis_index("lanes") * lanes
    zeros = Sums(
      jnp.zeros_like(codes),
      jnp.zeros(len(codes)),
      jnp.zeros(()),
      jnp.full(_SPARES, -1.0),
      jnp.zeros((_SPARES, width)),
    )

    def of_lane(lane):
      def add_chunk(chunk, sums):
        x = block[chunk, lane] if on_cpu else block[chunk, lane].T
        row = (chunk * _LANES + first_lane + lane) * size + jnp.arange(size)
        there = row < rows
        code, distance = nearest(x, codes)
        code = jnp.where(there, code, len(codes))  # Padding: no code.
        distance = jnp.where(there, distance, -1.0)
        worst = jnp.argmax(distance)
        slot = chunk % _SPARES
        worse = distance[worst] > sums.spare_distances[slot]
        total, sizes, row = add(sums.sums, sums.sizes, code, x, worst)
        return Sums(
          total,
          sizes,
          sums.error + jnp.maximum(distance, 0.0).sum(),
          sums.spare_distances.at[slot].max(distance[worst]),
          sums.spares.at[slot].set(jnp.where(worse, row, sums.spares[slot])),
        )

      chunks = (rows + _LANES * size - 1) // (_LANES * size)
      return jax.lax.fori_loop(0, chunks, add_chunk, zeros)

    return jax.lax.map(of_lane, jnp.arange(lanes))

  replicated, by_lane = PartitionSpec(), PartitionSpec(None, "lanes")
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(replicated, by_lane, replicated),
    out_specs=PartitionSpec("lanes"),
    check_vma=False,  # The loops start from zeros that no device owns.
  )(codes, block, rows)


def _platform(mesh: Mesh) -> str:
  return mesh.devices.flat[0].platform


def _add_rows(
  sums: Array, sizes: Array, code: Array, x: Array, worst: Array
) -> tuple[Array, Array, Array]:
  """Adds rows [C, D] to the sums [V, D] and sizes [V] of their codes.

  The code V is none. The third result is the row `worst`.
  """
  return (
    sums.at[code].add(x, mode="drop"),
    sizes.at[code].add(1.0, mode="drop"),
    x[worst],
  )


def _add_rows_by_product(
  sums: Array, sizes: Array, code: Array, x: Array, worst: Array
) -> tuple[Array, Array, Array]:
  """`_add_rows` for accelerators, which would add row by row."""
  count = len(sums)
  token = jnp.arange(count + 1)[:, None]
  is_worst = (token == count) & (jnp.arange(len(x)) == worst)[None]
  own = ((token == code[None]) & (token < count)) | is_worst
  counted = jnp.concatenate([x, jnp.ones((len(x), 1))], 1)
  added = jnp.matmul(own.astype(jnp.float32), counted, precision=_EXACT)
  sums, sizes = sums + added[:count, :-1], sizes + added[:count, -1]
  return sums, sizes, added[count, :-1]


@jax.jit
def _add(lanes: Sums, before: Sums | None) -> Sums:
  """Adds the lanes of a block in order, and the blocks `before` it."""
  total = functools.reduce(
    lambda a, b: jax.tree.map(jnp.add, a, b),
    [jax.tree.map(lambda v, l=l: v[l], lanes[:3]) for l in range(_LANES)],
  )
  spare_distances = lanes.spare_distances.reshape(-1)
  spares = lanes.spares.reshape(len(spare_distances), -1)
  if before is None:
    return Sums(*total, spare_distances, spares)
  worse = spare_distances > before.spare_distances
  return Sums(
    *jax.tree.map(jnp.add, before[:3], total),
    jnp.where(worse, spare_distances, before.spare_distances),
    jnp.where(worse[:, None], spares, before.spares),
  )


@jax.jit
def _step(state: Codes, sums: Sums, relax: float, keep: float) -> Codes:
  """Moves each code towards the mean of the rows nearest to it.

  Args:
    state: codes before the step.
    sums: statistics of a pass with these codes.
    relax: part of the way to the mean; above 1, beyond the mean.
    keep: weight of the rows seen before.
  """
  seen = keep * state.seen + sums.sizes
  pace = relax * sums.sizes / jnp.maximum(seen, 1.0)
  means = sums.sums / jnp.maximum(sums.sizes, 1.0)[:, None]
  codes = state.codes + pace[:, None] * (means - state.codes)
  # The j-th empty code takes the j-th worst of the spare rows.
  empty = seen < 0.5
  order = jnp.argsort(-sums.spare_distances)
  rank = jnp.cumsum(empty) - 1
  spare = order[jnp.clip(rank, 0, len(order) - 1)]
  empty &= (rank < len(order)) & (sums.spare_distances[spare] >= 0)
  codes = jnp.where(empty[:, None], sums.spares[spare], codes)
  return Codes(codes, seen)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="block")
def subtract(codes: Array, block: Array, *, mesh: Mesh) -> Array:
  """Residual of a block: each row minus its nearest code, [chunks, 8, C, D]."""

  def on_device(codes, block):
    def of_chunk(x):
      return x - codes[nearest(x, codes)[0]]

    flat = block.reshape(-1, *block.shape[2:])
    return jax.lax.map(of_chunk, flat).reshape(block.shape)

  by_lane = PartitionSpec(None, "lanes")
  return jax.shard_map(
    on_device, mesh=mesh, in_specs=(PartitionSpec(), by_lane), out_specs=by_lane
  )(codes, block)


@functools.partial(jax.jit, static_argnames="count")
def _seed(key: PRNGKey, x: Array, count: int, shrink: float) -> Array:
  """k-means++: draws each seed by the squared distance to the seeds before it.

  Args:
    key: of the draws. It is consumed.
    x: float32 [n, D].
    count: V.
    shrink: seeds keep this part of their distance to the mean.

  Returns:
    float32 [V, D].
  """
  first = jax.random.randint(jax.random.fold_in(key, 0), (), 0, x.shape[0])

  def draw(distance, i):
    # All vectors are seeds already: draw any.
    logits = jnp.log(jnp.where(distance.max() > 0, distance, 1.0))
    row = jax.random.categorical(jax.random.fold_in(key, i), logits)
    closer = jnp.minimum(distance, ((x - x[row][None]) ** 2).sum(-1))
    return closer, x[row]

  distance = ((x - x[first][None]) ** 2).sum(-1)
  _, rest = jax.lax.scan(draw, distance, jnp.arange(1, count))
  seeds = jnp.concatenate([x[first][None], rest])
  mean = x.mean(0, keepdims=True)
  return mean + shrink * (seeds - mean)


def _sample(block: Array, rows: int, count: int) -> np.ndarray:
  """Returns the first `count` rows of a block, or all, [n, D]."""
  _, lanes, size, width = block.shape
  count = min(count, rows)
  chunks = np.asarray(block[: -(-count // (lanes * size))])
  return chunks.reshape(-1, width)[:count]


def place(
  rows: np.ndarray, size: int, vocab_size: int, mesh: Mesh
) -> jax.Array:
  """Puts up to `size` rows on the devices as a block, [chunks, 8, C, D]."""
  shape = block_shape(size, vocab_size, mesh)
  padded = np.zeros((math.prod(shape), rows.shape[1]), np.float32)
  padded[: len(rows)] = rows
  return jax.device_put(
    padded.reshape(*shape, -1),
    NamedSharding(mesh, PartitionSpec(None, "lanes")),
  )


def block_shape(size: int, vocab_size: int, mesh: Mesh) -> tuple[int, int, int]:
  """Chunks, lanes and rows of a chunk of a block of `size` rows."""
  # Few rows: enough chunks for some spares, but none too small to be fast.
  few = min(max(-(-size // (_LANES * _SPARES)), 64), -(-size // _LANES))
  chunk = min(chunk_size(vocab_size, _platform(mesh)), few)
  return -(-size // (_LANES * chunk)), _LANES, chunk


def lane_mesh(devices: Sequence[jax.Device] | None) -> Mesh:
  """Mesh of 8, 4, 2 or 1 of the devices (local ones by default)."""
  devices = jax.local_devices() if devices is None else list(devices)
  count = next(n for n in (8, 4, 2, 1) if n <= len(devices))
  return Mesh(np.asarray(devices[:count]), ("lanes",))


def chunk_size(vocab_size: int, platform: str) -> int:
  """Rows of a chunk; on a CPU their scores, [V, C], fit a core's cache."""
  if platform == "cpu":
    return int(np.clip(2**17 // vocab_size, 64, 512))
  return _WIDE
