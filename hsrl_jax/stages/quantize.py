"""Stage `quantize`: embeddings to codebooks, unique SIDs, index and report."""

import contextlib
import dataclasses
import pathlib
import shutil
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from hsrl_jax import files, sid
from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data import embeddings
from hsrl_jax.data import sids as sids_lib
from hsrl_jax.data.source import Items
from hsrl_jax.errors import InputError, reading
from hsrl_jax.evaluation import sid_quality
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.report import sid_page
from hsrl_jax.sid import store
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.stages.quantizer_fit import (
  FITS,
  Encoded,
  Source,
  bar_after,
  check_finite,
  check_size,
  encode,
  fit_or_resume,
)

KIND = workdir_lib.Kind(
  "a folder of SIDs",
  (*store.FILES, "report.html"),
  lambda folder: (folder / "sids.npz").exists(),
)


def source_of(path: pathlib.Path) -> Source:
  """A file as a source.

  Raises:
    InputError: there is no such file.
  """
  size = path.stat().st_size if path.exists() else 0
  with bar_after(size, "read", "B") as bar, reading(path, "a file"):
    return Source(path.name, files.digest(path, bar.update))


def of_dataset(items: Items) -> embeddings.Embeddings:
  """The items of a prepared dataset, without padding."""
  ids = items.ids
  titles = [
    title or f"item {name}"
    for title, name in zip(items.titles, ids, strict=True)
  ]
  return embeddings.Embeddings(
    items.features[1:], np.array(ids[1:]), np.array(titles[1:])
  )


def run(
  config: QuantizerConfig,
  workdir: pathlib.Path,
  catalogue: embeddings.Embeddings,
  source: Source,
  genres: list[str] | None = None,
  brought: sids_lib.BroughtSids | None = None,
) -> dict[str, Any]:
  """Writes `sids/`: codebooks, SIDs, index and report, all or nothing.

  A fit that was killed goes on after the last level that it had saved.

  Returns:
    What report.json holds.

  Raises:
    InputError: V^L is too small for the catalogue, a row is not finite, SIDs
      lose more than the mean vector would, or `sids/` holds something else.
  """
  workdir_lib.check_replaceable(workdir / store.FOLDER, KIND)
  rows = catalogue.rows
  count = rows.shape[0]
  item_id = catalogue.item_ids
  if item_id is None:
    item_id = np.arange(1, count + 1)
  check_size(count, config.levels, config.vocab_size)
  check_finite(rows, item_id, source.name)
  start = time.monotonic()
  if brought is None:
    codebooks = fit_or_resume(config, workdir, rows, source)
  else:
    codebooks = sids_lib.codebooks(rows, brought.tokens, config.vocab_size)
  fitted = time.monotonic()
  encoded = (
    encode(codebooks, rows, config)
    if brought is None
    else Encoded(brought.given, brought.tokens, {"plain": 0.0, "unique": 0.0})
  )
  if config.assignment == "shuffled":
    order = np.random.default_rng(0).permutation(count)
    encoded = encoded._replace(unique=encoded.unique[order])
  with bar_after(count, "measure", "item") as bar:
    error = sid_quality.errors(
      codebooks, rows, encoded.plain, encoded.unique, bar.update
    )
  vocab_size = config.vocab_size
  facts = {
    "source": source._asdict(),
    "levels": config.levels,
    "vocab_size": vocab_size,
    "fitted": count,
    "variance": error["variance"],
    "relative_error": [
      sid_quality.relative(x, error["variance"]) for x in error["plain"]
    ],
    "relative_error_unique": sid_quality.relative(
      error["unique"], error["variance"]
    ),
    "collided_items": sid_quality.collided(encoded.plain, vocab_size),
    "recall_at_10": sid_quality.recall(codebooks, rows, encoded.unique),
    "seconds": {"fit": fitted - start, **encoded.seconds},
    "drift": None,
    **({} if brought is None else {"brought": brought.origin}),
  }
  sids = store.Sids(
    codebooks=codebooks,
    index=sid.build_index(encoded.unique, vocab_size),
    item_id=item_id,
    tokens=encoded.unique,
    active=np.ones(count, bool),
    title=catalogue.titles,
    facts=facts,
  )
  _forget_fits(workdir / FITS)
  size = sid_quality.of_facts(facts)
  # Shuffled SIDs are as bad as they are meant to be.
  if config.assignment != "shuffled" and size.error_unique > 1:
    raise InputError(
      f"--sid_vocab_size, --sid_levels: {sid_quality.refusal(size)}"
    )
  return write(workdir, sids, genres)


def _forget_fits(folder: pathlib.Path) -> None:
  """Removes the checkpoints of all fits, and nothing else."""
  for path in folder.glob(f"{'[0-9a-f]' * 16}-{'[0-9a-f]' * 16}"):
    shutil.rmtree(path, ignore_errors=True)
  with contextlib.suppress(OSError):
    folder.rmdir()


def load(
  workdir: pathlib.Path,
  items: Items,
  config: QuantizerConfig,
  given: np.ndarray | None = None,
) -> Catalogue:
  """The catalogue of a dataset with the SIDs that `run` wrote.

  `given` are tokens as a file has them, int [N, L], which may collide; None:
  those of residual k-means.

  Raises:
    InputError: `sids/` is missing, damaged or of another catalogue.
  """
  vocab_size = config.vocab_size
  stored = store.read(workdir)
  count = len(items.features) - 1
  sizes = (len(stored.tokens), stored.index.vocab_size)
  if sizes != (count, vocab_size):
    raise InputError(
      f"{workdir / store.FOLDER} has {sizes[0]} SIDs with {sizes[1]} values a "
      f"token; expected {count} with {vocab_size}: run --mode=quantize in a "
      "new --workdir"
    )
  index = stored.index
  if config.assignment == "plain":
    # The trie stays that of the unique SIDs, which find the items.
    plain = given
    if plain is None:
      plain = np.asarray(sid.encode(stored.codebooks, items.features[1:]))
    tokens = tuple(
      x.at[1:].set(y.astype(x.dtype))
      for x, y in zip(index.tokens, plain.T, strict=True)
    )
    index = dataclasses.replace(index, tokens=tokens)
  return Catalogue(
    jnp.asarray(items.features), index, jnp.asarray(stored.codebooks)
  )


def write(
  workdir: pathlib.Path, sids: store.Sids, genres: list[str] | None = None
) -> dict[str, Any]:
  """Writes `sids/` and returns the facts, completed by how codes are used."""
  rows = np.flatnonzero(sids.active)
  tokens = sids.tokens[rows]
  facts = sids.facts | {
    "items": len(rows),
    "sids": len(sids.tokens),
    **sid_quality.occupancy(tokens, sids.index.vocab_size),
  }

  def title_of(row):
    title = "" if sids.title is None else sids.title[rows[row]]
    return str(title) or f"item {sids.item_id[rows[row]]}"

  page = sid_page.render(facts, sids.codebooks, tokens, title_of, genres)
  with workdir_lib.replace_folder(workdir / store.FOLDER, KIND) as folder:
    store.write(folder, sids._replace(facts=facts))
    files.write_atomic(folder / "report.html", page)
  return facts


def titles_of(
  old: store.Sids, new: np.ndarray | None, fresh: np.ndarray
) -> np.ndarray | None:
  """Titles after the fresh ones of the newcomers were added; "" unknown."""
  if old.title is None and new is None:
    return None
  before = np.full(len(old.item_id), "") if old.title is None else old.title
  after = np.full(int(fresh.sum()), "") if new is None else new[fresh]
  return np.concatenate([before, after])
