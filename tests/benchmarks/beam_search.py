"""Constrained beam search at scale, beside two peers in the same run.

  taskset -c 0 python tests/benchmarks/beam_search.py [--sids=WORKDIR/sids]

L 3, V 256, 50 beams, random SIDs. The logits of a level are a row of the user,
[V], plus, from the second level on, a row of a table of the token before,
[V, V]. Best 50 items of each user, all users in one jitted call; medians of
30 calls and more. Peers: scoring every item and `lax.top_k`; the same beam
search without the constraint, which may end at SIDs that no item has. Then what
sampling and 200 excluded items a user cost, and how often B beams hold
the exact best ten: of these logits, in which a prefix says little of what is
below it, and, with --sids, of a quantized catalogue, whose users like what two
random items have in common.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import sid

LEVELS, VOCAB, BEAMS, EXCLUDED = 3, 256, 50, 200
WIDTHS = (10, 20, 50, 100)


def log_probs(row, table):
  """The caller's function of the context, which is the token before."""
  return lambda token, level: row[level] + (table[level, token] if level else 0)


@functools.partial(jax.jit, static_argnames="beams")
def constrained(index, rows, table, excluded=None, keys=None, *, beams=BEAMS):
  """Beams of all users: rows [U, L, V], table [L, V, V], excluded [U, T]."""

  def one(row, excluded, key):
    return sid.beam_search(
      index,
      jnp.int32(0),
      log_probs(row, table),
      lambda before, token, level: token,
      beams=beams,
      excluded=excluded,
      key=key,
    )

  axes = (0, None if excluded is None else 0, None if keys is None else 0)
  return jax.vmap(one, in_axes=axes)(rows, excluded, keys)


def recalls(best, search) -> dict[str, float]:
  """How much of the exact best ten [U, 10] `search(beams)` [U, B] holds."""
  result = {}
  for beams in WIDTHS:
    found = np.asarray(search(beams))
    held = [np.isin(b, f) for b, f in zip(best, found, strict=True)]
    result[f"recall10_beams{beams}"] = float(np.mean(held))
    result[f"all_ten_beams{beams}"] = float(np.mean(np.all(held, 1)))
  return result


def recalls_of_catalogue(folder: pathlib.Path) -> dict[str, float]:
  """The recalls for 1,000 users of the SIDs that --mode=quantize left."""
  with np.load(folder / "sids.npz") as arrays:
    tokens = arrays["tokens"]
  with np.load(folder / "codebooks.npz") as arrays:
    codebooks = arrays["codebooks"]
  items = np.asarray(sid.reconstruct(codebooks, tokens))
  items = items - items.mean(0)
  liked = np.random.default_rng(0).integers(len(items), size=(1_000, 2))
  logits = np.einsum("ud,lvd->ulv", items[liked].mean(1), codebooks)
  scores = logits[:, np.arange(tokens.shape[1]), tokens].sum(-1)
  best = np.argsort(-scores, 1)[:, :10] + 1
  index = sid.build_index(tokens, codebooks.shape[1])
  none = jnp.zeros((*codebooks.shape[:2], codebooks.shape[1]))
  return recalls(
    best, lambda beams: constrained(index, logits, none, beams=beams).items
  )


@jax.jit
def unconstrained(rows, table):
  """The same over all SIDs, tokens [U, B, L]."""

  def one(row):
    score, tokens = jax.lax.top_k(row[0], BEAMS)
    tokens = tokens[:, None]
    for level in range(1, LEVELS):
      log_prob = functools.partial(log_probs(row, table), level=level)
      scores = score[:, None] + jax.vmap(log_prob)(tokens[:, -1])
      score, flat = jax.lax.top_k(scores.reshape(-1), BEAMS)
      parent, token = flat // VOCAB, flat % VOCAB
      tokens = jnp.concatenate([tokens[parent], token[:, None]], 1)
    return tokens

  return jax.vmap(one)(rows)


@jax.jit
def exhaustive(index, rows, table):
  """The best items of all users by scoring every item, [U, B]."""
  tokens = sid.sid_of(index, jnp.arange(1, index.capacity + 1)).T
  shared = table[1, tokens[0], tokens[1]] + table[2, tokens[1], tokens[2]]

  def one(row):
    scores = shared + sum(row[l][tokens[l]] for l in range(LEVELS))
    return jax.lax.top_k(scores, BEAMS)[1] + 1

  return jax.lax.map(one, rows)


def milliseconds(function, *arguments, calls: int = 41) -> float:
  """The median time of a call, after warm-up."""
  for _ in range(3):
    jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(calls):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    times.append(time.perf_counter() - start)
  return 1e3 * statistics.median(times)


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--sids", type=pathlib.Path)
  folder = parser.parse_args().sids
  rng = np.random.default_rng(0)
  numbers = rng.permutation(VOCAB**LEVELS)
  all_rows = rng.normal(size=(32, LEVELS, VOCAB)).astype(np.float32)
  table = jnp.asarray(rng.normal(size=(LEVELS, VOCAB, VOCAB)), jnp.float32)
  result = {}
  for name, items in (("1e5", 10**5), ("1e6", 10**6)):
    tokens = np.stack(np.unravel_index(numbers[:items], (VOCAB,) * LEVELS), 1)
    index = sid.build_index(tokens, VOCAB)
    for users in (8, 32):
      rows = jnp.asarray(all_rows[:users])
      suffix = f"b{users}_{name}"
      result[f"ms_{suffix}"] = milliseconds(constrained, index, rows, table)
      result[f"unconstrained_ms_{suffix}"] = milliseconds(
        unconstrained, rows, table
      )
      excluded = rng.integers(1, items + 1, (users, EXCLUDED)).astype(np.int32)
      # Of which many are those that would be found.
      found = constrained(index, rows, table).items
      excluded = jnp.asarray(excluded).at[:, :BEAMS].set(found)
      result[f"excluded_ms_{suffix}"] = milliseconds(
        constrained, index, rows, table, excluded
      )
      keys = jax.random.split(jax.random.key(0), users)
      result[f"sampled_ms_{suffix}"] = milliseconds(
        constrained, index, rows, table, None, keys
      )
    result[f"exhaustive_ms_b32_{name}"] = milliseconds(
      exhaustive, index, rows, table, calls=3
    )
    result[f"exhaustive_ratio_b32_{name}"] = (
      result[f"exhaustive_ms_b32_{name}"] / result[f"ms_b32_{name}"]
    )
    best = np.asarray(exhaustive(index, rows, table))[:, :10]
    search = functools.partial(constrained, index, rows, table)
    found = recalls(best, lambda beams, f=search: f(beams=beams).items)
    result |= {f"{key}_{name}": value for key, value in found.items()}
  if folder is not None:
    found = recalls_of_catalogue(folder)
    result |= {f"{key}_catalogue": value for key, value in found.items()}
  result = {name: round(value, 3) for name, value in result.items()}
  result["cores"] = len(os.sched_getaffinity(0))
  for name, value in result.items():
    print(f"{name:28} {value}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
