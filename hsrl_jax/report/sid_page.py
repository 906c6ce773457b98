"""What people ask of SIDs: measures for report.json, and a page of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hsrl_jax import sid
from hsrl_jax.data import embeddings
from hsrl_jax.report import page, plots

# A refit is due where newcomers lose this many times what fitted items lose.
DRIFT_MARGIN = 1.5
_NEIGHBOURS = 10
_QUERIES, _AMONG = 1_000, 20_000  # Sample behind the neighbours' recall.
_PREFIXES = 6
_TITLES = 6  # Of a prefix.


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
    on_rows: called with how many rows were done.

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
  """The share of the variance that is lost; 0 where there is none to lose."""
  return error / variance if variance > 1e-12 else 0.0


def recall(
  codebooks: np.ndarray, rows: embeddings.Rows, tokens: np.ndarray, seed: int
) -> dict[str, Any] | None:
  """How many of an item's nearest neighbours its reconstruction keeps.

  Of the 10 nearest to a sampled item among the reconstructions of a sample,
  the share that is not farther than the 10th nearest among the embeddings.

  Args:
    codebooks: float32 [L, V, D].
    rows: [N, D].
    tokens: int32 [N, L].
    seed: of the sample.

  Returns:
    `recall`, and the sample: `neighbours`, `queries`, `among`; None for a
    catalogue of fewer than two items.
  """
  rng = np.random.default_rng(seed)
  among = min(len(tokens), _AMONG)
  neighbours, queries = min(_NEIGHBOURS, among - 1), min(among, _QUERIES)
  if neighbours < 1:
    return None
  chosen = np.sort(rng.choice(len(tokens), among, replace=False))
  x = np.concatenate([rows[i : i + 1] for i in chosen.tolist()])
  y = np.asarray(sid.reconstruct(codebooks, tokens[chosen]))
  found = 0
  for part in np.array_split(rng.permutation(among)[:queries], 8):
    if not len(part):
      continue
    true, seen = _distances(x, part), _distances(y, part)
    limit = np.partition(true, neighbours - 1, axis=1)[:, [neighbours - 1]]
    kept = np.argpartition(seen, neighbours - 1, axis=1)[:, :neighbours]
    found += int((np.take_along_axis(true, kept, 1) <= limit).sum())
  return {
    "recall": found / (queries * neighbours),
    "neighbours": neighbours,
    "queries": queries,
    "among": among,
  }


def occupancy(tokens: np.ndarray, vocab_size: int) -> dict[str, Any]:
  """How the codes are used.

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
  shares = [u / u.sum() for u in used]
  return {
    "codes_used": [len(u) for u in used],
    "perplexity": [float(np.exp(-(p * np.log(p)).sum())) for p in shares],
    "largest_code": [int(u.max()) for u in used],
    "smallest_code": [int(u.min()) for u in used],
    "next_tokens": [
      {"depth": depth, "prefixes": len(counts), **_spread(counts)}
      for depth, counts in enumerate(plots.followers(tokens, vocab_size))
    ],
  }


def collided(plain: np.ndarray, vocab_size: int) -> int:
  """How many items share their tokens, int [N, L], with another item."""
  number = np.ravel_multi_index(plain.T, (vocab_size,) * plain.shape[1])
  _, counts = np.unique(number, return_counts=True)
  return int(counts[counts > 1].sum())


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
  return page.document(
    f"Semantic IDs of {facts['source']['name']}",
    [
      _summary(facts),
      *_drift(facts),
      "<h2>Codebooks</h2>",
      _levels(facts),
      "<h2>What is lost</h2>",
      _lost(facts),
      "<h2>The space</h2>",
      page.figure(
        plots.png(plots.sid_space(codebooks, tokens)),
        "Prefixes of two tokens in two dimensions, and the use of the codes",
        "Left: each dot is a prefix of two tokens, at the place that their "
        "codes add up to, as large as it has items; shown are the two "
        "directions with the most variance. The largest first-level codes "
        "have a strong colour, a marker and their token; tints tell the "
        "others apart. Right, above: how many items have each code. Right, "
        "below: how many tokens can follow a prefix.",
      ),
      "<h2>What can follow a prefix</h2>",
      _followers(facts),
      prefixes(tokens, title_of, genres),
    ],
  )


