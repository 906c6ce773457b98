"""Sizes of the semantic action space side by side, so that one is chosen."""

import dataclasses
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np

from hsrl_jax import files, sid
from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data import embeddings
from hsrl_jax.evaluation import sid_quality
from hsrl_jax.report import page, tables
from hsrl_jax.stages import quantizer_fit

_BEAMS, _USERS, _CALLS = 50, 8, 10
_COLUMNS = (
  ("full", "full", "{:.1%}"),
  ("loss", "relative_error", "{:.1%}"),
  ("unique", "relative_error_unique", "{:.1%}"),
  ("collided", "collided_items", "{:,}"),
  ("index MB", "index_megabytes", "{:,.1f}"),
  ("fit s", "fit_seconds", "{:,.1f}"),
  ("SIDs s", "sids_seconds", "{:,.1f}"),
  ("decode ms", "decode_milliseconds", "{:,.2f}"),
)


def run(
  config: QuantizerConfig,
  workdir: pathlib.Path,
  catalogue: embeddings.Embeddings,
  name: str,
  sizes: list[tuple[int, int]],
) -> list[dict[str, Any]]:
  """Fits each size; writes sweep.json and sweep.html.

  Each of `sizes` is (V, L); `name` is that of the catalogue, for people.

  Returns:
    A row for each size: see `_measure`; `fits` is False, and nothing else is
    there, where the catalogue has more items than there are SIDs.

  Raises:
    InputError: a row is not finite.
  """
  rows = catalogue.rows
  ids = catalogue.item_ids
  quantizer_fit.check_finite(
    rows, np.arange(1, rows.shape[0] + 1) if ids is None else ids, name
  )
  measured = []
  for vocab_size, levels in sizes:
    size = {"vocab_size": vocab_size, "levels": levels}
    fits = vocab_size**levels >= rows.shape[0]
    if fits:
      own = dataclasses.replace(config, **size)
      size |= _measure(own, rows)
    measured.append(size | {"fits": fits})
  files.write_json(
    workdir / "sweep.json",
    {"source": name, "items": rows.shape[0], "sizes": measured},
  )
  files.write_atomic(workdir / "sweep.html", _page(measured, rows, name))
  return measured


def table(sizes: list[dict[str, Any]]) -> str:
  """The rows of `run` for a terminal, at most 80 columns wide."""
  head = ("V x L", *(title for title, _, _ in _COLUMNS))
  parts = [tables.aligned([head, *map(_cells, sizes)], left=0)]
  names = ("vocab_size", "levels", "relative_error", "relative_error_unique")
  fitted = [[row[x] for x in names] for row in sizes if row["fits"]]
  best, said = sid_quality.recommend([sid_quality.Size(*x) for x in fitted])
  if best is not None:
    parts.append(f"\nrecommended: {best.name}, which loses least")
  return "\n".join([*parts, *map(tables.filled, said)])


def _measure(config: QuantizerConfig, rows: embeddings.Rows) -> dict[str, Any]:
  """Measures of one size; times are of this machine."""
  start = time.monotonic()
  codebooks = quantizer_fit.fit(config, rows)
  fitted = time.monotonic()
  tokens = quantizer_fit.encode(codebooks, rows, config)
  error = sid_quality.errors(codebooks, rows, tokens.plain, tokens.unique)
  index = sid.build_index(tokens.unique, config.vocab_size)
  return {
    "full": rows.shape[0] / config.vocab_size**config.levels,
    "relative_error": sid_quality.relative(
      error["plain"][-1], error["variance"]
    ),
    "relative_error_unique": sid_quality.relative(
      error["unique"], error["variance"]
    ),
    "collided_items": sid_quality.collided(tokens.plain, config.vocab_size),
    "index_megabytes": sum(x.nbytes for x in jax.tree.leaves(index)) / 1e6,
    "fit_seconds": fitted - start,
    "sids_seconds": tokens.seconds["unique"],
    "decode_milliseconds": 1e3 * _decode_seconds(index),
  }


def _decode_seconds(index: sid.SidIndex) -> float:
  """Median seconds of a beam search by random logits."""

  @jax.jit
  def decode(index, logits):
    def search(logits):
      return sid.beam_search(
        index,
        logits,
        lambda context, level: jax.nn.log_softmax(context[level]),
        lambda context, token, level: context,
        beams=_BEAMS,
      ).items

    return jax.vmap(search)(logits)

  shape = (_USERS, index.levels, index.vocab_size)
  logits = jax.random.normal(jax.random.key(0), shape)
  decode(index, logits).block_until_ready()
  times = []
  for _ in range(_CALLS):
    start = time.monotonic()
    decode(index, logits).block_until_ready()
    times.append(time.monotonic() - start)
  return statistics.median(times)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
  name = f"{row['vocab_size']}x{row['levels']}"
  if not row["fits"]:
    return (name, "over", *["-"] * (len(_COLUMNS) - 1))
  return (name, *(form.format(row[key]) for _, key, form in _COLUMNS))


def _page(sizes, rows: embeddings.Rows, name: str) -> str:
  return page.render(
    "sweep.html",
    title=f"Sizes of semantic IDs for {name}",
    items=rows.shape[0],
    width=rows.shape[1],
    head=("V x L", *(title for title, _, _ in _COLUMNS)),
    rows=map(_cells, sizes),
    beams=_BEAMS,
    users=_USERS,
    calls=_CALLS,
  )
