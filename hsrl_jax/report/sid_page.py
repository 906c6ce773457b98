"""The page of a catalogue's semantic ids, and a line on their drift."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hsrl_jax.evaluation import sid_quality
from hsrl_jax.report import page, plots

_PREFIXES = 6
_TITLES = 6  # Of a prefix.


def render(
  facts: dict[str, Any],
  codebooks: np.ndarray,
  tokens: np.ndarray,
  title_of: Callable[[int], str],
  genres: list[str] | None = None,
) -> str:
  """The page.

  Args:
    facts: what report.json holds.
    codebooks: float32 [L, V, D].
    tokens: int32 [N, L], of the items in the catalogue.
    title_of: a row of `tokens` to what people call the item.
    genres: [N], where known.
  """
  return page.render(
    "sids.html",
    title=f"Semantic IDs of {facts['source']['name']}",
    facts=facts,
    room=facts["vocab_size"] ** facts["levels"],
    drift=_drift(facts) if facts["drift"] else [],
    drift_line=drift_line(facts),
    brought_line=brought_line(facts),
    warnings=sid_quality.dear(sid_quality.of_facts(facts)),
    levels=levels(facts),
    picture=plots.png(plots.sid_space(codebooks, tokens)),
    followers=[
      (
        x["depth"],
        f"{x['prefixes']:,}",
        *(x[name] for name in ("min", "p10", "median", "p90", "max")),
        f"{x['mean']:.1f}",
      )
      for x in facts["next_tokens"]
    ],
    prefixes=prefixes(tokens, title_of, genres),
  )


def prefixes(
  tokens: np.ndarray,
  title_of: Callable[[int], str],
  genres: list[str] | None = None,
) -> dict[str, Any]:
  """Items that share a prefix, from the largest first-level clusters.

  Args:
    tokens: int [N, L].
    title_of: a row of `tokens` to what people call the item.
    genres: [N], where known.

  Returns:
    `length` of the prefixes; `genres`, whether rows have some; `titles`, the
    most that a row names; `rows`, each with `tokens`, `count` of items,
    `genres` and `titles`. Without rows where SIDs have one token: no two items
    share it.
  """
  length = min(2, tokens.shape[1] - 1)
  names, genre_table = plots.genre_table(genres) if genres else ([], None)
  rows, kinds = [], set()
  for token in np.argsort(-np.bincount(tokens[:, 0]), kind="stable"):
    inside = np.flatnonzero(tokens[:, 0] == token)
    if len(rows) == _PREFIXES or not len(inside) or not length:
      break
    distinct, group, sizes = np.unique(
      tokens[inside, :length], axis=0, return_inverse=True, return_counts=True
    )
    largest = int(sizes.argmax())
    members = inside[group.ravel() == largest]
    if len(members) < 2:
      continue
    typical = plots.typical_genres(names, genre_table, members) if names else []
    kind = tuple(name for name, _ in typical)
    if kind and kind in kinds:
      continue  # Six kinds tell more than six times drama.
    kinds.add(kind)
    rows.append(
      {
        "tokens": distinct[largest].tolist(),
        "count": len(members),
        "genres": kind,
        "titles": [title_of(i) for i in members[:_TITLES]],
      }
    )
  return {
    "length": length,
    "genres": bool(names),
    "titles": _TITLES,
    "rows": rows,
  }


def drift_line(facts: dict[str, Any]) -> str:
  """One plain sentence or two on drift; empty where nothing was added."""
  drift = facts["drift"]
  if not drift:
    return ""
  text = (
    f"{drift['newcomers']:,} items added since the fit lose "
    f"{drift['relative_error']:.1%} of the variance, fitted items "
    f"{facts['relative_error'][-1]:.1%}"
  )
  if drift["refit_due"]:
    return (
      f"{text}, more than {drift['margin']:g} times as much: a refit is due "
      "(--mode=quantize in a new --workdir)"
    )
  return f"{text}; a refit is due beyond {drift['margin']:g} times as much"


def brought_line(facts: dict[str, Any]) -> str:
  """One sentence on the file that SIDs are of; empty where they were fitted."""
  if "brought" not in facts:
    return ""
  origin = facts["brought"]
  text = (
    f"SIDs of {origin['file']}: {facts['levels']} tokens of "
    f"{facts['vocab_size']} values"
  )
  moved = origin["moved"]
  if not moved:
    return f"{text}, no two equal"
  return (
    f"{text}; {moved:,} item{'s' if moved > 1 else ''} that had the SID of "
    "another got the nearest free one"
  )


def _drift(facts: dict[str, Any]) -> list[tuple[str, ...]]:
  drift = facts["drift"]
  return [
    (
      "Fitted",
      f"{facts['fitted']:,}",
      f"{facts['relative_error'][-1]:.1%}",
      f"{facts['relative_error_unique']:.1%}",
    ),
    (
      "Added since",
      f"{drift['newcomers']:,}",
      f"{drift['relative_error']:.1%}",
      f"{drift['relative_error_unique']:.1%}",
    ),
  ]


def levels(facts: dict[str, Any]) -> list[tuple[str, ...]]:
  """A row for each level: how its codes are used, and the variance lost."""
  rows = zip(
    facts["codes_used"],
    facts["perplexity"],
    facts["largest_code"],
    facts["smallest_code"],
    facts["relative_error"],
    strict=True,
  )
  return [
    (
      str(level),
      f"{used} of {facts['vocab_size']}",
      f"{perplexity:.1f}",
      f"{largest:,}",
      f"{smallest:,}",
      f"{error:.1%}",
    )
    for level, (used, perplexity, largest, smallest, error) in enumerate(
      rows, start=1
    )
  ]