def prefixes(
  tokens: np.ndarray,
  title_of: Callable[[int], str],
  genres: list[str] | None = None,
) -> str:
  """HTML of items that share a prefix, from the largest first-level clusters.

  Args:
    tokens: int [N, L].
    title_of: a row of `tokens` to what people call the item.
    genres: [N], where known.
  """
  length = min(2, tokens.shape[1] - 1)
  if not length:
    return ""  # SIDs are unique: no two items share their only token.
  names, genre_table = plots.genre_table(genres) if genres else ([], None)
  rows, met = [], set()
  for token in np.argsort(-np.bincount(tokens[:, 0]), kind="stable"):
    inside = np.flatnonzero(tokens[:, 0] == token)
    if len(rows) == _PREFIXES or not len(inside):
      break
    found, group, sizes = np.unique(
      tokens[inside, :length], axis=0, return_inverse=True, return_counts=True
    )
    largest = int(sizes.argmax())
    members = inside[group.ravel() == largest]
    if len(members) < 2:
      continue
    prefix = " · ".join(map(str, found[largest]))
    kind = ""
    if names:
      typical = plots.typical_genres(names, genre_table, members)
      kind = ", ".join(name for name, _ in typical)
    if kind and kind in met:
      continue  # Six kinds tell more than six times drama.
    met.add(kind)
    titles = page.titles([title_of(i) for i in members[:_TITLES]])
    rows.append(
      f"<tr><td><code>{prefix} · *</code></td>"
      f'<td class="number">{len(members)}</td>'
      + (f"<td>{page.text(kind)}</td>" if names else "")
      + f"<td>{titles}</td></tr>"
    )
  if not rows:
    return ""
  few = "the first token" if length == 1 else f"the first {length} tokens"
  each, head = "", ""
  if names:
    each, head = ", each kind of genres once", "<th>Typical genres</th>"
  return (
    f"<h3>Items that share {few}</h3>"
    '<p class="soft">The most common prefix in the largest first-level '
    f"clusters{each}, with up to {_TITLES} items.</p>"
    '<div class="scroll"><table><thead><tr><th>SID</th>'
    f'<th class="number">Items</th>{head}<th>Some of them</th>'
    f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
  )


