"""Residual k-means: vectors to tokens, coarse to fine (DESIGN, section 3).

r_0 = x;  z_l = argmin_v ||r_{l-1} - C_l[v]||;  r_l = r_{l-1} - C_l[z_l]

The vectors may be an array or anything with `.shape` and slices x[a:b] that
are float32 arrays, such as `hsrl_jax.data.rows.open_npy`, which is then read
piece by piece.

Rows are cut into 8 lanes of chunks, whatever the devices. A lane sums its
chunks in order on one device, and the lanes are added in order, so that the
result is the same bit for bit on 1, 2, 4 and 8 devices.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hsrl_jax.types import Array, PRNGKey

_LANES = 8
_SPARES = 16  # Badly fitted rows that a lane keeps for empty codes.
_SEEDS = 8  # Rows a code among which k-means++ chooses.
_START = 64  # Rows a code of the first iterations, at least ...
_FEW = 16_384  # ... and rows in all.
_BATCH = 65_536  # Rows of a streamed array that are on the device at once.
_RUN = 256  # Neighbouring rows that are read together, at most ...
_RUNS = 64  # ... and such runs in a batch, at least.
# Seeds start this near to the mean: a seed is a single vector, and farther
# out than the mean of a code's vectors, the more so the more dimensions.
_SHRINK = (0.5, 1.0)  # By turns, one restart each.
_RELAX = 1.6  # Codes step this far towards their means, and beyond.
_GAPS = 1024  # Rows from which the scale of prices is found.
# Products of which is nearest: TPUs and GPUs would round their factors to 8 or
# 11 bits, and SIDs would be others than on a CPU.
_EXACT = jax.lax.Precision.HIGHEST
_GROWTH = (1 / 3, 8 / 15, 11 / 15)  # Parts of the iterations.


class _Sums(NamedTuple):
  """What one pass over rows says of the codes.

  Attributes:
    sums: float32 [V, D], of the rows of each code.
    sizes: float32 [V], their number.
    error: float32 [], sum of squared distances (plus prices, if there are).
    spare_distances: float32 [S], of some badly fitted rows.
    spares: float32 [S, D], these rows.
  """

  sums: Array
  sizes: Array
  error: Array
  spare_distances: Array
  spares: Array


class _Codes(NamedTuple):
  """Codes of one level while they are fitted.

  Attributes:
    codes: float32 [V, D].
    prices: float32 [V], added to squared distances, so that full codes repel.
    seen: float32 [V], rows that each code averages (mini-batches).
  """

  codes: Array
  prices: Array
  seen: Array


def fit(
  key: PRNGKey,
  x: Any,
  *,
  levels: int,
  vocab_size: int,
  iterations: int = 15,
  restarts: int = 4,
  batch_size: int | None = None,
  balance: float | None = None,
  initial: Array | None = None,
  on_level: Callable[[np.ndarray], None] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Array:
  """Fits the codebooks of `x`.

  Each level is k-means on what the levels before it left over: k-means++
  seeding, then over-relaxed Lloyd iterations, first on a random sample that
  grows (1/8, 1/4, 1/2 of the rows, but 64 a code and 16,384 at least), then
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
    batch_size: rows of one iteration, each time others, until all had their
      turn; codes are then running means in which later batches weigh more.
      None for all rows.
    balance: no code should have more than `balance` N / V rows, at least 1.
      It is approximate here, and exact in `encode_unique`. None for no bound.
    initial: float32 [l, V, D], levels that are fitted already.
    on_level: called with all codebooks so far, float32 [l, V, D], after each.
    devices: of the rows, all local ones by default; as many are used as
      divide the 8 lanes.

  Returns:
    Codebooks, float32 [L, V, D].

  Raises:
    ValueError: an argument is out of range or of another shape.
  """
  if isinstance(x, jax.Array):
    x = np.asarray(x)
  _check(x, balance)
  for name, value, least in (
    ("levels", levels, 1),
    ("vocab_size", vocab_size, 2),
    ("iterations", iterations, 1),
    ("restarts", restarts, 1),
    ("batch_size", 1 if batch_size is None else batch_size, 1),
  ):
    if value < least:
      raise ValueError(f"{name} is {value}; expected at least {least}")
  count, width = x.shape
  codebooks = _initial(initial, levels, vocab_size, width)
  in_memory = isinstance(x, np.ndarray)
  hold = in_memory and batch_size is None
  size = count if hold else min(count, batch_size or _BATCH)
  batches = _batches(jax.random.fold_in(key, 0), count, size, in_memory)
  mesh = _mesh(devices)

  def residual(batch: int) -> tuple[Array, int]:
    rows = _read(x, batches[batch])
    block = _place(rows, size, vocab_size, mesh)
    for codes in codebooks:
      block = _subtract(codes, block, mesh=mesh)
    return block, len(rows)

  held = residual(0)[0] if hold else None

  def blocks(iteration: int, wanted: int) -> Iterator[tuple[Array, int]]:
    """What one iteration reads: blocks and how many of their rows."""
    if hold:
      yield held, wanted
    elif batch_size is not None:
      turn = len(codebooks) * iterations + iteration
      yield residual(turn % len(batches))
    else:
      for batch in range(min(-(-wanted // size), len(batches))):
        yield residual(batch)

  for level in range(len(codebooks), levels):
    codes = _fit_level(
      jax.random.fold_in(key, level + 1),
      blocks,
      count,
      vocab_size,
      iterations=iterations,
      restarts=restarts,
      running=batch_size is not None,
      share=np.inf if balance is None else balance / vocab_size,
      mesh=mesh,
    )
    codebooks.append(codes)
    if hold:
      held = _subtract(codes, held, mesh=mesh)
    if on_level is not None:
      on_level(np.stack(codebooks))
  return jnp.asarray(np.stack(codebooks))


def encode(codebooks: Array, x: Any) -> Array:
  """Tokens of `x`; several rows may share their tokens.

  Of a jax array it can be traced. Other rows go through the device 65,536 at
  a time, so that no more memory is needed than the tokens and three such
  batches; the result is a numpy array.

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
  """Vectors of `tokens`, int32 [..., L] -> float32 [..., D].

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
  rows, width = x.shape
  size = min(_chunk_size(codebooks.shape[1]), max(rows, 1))
  chunks = -(-rows // size)
  padded = jnp.pad(x, ((0, chunks * size - rows), (0, 0)))

  def encode_chunk(residual):
    tokens = []
    for codes in codebooks:
      nearest, _ = _nearest(residual, codes, jnp.zeros(len(codes)))
      residual = residual - codes[nearest]
      tokens.append(nearest)
    return jnp.stack(tokens, -1)

  tokens = jax.lax.map(encode_chunk, padded.reshape(chunks, size, width))
  return tokens.reshape(chunks * size, -1)[:rows]


def _nearest(x: Array, codes: Array, prices: Array) -> tuple[Array, Array]:
  """Code of least squared distance + price, and this sum.

  Args:
    x: float32 [C, D].
    codes: float32 [V, D].
    prices: float32 [V].

  Returns:
    int32 [C], the first of equals, and float32 [C].
  """
  offset = 0.5 * ((codes**2).sum(1) + prices)
  # Largest where the sum is least.
  score = jnp.matmul(codes, x.T, precision=_EXACT) - offset[:, None]
  best = score.max(0)
  # Three times as fast as argmax on a CPU.
  token = jnp.arange(len(codes), dtype=jnp.int32)[:, None]
  first = jnp.where(score == best[None], token, len(codes) - 1).min(0)
  return first, jnp.maximum((x**2).sum(1) - 2.0 * best, 0.0)


def _fit_level(
  key: PRNGKey,
  blocks: Callable[[int, int], Iterator[tuple[Array, int]]],
  rows: int,
  vocab_size: int,
  *,
  iterations: int,
  restarts: int,
  running: bool,
  share: float,
  mesh: Mesh,
) -> np.ndarray:
  """Codes of one level, float32 [V, D]; see `fit`."""
  first = min(rows, max(_START * vocab_size, _FEW))

  def iterate(state: _Codes, iteration: int) -> tuple[_Codes, Array]:
    done = iteration / iterations
    part = (8, 4, 2, 1)[sum(done >= bound for bound in _GROWTH)]
    count = max(rows // part, first)
    # Over the host, since collectives may block for ever on a CPU where
    # several programs with one are under way.
    codes, prices = jax.device_get((state.codes, state.prices))
    sums = None
    for block, block_rows in blocks(iteration, count):
      lanes = _pass(codes, prices, block, block_rows, mesh=mesh)
      sums = _add(jax.device_get(lanes), sums)
    # The last two steps go to the means themselves.
    relax = 1.0 if running or iteration >= iterations - 2 else _RELAX
    # With these, a batch weighs in proportion to its number.
    keep = iteration / (iteration + 2) if running else 0.0
    rate = 0.0
    if share < 1:
      rate = _gap(state.codes, sample[:_GAPS]) / (1 + 0.3 * iteration)
    return _step(state, sums, relax, keep, share, rate), sums.error

  # Where the first sample is all there is, only the end tells restarts apart.
  trial = iterations if first == rows else -(-iterations // 3)
  sample = _sample(*next(blocks(0, rows)), _SEEDS * vocab_size)
  tries = []
  for restart in range(restarts):
    shrink = _SHRINK[restart % len(_SHRINK)]
    codes = _seed(jax.random.fold_in(key, restart), sample, vocab_size, shrink)
    state = _Codes(codes, jnp.zeros(vocab_size), jnp.zeros(vocab_size))
    for iteration in range(trial):
      state, error = iterate(state, iteration)
    tries.append((float(error), restart, state))
  state = min(tries, key=lambda t: t[:2])[2]
  for iteration in range(trial, iterations):
    state, _ = iterate(state, iteration)
  return np.asarray(state.codes)


@functools.partial(jax.jit, static_argnames="mesh")
def _pass(
  codes: Array, prices: Array, block: Array, rows: Array, *, mesh: Mesh
) -> _Sums:
  """Sums over the first `rows` rows of a block, by lane: fields [8, ...].

  Args:
    codes: float32 [V, D].
    prices: float32 [V].
    block: float32 [chunks, 8, C, D], cut by its lanes over the devices.
    rows: int32 [].
    mesh: of the devices.
  """

  def on_device(codes, prices, block, rows):
    _, lanes, size, width = block.shape
    first_lane = jax.lax.axis_index("lanes") * lanes
    zeros = _Sums(
      jnp.zeros_like(codes),
      jnp.zeros(len(codes)),
      jnp.zeros(()),
      jnp.full(_SPARES, -1.0),
      jnp.zeros((_SPARES, width)),
    )

    def of_lane(lane):
      def add_chunk(chunk, sums):
        x = block[chunk, lane]
        row = (chunk * _LANES + first_lane + lane) * size + jnp.arange(size)
        there = row < rows
        nearest, distance = _nearest(x, codes, prices)
        nearest = jnp.where(there, nearest, len(codes))  # None of them.
        distance = jnp.where(there, distance, -1.0)
        worst = jnp.argmax(distance)
        slot = chunk % _SPARES
        worse = distance[worst] > sums.spare_distances[slot]
        return _Sums(
          # On GPUs in no fixed order, see docs/scaling.md; sorted rows would
          # cost more than the search on a CPU.
          sums.sums.at[nearest].add(x, mode="drop"),
          sums.sizes.at[nearest].add(1.0, mode="drop"),
          sums.error + jnp.maximum(distance, 0.0).sum(),
          sums.spare_distances.at[slot].max(distance[worst]),
          sums.spares.at[slot].set(
            jnp.where(worse, x[worst], sums.spares[slot])
          ),
        )

      chunks = (rows + _LANES * size - 1) // (_LANES * size)
      return jax.lax.fori_loop(0, chunks, add_chunk, zeros)

    return jax.lax.map(of_lane, jnp.arange(lanes))

  replicated, by_lane = PartitionSpec(), PartitionSpec(None, "lanes")
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(replicated, replicated, by_lane, replicated),
    out_specs=PartitionSpec("lanes"),
    check_vma=False,  # The loops start from zeros, which are on no device.
  )(codes, prices, block, rows)


@jax.jit
def _add(lanes: _Sums, before: _Sums | None) -> _Sums:
  """Adds up the lanes of a block, one by one, and the blocks `before` it."""
  total = functools.reduce(
    lambda a, b: jax.tree.map(jnp.add, a, b),
    [jax.tree.map(lambda v, l=l: v[l], lanes[:3]) for l in range(_LANES)],
  )
  spare_distances = lanes.spare_distances.reshape(-1)
  spares = lanes.spares.reshape(len(spare_distances), -1)
  if before is None:
    return _Sums(*total, spare_distances, spares)
  worse = spare_distances > before.spare_distances
  return _Sums(
    *jax.tree.map(jnp.add, before[:3], total),
    jnp.where(worse, spare_distances, before.spare_distances),
    jnp.where(worse[:, None], spares, before.spares),
  )


@jax.jit
def _step(
  state: _Codes,
  sums: _Sums,
  relax: float,
  keep: float,
  share: float,
  rate: float,
) -> _Codes:
  """Moves the codes towards the means of what is nearest to them.

  Args:
    state: before.
    sums: of a pass with it.
    relax: 1 steps to the means; more, beyond.
    keep: weight of what was seen before.
    share: of the rows that a code may have.
    rate: by which the prices move.
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
  # Dual ascent: the price of a code rises while it is over its share.
  excess = jnp.log(sums.sizes / (share * sums.sizes.sum()))
  prices = state.prices + rate * jnp.clip(excess, -1.0, 1.0)
  return _Codes(codes, jnp.maximum(prices, 0.0), seen)


