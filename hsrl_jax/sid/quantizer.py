"""Residual k-means: vectors to tokens, coarse to fine (DESIGN, section 3).

r_0 = x;  z_l = argmin_v ||r_{l-1} - C_l[v]||;  r_l = r_{l-1} - C_l[z_l]
"""

import functools

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array, PRNGKey

_CHUNK = 16_384  # Rows whose distances to all codes are held at once.


@functools.partial(
  jax.jit, static_argnames=("levels", "vocab_size", "iterations", "restarts")
)
def fit(
  key: PRNGKey,
  x: Array,
  *,
  levels: int,
  vocab_size: int,
  iterations: int = 30,
  restarts: int = 4,
) -> Array:
  """Fits the codebooks of `x`.

  Each level is k-means on what the levels before it left over: k-means++
  seeding, Lloyd iterations, empty codes moved to the worst fitted vectors.

  Args:
    key: of the seeding.
    x: float32 [N, D], finite.
    levels: L.
    vocab_size: V.
    iterations: Lloyd iterations.
    restarts: seedings per level; the one with the least error is kept.

  Returns:
    Codebooks, float32 [L, V, D].
  """
  residual, codebooks = x, []
  for level in range(levels):

    def attempt(key, residual=residual):
      codes = _seed(key, residual, vocab_size)
      codes, _ = jax.lax.scan(
        lambda c, _: (_lloyd(residual, c), None), codes, length=iterations
      )
      return codes, _nearest(residual, codes)[1].sum()

    keys = jax.random.split(jax.random.fold_in(key, level), restarts)
    codes, errors = jax.lax.map(attempt, keys)
    codes = codes[jnp.argmin(errors)]
    codebooks.append(codes)
    residual = residual - codes[_nearest(residual, codes)[0]]
  return jnp.stack(codebooks)


@jax.jit
def encode(codebooks: Array, x: Array) -> Array:
  """Tokens of `x`, int32 [N, L]; several rows may share their tokens.

  Args:
    codebooks: float32 [L, V, D].
    x: float32 [N, D].
  """
  residual, tokens = x, []
  for codes in codebooks:
    nearest, _ = _nearest(residual, codes)
    residual = residual - codes[nearest]
    tokens.append(nearest)
  return jnp.stack(tokens, -1)


@jax.jit
def reconstruct(codebooks: Array, tokens: Array) -> Array:
  """Vectors of `tokens`, int32 [..., L] -> float32 [..., D]."""
  levels = jnp.arange(codebooks.shape[0])
  return codebooks[levels, tokens].sum(-2)


def relative_error(x: Array, reconstruction: Array) -> Array:
  """||x - reconstruction||^2 / ||x - mean(x)||^2, both [N, D] -> []."""
  return jnp.sum((x - reconstruction) ** 2) / jnp.sum((x - x.mean(0)) ** 2)


def _nearest(x: Array, codes: Array) -> tuple[Array, Array]:
  """Nearest code of each row and its squared distance, [N] and [N]."""
  half_norm = 0.5 * (codes**2).sum(-1)

  def row(v):
    score = codes @ v - half_norm  # Largest where the distance is least.
    best = jnp.argmax(score)
    return best.astype(jnp.int32), (v**2).sum() - 2.0 * score[best]

  nearest, distance = jax.lax.map(row, x, batch_size=_CHUNK)
  return nearest, jnp.maximum(distance, 0.0)


def _seed(key: PRNGKey, x: Array, count: int) -> Array:
  """k-means++: each seed is drawn by its squared distance to the others."""
  first = jax.random.randint(jax.random.fold_in(key, 0), (), 0, x.shape[0])

  def draw(distance, i):
    # Where all vectors are taken already, any will do.
    logits = jnp.log(jnp.where(distance.max() > 0, distance, 1.0))
    row = jax.random.categorical(jax.random.fold_in(key, i), logits)
    closer = jnp.minimum(distance, ((x - x[row]) ** 2).sum(-1))
    return closer, x[row]

  distance = ((x - x[first]) ** 2).sum(-1)
  _, rest = jax.lax.scan(draw, distance, jnp.arange(1, count))
  return jnp.concatenate([x[first][None], rest])


def _lloyd(x: Array, codes: Array) -> Array:
  """One iteration: codes become the means of what is nearest to them."""
  count = codes.shape[0]
  nearest, distance = _nearest(x, codes)
  sums = jax.ops.segment_sum(x, nearest, count)
  sizes = jax.ops.segment_sum(jnp.ones(x.shape[0]), nearest, count)
  means = sums / jnp.maximum(sizes, 1.0)[:, None]
  empty = sizes == 0
  # The j-th empty code takes the j-th worst fitted vector.
  _, worst = jax.lax.top_k(distance, min(count, x.shape[0]))
  rank = jnp.minimum(jnp.cumsum(empty) - 1, worst.shape[0] - 1)
  return jnp.where(empty[:, None], x[worst[rank]], means)