def drift(facts: dict[str, Any], count: int, error: dict) -> dict[str, Any]:
  """The facts' `drift` after `count` more newcomers.

  Args:
    facts: of report.json so far.
    count: newcomers.
    error: of them, as from `errors`.
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


def drift_line(facts: dict[str, Any]) -> str:
  """One plain sentence or two on drift; empty where nothing was added."""
  found = facts["drift"]
  if not found:
    return ""
  text = (
    f"{found['newcomers']:,} items added since the fit lose "
    f"{found['relative_error']:.1%} of the variance, fitted items "
    f"{facts['relative_error'][-1]:.1%}"
  )
  if found["refit_due"]:
    return (
      f"{text}, more than {found['margin']:g} times as much: a refit is due "
      "(--mode=quantize in a new --workdir)"
    )
  return f"{text}; a refit is due beyond {found['margin']:g} times as much"


def _summary(facts) -> str:
  levels, vocab_size = facts["levels"], facts["vocab_size"]
  room = vocab_size**levels
  text = (
    f"<p>Each of the {facts['items']:,} items has a semantic id (SID) of "
    f"{levels} tokens with {vocab_size} values each, coarse to fine; there is "
    f"room for {room:,}, of which {facts['sids'] / room:.1%} is taken. "
    "Two items never share a SID, and an item keeps its own for life."
  )
  removed = facts["sids"] - facts["items"]
  if removed:
    text += f" {removed:,} items were removed; their SIDs stay reserved."
  return f"{text}</p>"


def _drift(facts) -> list[str]:
  found = facts["drift"]
  if not found:
    return []
  table = page.table(
    ("", "Items", "Variance lost", "With unique SIDs"),
    [
      (
        "Fitted",
        f"{facts['fitted']:,}",
        f"{facts['relative_error'][-1]:.1%}",
        f"{facts['relative_error_unique']:.1%}",
      ),
      (
        "Added since",
        f"{found['newcomers']:,}",
        f"{found['relative_error']:.1%}",
        f"{found['relative_error_unique']:.1%}",
      ),
    ],
  )
  return [
    "<h2>Drift</h2>",
    table,
    f"<p><b>{page.text(drift_line(facts))}.</b></p>"
    if found["refit_due"]
    else f"<p>{page.text(drift_line(facts))}.</p>",
    '<p class="soft">Both in shares of the variance of the fitted items.</p>',
  ]


def _levels(facts) -> str:
  rows = zip(
    facts["codes_used"],
    facts["perplexity"],
    facts["largest_code"],
    facts["smallest_code"],
    facts["relative_error"],
    strict=True,
  )
  return page.table(
    (
      "Level",
      "Codes used",
      "Perplexity",
      "Largest code",
      "Smallest code",
      "Variance lost so far",
    ),
    [
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
    ],
  ) + (
    '<p class="soft">Perplexity: as many codes of equal size would be as '
    "uncertain; the more of the values, the better the codes are used. The "
    "largest and the smallest code: the items of a code in use. Variance "
    "lost: the squared error of the reconstruction by the levels so far.</p>"
  )


def _lost(facts) -> str:
  plain, unique = facts["relative_error"][-1], facts["relative_error_unique"]
  seconds = facts["seconds"]
  text = (
    f"<p>Plain residual k-means gives {facts['collided_items']:,} of "
    f"{facts['fitted']:,} fitted items "
    f"({facts['collided_items'] / facts['fitted']:.1%}) a SID that another "
    "item also has. Giving each its own raises the variance lost from "
    f"{plain:.2%} to {unique:.2%} and took {seconds['unique']:.1f} s, beside "
    f"{seconds['fit']:.1f} s for the fit and {seconds['plain']:.1f} s for "
    "plain tokens.</p>"
  )
  kept = facts["recall_at_10"]
  if kept is None:
    return text
  return text + (
    f"<p>Recall of the {kept['neighbours']} nearest neighbours: "
    f"<b>{kept['recall']:.1%}</b>. Of the items whose reconstructions are "
    "nearest to that of an item, this share is as near by the embeddings "
    f"({kept['queries']:,} items among {kept['among']:,}).</p>"
  )


def _followers(facts) -> str:
  return page.table(
    (
      "Tokens so far",
      "Prefixes",
      "Fewest",
      "10%",
      "Median",
      "90%",
      "Most",
      "Mean",
    ),
    [
      (
        str(x["depth"]),
        f"{x['prefixes']:,}",
        *(f"{x[name]}" for name in ("min", "p10", "median", "p90", "max")),
        f"{x['mean']:.1f}",
      )
      for x in facts["next_tokens"]
    ],
  ) + (
    '<p class="soft">How many tokens lead on to an item, over the prefixes '
    "that items have.</p>"
  )


def _spread(counts: np.ndarray) -> dict[str, float]:
  parts = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}
  found = np.percentile(counts, list(parts.values()), method="nearest")
  return {
    "mean": float(counts.mean()),
    **dict(zip(parts, found.tolist(), strict=True)),
  }


def _square_sum(x: np.ndarray) -> float:
  return float(np.square(x).sum(dtype=np.float64))


def _distances(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
  """Squared distances of rows `queries` to all rows; infinite to itself."""
  distance = (x**2).sum(1) - 2.0 * x[queries] @ x.T
  distance[np.arange(len(queries)), queries] = np.inf
  return distance
