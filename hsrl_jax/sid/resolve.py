"""Unique SIDs: residual encoding in which no two items share all tokens.

Residual k-means alone collides. Here items choose their tokens top-down under
the capacity of each prefix: below a prefix of l tokens there is room for
V^(L-l) items. Where more items want a token than fit, the closest ones get
it and the others take their next choice; at the last level, where each token
fits one item, the assignment of least total distance is found exactly. Below a
prefix there is room for all who chose it, so this never fails up to V^L items.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment


def check_capacity(num_items: int, levels: int, vocab_size: int) -> None:
  """Raises ValueError, naming sizes that would do, where V^L < num_items."""
  if vocab_size**levels >= num_items:
    return
  enough_levels = levels
  while vocab_size**enough_levels < num_items:
    enough_levels += 1
  enough_vocab = int(num_items ** (1 / levels))
  while enough_vocab**levels < num_items:
    enough_vocab += 1
  raise ValueError(
    f"vocab_size {vocab_size} and levels {levels} make "
    f"{vocab_size**levels} SIDs for {num_items} items; expected at least one "
    f"SID an item: use vocab_size {enough_vocab} or levels {enough_levels}"
  )


def encode_unique(
  codebooks: np.ndarray, x: np.ndarray, *, taken: np.ndarray | None = None
) -> np.ndarray:
  """Distinct tokens of each row of `x`.

  Deterministic. Where the plain encoding has no collision, it is the result.

  Args:
    codebooks: float32 [L, V, D].
    x: float32 [N, D].
    taken: int64 [M], SIDs in use that no row may get, as numbers
      sum_l token_l V^(L-1-l): sorted, distinct (not checked, since the cost
      grows by log M only).

  Returns:
    int32 [N, L], no two rows equal.

  Raises:
    ValueError: N + M > V^L; V^L is not below 2^63.
  """
  levels, vocab_size, _ = codebooks.shape
  taken = np.zeros(0, np.int64) if taken is None else np.asarray(taken)
  check_capacity(len(x) + len(taken), levels, vocab_size)
  _check_numbers(levels, vocab_size)
  residual = np.asarray(x, np.float64)
  prefix = np.zeros(len(x), np.int64)
  tokens = np.zeros((len(x), levels), np.int32)
  for level, codes in enumerate(np.asarray(codebooks, np.float64)):
    room = vocab_size ** (levels - level - 1)
    distance = _squared_distances(residual, codes)
    token = distance.argmin(1)
    child = prefix * vocab_size + token
    children, sizes = np.unique(child, return_counts=True)
    crowded = sizes > _free(children, room, taken)
    for node in np.unique(children[crowded] // vocab_size):
      rows = np.flatnonzero(prefix == node)
      free = _free(node * vocab_size + np.arange(vocab_size), room, taken)
      if room == 1:
        cost = np.where(free > 0, distance[rows], np.inf)
        _, token[rows] = linear_sum_assignment(cost)
      else:
        token[rows] = _assign_with_room(distance[rows], free)
    tokens[:, level] = token
    prefix = prefix * vocab_size + token
    residual = residual - codes[token]
  return tokens


def _check_numbers(levels: int, vocab_size: int) -> None:
  if vocab_size**levels >= 2**63:
    raise ValueError(
      f"vocab_size {vocab_size} and levels {levels} make "
      f"{vocab_size**levels} SIDs; expected fewer than 2^63: use fewer levels"
    )


def _free(nodes: np.ndarray, room: int, taken: np.ndarray) -> np.ndarray:
  """How many SIDs below each node are not taken, int64 [n]."""
  first = np.searchsorted(taken, nodes * room)
  return room - (np.searchsorted(taken, (nodes + 1) * room) - first)


def _squared_distances(x: np.ndarray, codes: np.ndarray) -> np.ndarray:
  """[N, D], [V, D] -> [N, V]; complete, since rows compete for room."""
  norms = (x**2).sum(1, keepdims=True) + (codes**2).sum(1)
  return norms - 2.0 * x @ codes.T


def _assign_with_room(distance: np.ndarray, free: np.ndarray) -> np.ndarray:
  """Gives each row a column, at most `free` rows each, nearest first."""
  choice = np.full(len(distance), -1)
  waiting = np.arange(len(distance))
  while len(waiting):
    open_distance = np.where(free > 0, distance[waiting], np.inf)
    wanted = open_distance.argmin(1)
    # By column, then nearest first; ties by row.
    cost = open_distance[np.arange(len(waiting)), wanted]
    order = np.lexsort((waiting, cost, wanted))
    wanted, waiting = wanted[order], waiting[order]
    rank = np.arange(len(wanted)) - np.searchsorted(wanted, wanted)
    served = rank < free[wanted]
    choice[waiting[served]] = wanted[served]
    free = free - np.bincount(wanted[served], minlength=len(free))
    waiting = np.sort(waiting[~served])
  return choice
