"""Off-policy values over large catalogues: weights by the prefix of a SID.

Over 10^4 items the weights pi / mu of off_policy are so large that little can
be told. Items whose SIDs share their first tokens are alike: a weight of such a
prefix, P_pi(prefix) / P_mu(prefix), is that of the item averaged over the items
below it. `at_depth` puts these weights in place, so that every estimate of
off_policy is of prefixes:

  ips            MIPS: what an item adds to its prefix is taken to be the same
                 under both policies. Saito and Joachims, "Off-policy evaluation
                 for large action spaces via embeddings", 2022.
  doubly_robust  OffCEM: a model says what an item adds, weights correct it by
                 prefix. Saito et al., "Off-policy evaluation for large action
                 spaces via conjunct effect modeling", 2023.

With the slots of a slate as the decisions of a session, the latter is
Cascade-DR over prefixes: Kiyohara et al., "Doubly robust off-policy evaluation
for ranking policies under the cascade behavior model", 2022.
"""

from typing import NamedTuple

import numpy as np

from hsrl_jax.evaluation import off_policy

# Intervals of the deepest prefixes with an effective sample of 100 held in .925
# of 600 trials, of those with 300 in .948 (prefix_weights_test.py).
MIN_EFFECTIVE_SAMPLE = 300.0


class Prefixes(NamedTuple):
  """Chances of the first 1..L tokens of what was logged, by both policies.

  After its end a session has 1 for both.
  """

  target: np.ndarray  # float [S, T, L].
  logging: np.ndarray  # float [S, T, L].


def chances(
  sids: np.ndarray, probabilities: np.ndarray, items: np.ndarray
) -> np.ndarray:
  """A policy's chance of an item that shares the first 1..L tokens, [R, L].

  Args:
    sids: int [N + 1, L], of each item; the row of padding is not read.
    probabilities: float [R, N + 1], of each item in each of R decisions; 0 for
      padding.
    items: int [R], the items that were logged.
  """
  rows, columns = np.arange(len(items)), []
  for depth in range(1, sids.shape[1] + 1):
    _, prefix = np.unique(sids[:, :depth], axis=0, return_inverse=True)
    prefix = prefix.ravel()  # NumPy 2.0 alone returns a column.
    order = np.argsort(prefix, kind="stable")
    first = np.searchsorted(prefix[order], np.arange(prefix.max() + 1))
    sums = np.add.reduceat(probabilities[:, order], first, axis=1)
    columns.append(sums[rows, prefix[items]])
  return np.stack(columns, axis=1)


def at_depth(
  logged: off_policy.Logged, prefixes: Prefixes, depth: int
) -> off_policy.Logged:
  """The same logs, weighed by the first `depth` tokens, 1..L."""
  return logged._replace(
    target=prefixes.target[..., depth - 1],
    logging=prefixes.logging[..., depth - 1],
  )


def deepest(
  logged: off_policy.Logged,
  prefixes: Prefixes,
  least: float = MIN_EFFECTIVE_SAMPLE,
) -> off_policy.Logged:
  """The same logs by the deepest prefixes that leave a sample of size `least`.

  Deeper prefixes assume less of the model and vary more. Where none leaves so
  much, they are weighed by the first token.
  """
  for depth in range(prefixes.target.shape[-1], 0, -1):
    by_prefix = at_depth(logged, prefixes, depth)
    weight = off_policy.weights(by_prefix)[:, -1]
    if off_policy.effective_sample_size(weight) >= least:
      break
  return by_prefix
