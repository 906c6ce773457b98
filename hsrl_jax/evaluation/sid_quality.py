"""Quality of semantic ids: errors, neighbours, use of codes, drift, size."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax import sid
from hsrl_jax.data import embeddings
from hsrl_jax.evaluation import statistics

# A refit is due where newcomers lose this many times what fitted items lose.
DRIFT_MARGIN = 1.5
_NEIGHBOURS = 10
_QUERIES, _AMONG = 1_000, 20_000  # Sample behind the neighbours' recall.


def errors(
  codebooks: np.ndarray,
  rows: embeddings.Rows,
  plain: np.ndarray,
  tokens: np.ndarray,
  on_rows: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
  """Mean squared errors of the reconstruction, block by block.

  Args:
    codebooks: float32 [L, V, D].
    rows: [N, D].
    plain: int32 [N, L], tokens of residual k-means alone.
    tokens: int32 [N, L], the unique SIDs.
    on_rows: called with the number of rows of each block that is done.

  Returns:
    `plain`, a list: after each level; `unique`; `variance`, the mean squared
    distance of a row to the mean of all.
  """
  count, width = rows.shape
  total, squares, unique = np.zeros(width), 0.0, 0.0
  by_level = np.zeros(len(codebooks))
  for start, block in embeddings.blocks(rows):
    total += block.sum(0, dtype=np.float64)
    squares += _square_sum(block)
    rest, own = block, block
    for level, codes in enumerate(codebooks):
      rest = rest - codes[plain[start : start + len(block), level]]
      own = own - codes[tokens[start : start + len(block), level]]
      by_level[level] += _square_sum(rest)
    unique += _square_sum(own)
    on_rows(len(block))
  variance = (squares - (total @ total) / count) / count
  return {
    "plain": [float(x) for x in by_level / count],
    "unique": float(unique / count),
    "variance": max(float(variance), 0.0),
  }


def relative(error: float, variance: float) -> float:
  """Share of the variance that is lost; 0 where there is no variance."""
  return error / variance if variance > 1e-12 else 0.0


def recall(
  codebooks: np.ndarray, rows: embeddings.Rows, tokens: np.ndarray
) -> dict[str, Any] | None:
  """Share of an item's nearest neighbours that its reconstruction keeps.

  Of the 10 nearest to a sampled item among the reconstructions of a sample,
  the share that is not farther than the 10th nearest among the embeddings.

  Args:
    codebooks: float32 [L, V, D].
    rows: [N, D].
    tokens: int32 [N, L].

  Returns:
    `recall`, and the sample: `neighbours`, `queries`, `among`; None for a
    catalogue of fewer than two items.
  """
  rng = np.random.default_rng(0)
  among = min(len(tokens), _AMONG)
  neighbours, queries = min(_NEIGHBOURS, among - 1), min(among, _QUERIES)
  if neighbours < 1:
    return None
  chosen = np.sort(rng.choice(len(tokens), among, replace=False))
  x = np.concatenate([rows[i : i + 1] for i in chosen.tolist()])
  y = np.asarray(sid.reconstruct(codebooks, tokens[chosen]))
  hits = 0
  for part in np.array_split(rng.permutation(among)[:queries], 8):
    if not len(part):
      continue
    true, reconstructed = _distances(x, part), _distances(y, part)
    limit = np.partition(true, neighbours - 1, axis=1)[:, [neighbours - 1]]
    nearest = np.argpartition(reconstructed, neighbours - 1, axis=1)
    nearest = nearest[:, :neighbours]
    hits += int((np.take_along_axis(true, nearest, 1) <= limit).sum())
  return {
    "recall": hits / (queries * neighbours),
    "neighbours": neighbours,
    "queries": queries,
    "among": among,
  }


def occupancy(tokens: np.ndarray, vocab_size: int) -> dict[str, Any]:
  """Use of the codes.

  Args:
    tokens: int [N, L], distinct rows; at least one.
    vocab_size: V.

  Returns:
    Per level `codes_used`, `perplexity`, and `largest_code` and
    `smallest_code` (items of a code in use); `next_tokens`: per depth the
    number of prefixes and the spread of how many tokens can follow one.
  """
  usage = [np.bincount(t, minlength=vocab_size) for t in tokens.T]
  used = [u[u > 0] for u in usage]
  return {
    "codes_used": [len(u) for u in used],
    "perplexity": [statistics.perplexity(u) for u in used],
    "largest_code": [int(u.max()) for u in used],
    "smallest_code": [int(u.min()) for u in used],
    "next_tokens": [
      {"depth": depth, "prefixes": len(counts), **_spread(counts)}
      for depth, counts in enumerate(followers(tokens, vocab_size))
    ],
  }


def followers(tokens: np.ndarray, vocab_size: int) -> list[np.ndarray]:
  """Number of tokens that can follow each prefix.

  Args:
    tokens: int [N, L], distinct rows.
    vocab_size: V.

  Returns:
    For l = 0..L-1, int [number of prefixes of l tokens that items have].
  """
  levels = tokens.shape[1]
  number = np.ravel_multi_index(tokens.T, (vocab_size,) * levels)
  by_depth = []
  for _ in range(levels):
    number, counts = np.unique(number // vocab_size, return_counts=True)
    by_depth.append(counts)
  return by_depth[::-1]


def collided(plain: np.ndarray, vocab_size: int) -> int:
  """Number of items that share their tokens, int [N, L], with another item."""
  number = np.ravel_multi_index(plain.T, (vocab_size,) * plain.shape[1])
  _, counts = np.unique(number, return_counts=True)
  return int(counts[counts > 1].sum())


def drift(facts: dict[str, Any], count: int, error: dict) -> dict[str, Any]:
  """The facts' `drift` after `count` more newcomers.

  Args:
    facts: of report.json so far.
    count: newcomers.
    error: the newcomers' errors, as from `errors`.
  """
  before = facts["drift"] or {
    "newcomers": 0,
    "relative_error": 0.0,
    "relative_error_unique": 0.0,
  }
  total = before["newcomers"] + count

  def mean(name, new):
    new = relative(new, facts["variance"])
    return (before["newcomers"] * before[name] + count * new) / total

  lost = mean("relative_error", error["plain"][-1])
  fitted = facts["relative_error"][-1]
  return {
    "newcomers": total,
    "relative_error": lost,
    "relative_error_unique": mean("relative_error_unique", error["unique"]),
    "margin": DRIFT_MARGIN,
    "refit_due": bool(lost > DRIFT_MARGIN * max(fitted, 1e-6)),
  }


def _spread(counts: np.ndarray) -> dict[str, float]:
  percentiles = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}
  values = np.percentile(counts, list(percentiles.values()), method="nearest")
  return {
    "mean": float(counts.mean()),
    **dict(zip(percentiles, values.tolist(), strict=True)),
  }


def _square_sum(x: np.ndarray) -> float:
  return float(np.square(x).sum(dtype=np.float64))


def _distances(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
  """Squared distances of rows `queries` to all rows; infinite to itself."""
  distance = (x**2).sum(1) - 2.0 * x[queries] @ x.T
  distance[np.arange(len(queries)), queries] = np.inf
  return distance


class Size(NamedTuple):
  """One row of a sweep."""

  vocab_size: int  # V.
  levels: int  # L.
  error: float  # Share of the variance that plain residual k-means loses.
  # The same once each item has a SID of its own; 1 is what the mean vector
  # loses.
  error_unique: float

  @property
  def name(self) -> str:
    """Such as 64x3."""
    return f"{self.vocab_size}x{self.levels}"


def of_facts(facts: dict[str, Any]) -> Size:
  """The size that the facts of report.json describe."""
  return Size(
    facts["vocab_size"],
    facts["levels"],
    facts["relative_error"][-1],
    facts["relative_error_unique"],
  )


def recommend(sizes: Sequence[Size]) -> tuple[Size | None, list[str]]:
  """Recommends the size with the smallest loss with unique SIDs.

  Of equal losses the one with fewer SIDs, V^L, then fewer tokens. A size that
  loses more than the mean vector, error_unique > 1, is refused. A size whose
  unique SIDs cost more than half of what is left, error_unique - error >
  error_unique / 2, is warned of.

  Args:
    sizes: those that hold the catalogue.

  Returns:
    The size, None where each is worse than the mean vector; and warnings, one
    line each, for people.
  """
  good = [x for x in sizes if x.error_unique <= 1]
  warnings = [refusal(x) for x in sizes if x.error_unique > 1]
  if not good:
    return None, warnings
  best = min(
    good, key=lambda x: (x.error_unique, x.vocab_size**x.levels, x.levels)
  )
  return best, warnings + dear(best)


def refusal(size: Size) -> str:
  """One line that says why a size is not to be used."""
  return (
    f"{size.name} loses {size.error_unique:.0%} of the variance, more than the "
    "mean vector would: not usable; expected a larger V or L"
  )


def dear(size: Size) -> list[str]:
  """A warning where unique SIDs cost more than half of what is left."""
  cost = size.error_unique - size.error
  if cost <= size.error_unique / 2:
    return []
  return [
    f"{size.name}: unique SIDs cost {cost:.0%} of the variance, more than half "
    f"of the {size.error_unique:.0%} that is lost; a larger V or L would help"
  ]