@jax.jit
def _gap(codes: Array, x: Array) -> Array:
  """By how much the second nearest code is farther, on average, []."""
  offset = 0.5 * (codes**2).sum(1)
  score = jnp.matmul(x, codes.T, precision=_EXACT) - offset[None]
  best = score.max(1, keepdims=True)
  second = jnp.where(score == best, -jnp.inf, score).max(1, keepdims=True)
  # Where all codes are equal there is no second.
  return 2.0 * jnp.where(jnp.isfinite(second), best - second, 0.0).mean()


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="block")
def _subtract(codes: Array, block: Array, *, mesh: Mesh) -> Array:
  """What a level leaves over of a block, [chunks, 8, C, D]."""

  def on_device(codes, block):
    def of_chunk(x):
      return x - codes[_nearest(x, codes, jnp.zeros(len(codes)))[0]]

    flat = block.reshape(-1, *block.shape[2:])
    return jax.lax.map(of_chunk, flat).reshape(block.shape)

  by_lane = PartitionSpec(None, "lanes")
  return jax.shard_map(
    on_device, mesh=mesh, in_specs=(PartitionSpec(), by_lane), out_specs=by_lane
  )(codes, block)


@functools.partial(jax.jit, static_argnames="count")
def _seed(key: PRNGKey, x: Array, count: int, shrink: float) -> Array:
  """k-means++: each seed is drawn by its squared distance to the others.

  Args:
    key: consumed.
    x: float32 [n, D].
    count: V.
    shrink: the seeds are pulled to this part of their distance to the mean.

  Returns:
    float32 [V, D].
  """
  first = jax.random.randint(jax.random.fold_in(key, 0), (), 0, x.shape[0])

  def draw(distance, i):
    # Where all vectors are taken already, any will do.
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
  """The first `count` rows of a block, or all, [n, D]."""
  _, lanes, size, width = block.shape
  count = min(count, rows)
  chunks = np.asarray(block[: -(-count // (lanes * size))])
  return chunks.reshape(-1, width)[:count]


def _batches(
  key: PRNGKey, rows: int, size: int, in_memory: bool
) -> list[np.ndarray]:
  """Cuts rows into batches by chance; int64 [n, 2] each: runs from, to.

  Every row is in one batch. Rows of a file are read in runs.
  """
  run = 1 if in_memory else int(np.clip(size // _RUNS, 1, _RUN))
  rng = np.random.default_rng(int(jax.random.bits(key)))
  starts = run * rng.permutation(-(-rows // run))
  runs = np.stack([starts, np.minimum(starts + run, rows)], 1)
  step = size // run
  return [runs[i : i + step] for i in range(0, len(runs), step)]


def _read(x: Any, runs: np.ndarray) -> np.ndarray:
  """Rows of a batch, float32 [n, D], in an order by chance."""
  if isinstance(x, np.ndarray):
    return np.asarray(x[runs[:, 0]], np.float32)
  rows = np.concatenate([x[start:stop] for start, stop in runs.tolist()])
  # Neighbours in a file may be alike, and the first rows are a sample.
  return rows[np.random.default_rng(int(runs[0, 0])).permutation(len(rows))]


def _place(
  rows: np.ndarray, size: int, vocab_size: int, mesh: Mesh
) -> jax.Array:
  """Up to `size` rows as a block on the devices, [chunks, 8, C, D]."""
  # Of few rows, chunks enough for some spares, but not too small to be fast.
  few = min(max(-(-size // (_LANES * _SPARES)), 64), -(-size // _LANES))
  chunk = min(_chunk_size(vocab_size), few)
  chunks = -(-size // (_LANES * chunk))
  padded = np.zeros((chunks * _LANES * chunk, rows.shape[1]), np.float32)
  padded[: len(rows)] = rows
  return jax.device_put(
    padded.reshape(chunks, _LANES, chunk, -1),
    NamedSharding(mesh, PartitionSpec(None, "lanes")),
  )


def _mesh(devices: Sequence[jax.Device] | None) -> Mesh:
  devices = jax.local_devices() if devices is None else list(devices)
  count = next(n for n in (8, 4, 2, 1) if n <= len(devices))
  return Mesh(np.asarray(devices[:count]), ("lanes",))


def _chunk_size(vocab_size: int) -> int:
  """Rows whose scores, [V, C], stay in a core's cache."""
  return int(np.clip(2**17 // vocab_size, 64, 512))


def _power_of_two(number: int) -> int:
  return 1 << max(number - 1, 0).bit_length()


def _check(x: Any, balance: float | None) -> None:
  if len(x.shape) != 2 or not all(x.shape):
    raise ValueError(
      f"x has shape {tuple(x.shape)}; expected [N, D] with rows and columns"
    )
  if balance is not None and balance < 1:
    raise ValueError(
      f"balance is {balance}; expected at least 1, where all codes are of "
      "the same size"
    )


def _initial(
  initial: Array | None, levels: int, vocab_size: int, width: int
) -> list[np.ndarray]:
  if initial is None:
    return []
  shape = np.shape(initial)
  if shape[1:] != (vocab_size, width) or shape[0] > levels:
    raise ValueError(
      f"initial has shape {shape}; expected at most {levels} levels of "
      f"({vocab_size}, {width})"
    )
  return list(np.asarray(initial, np.float32))
