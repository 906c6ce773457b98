"""Stage `quantize`: embeddings to codebooks, unique SIDs, an index, a report.

Also what comes after it: items are added and removed, with SIDs for life.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import config as config_lib
from hsrl_jax import files, sid
from hsrl_jax.agents.base import ActionSpace
from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data import embeddings
from hsrl_jax.data import sids as sids_lib
from hsrl_jax.data.source import Items
from hsrl_jax.engine import checkpoint
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import sid_quality
from hsrl_jax.host import watch
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.report import sid_page
from hsrl_jax.sid import store

KIND = workdir_lib.Kind(
  "a folder of SIDs",
  (*store.FILES, "report.html"),
  lambda folder: (folder / "sids.npz").exists(),
)
_FITS = ".fit"  # Checkpoints of fits that are not finished.
_WORTH_SAVING = 2.0  # Seconds of work that a checkpoint must save.
_BAR_AFTER = 2.0  # Seconds before a progress bar shows.


class Source(NamedTuple):
  """What SIDs are made of.

  Attributes:
    name: of the file or dataset, for people.
    digest: of the content; empty for a dataset, which checks itself.
  """

  name: str
  digest: str = ""


def source_of(path: pathlib.Path) -> Source:
  """A file as a source.

  Raises:
    InputError: there is no such file.
  """
  size = path.stat().st_size if path.exists() else 0
  with _bar(size, "read", "B") as bar:
    return Source(path.name, embeddings.digest(path, bar.update))


def of_dataset(items: Items) -> embeddings.Embeddings:
  """The items of a prepared dataset, without padding."""
  titles = [
    title or f"item {external or item}"
    for item, (title, external) in enumerate(
      zip(items.titles, items.external_ids, strict=True)
    )
  ]
  return embeddings.Embeddings(
    items.features[1:],
    np.arange(1, len(items.features)),
    np.array(titles[1:], dtype=str),
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

  Args:
    config: of the quantizer.
    workdir: of the run.
    catalogue: the items.
    source: where they are from.
    genres: [N] for the report, where known.
    brought: the SIDs of the items, where they are not to be fitted.

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
    order = np.random.default_rng(config.seed).permutation(count)
    encoded = encoded._replace(unique=encoded.unique[order])
  with _bar(count, "measure", "item") as bar:
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
    "recall_at_10": sid_quality.recall(
      codebooks, rows, encoded.unique, config.seed
    ),
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
  _forget_fits(workdir / _FITS)
  size = sid_quality.of_facts(facts)
  # Shuffled SIDs are as bad as they are meant to be.
  if config.assignment != "shuffled" and size.error_unique > 1:
    raise InputError(
      f"--sid_vocab_size, --sid_levels, --sid_balance: "
      f"{sid_quality.refusal(size)}"
    )
  return _write(workdir, sids, genres)


def _forget_fits(folder: pathlib.Path) -> None:
  """Removes the checkpoints of all fits, and nothing else."""
  for path in folder.glob(f"{'[0-9a-f]' * 16}-{'[0-9a-f]' * 16}"):
    shutil.rmtree(path, ignore_errors=True)
  with contextlib.suppress(OSError):
    folder.rmdir()


def add_items(
  workdir: pathlib.Path, new: embeddings.Embeddings, where: str
) -> dict[str, Any]:
  """Adds items to the SIDs of a workdir; codebooks and other SIDs stay.

  An id that was removed gets its SID back, whatever its embedding is now.

  Args:
    workdir: with `sids/`.
    new: what is added, with ids; held in memory.
    where: names the source in errors.

  Returns:
    What report.json holds now.

  Raises:
    InputError: an id that is in the catalogue; no ids; embeddings of another
      width or not finite; no room; `sids/` missing or damaged.
  """
  old = store.read(workdir)
  width = old.codebooks.shape[2]
  if new.rows.shape[1] != width:
    raise InputError(
      f"{where}: embeddings have {new.rows.shape[1]} dimensions; expected "
      f"{width}, as the catalogue in {workdir} has"
    )
  if new.item_ids is None:
    raise InputError(
      f"{where} has no item ids; expected an .npz or .parquet file with "
      "item_id, since new items need ids that are free"
    )
  ids = embeddings.like(new.item_ids, old.item_id, where)
  check_finite(new.rows, ids, where)
  row = _rows_of(old.item_id, ids)
  _refuse(ids[(row >= 0) & old.active[row]], where, "in the catalogue already")
  fresh = row < 0
  total = len(old.item_id) + int(fresh.sum())
  check_size(total, *old.codebooks.shape[:2])
  row[fresh] = np.arange(len(old.item_id), total)
  x = np.asarray(new.rows[0 : len(ids)])
  index = sid.add_items(old.index, row + 1, old.codebooks, x)
  tokens = np.asarray(sid.sid_of(index, np.arange(1, total + 1)))
  facts = old.facts
  if fresh.any():
    error = sid_quality.errors(
      old.codebooks,
      x[fresh],
      np.asarray(sid.encode(old.codebooks, x[fresh])),
      tokens[len(old.item_id) :],
    )
    facts = facts | {"drift": sid_quality.drift(facts, int(fresh.sum()), error)}
  return _write(
    workdir,
    old._replace(
      index=index,
      item_id=np.concatenate([old.item_id, ids[fresh]]),
      tokens=tokens,
      active=np.asarray(index.active)[1 : total + 1],
      title=_titles(old, new.titles, fresh),
      facts=facts,
    ),
  )


def remove_items(
  workdir: pathlib.Path, ids: np.ndarray, where: str
) -> dict[str, Any]:
  """Removes items from the SIDs of a workdir; their SIDs stay reserved.

  Args:
    workdir: with `sids/`.
    ids: int64 or str [M], as given with the embeddings.
    where: names the source in errors.

  Returns:
    What report.json holds now.

  Raises:
    InputError: an id that is not in the catalogue; no item would stay; `sids/`
      missing or damaged.
  """
  old = store.read(workdir)
  ids = embeddings.like(ids, old.item_id, where)
  row = _rows_of(old.item_id, ids)
  _refuse(ids[(row < 0) | ~old.active[row]], where, "not in the catalogue")
  if len(ids) == old.active.sum():
    raise InputError(
      f"{where} names all {len(ids)} items; expected at least one to stay"
    )
  index = sid.remove_items(old.index, row + 1)
  active = np.asarray(index.active)[1 : len(old.active) + 1]
  return _write(workdir, old._replace(index=index, active=active))


class Encoded(NamedTuple):
  """Tokens of a catalogue.

  Attributes:
    plain: int32 [N, L], of residual k-means alone.
    unique: int32 [N, L], the SIDs.
    seconds: that `plain` and `unique` took.
  """

  plain: np.ndarray
  unique: np.ndarray
  seconds: dict[str, float]


def encode(
  codebooks: np.ndarray, rows: embeddings.Rows, config: QuantizerConfig
) -> Encoded:
  """Plain tokens and unique SIDs of all rows, with the time they took."""
  count = rows.shape[0]
  plain = np.empty((count, len(codebooks)), np.int32)
  with _bar(2 * count, "SIDs", "item") as bar:  # Each is looked at twice.
    start = time.monotonic()
    for first, block in embeddings.blocks(rows):
      plain[first : first + len(block)] = sid.encode(codebooks, block)
      bar.update(len(block))
    between = time.monotonic()
    unique = np.asarray(
      sid.encode_unique(codebooks, rows, balance=config.balance)
    )
    bar.update(count)
  end = time.monotonic()
  return Encoded(
    plain, unique, {"plain": between - start, "unique": end - between}
  )


def fit(
  config: QuantizerConfig,
  rows: embeddings.Rows,
  *,
  initial: np.ndarray | None = None,
  on_level: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:
  """Codebooks, float32 [L, V, D], as the configuration has it; see sid.fit."""
  title = f"quantize: fit {config.vocab_size}x{config.levels}"
  with watch.bar(config.levels, title, "level") as bar:

    def done(codebooks):
      bar.update(len(codebooks) - bar.n)
      if on_level is not None:
        on_level(codebooks)

    return np.asarray(
      sid.fit(
        jax.random.key(config.seed),
        rows,
        levels=config.levels,
        vocab_size=config.vocab_size,
        iterations=config.iterations,
        restarts=config.restarts,
        batch_size=config.batch_size,
        balance=config.balance,
        initial=initial,
        on_level=done,
      )
    )


def fit_or_resume(
  config: QuantizerConfig,
  workdir: pathlib.Path,
  rows: embeddings.Rows,
  source: Source,
) -> np.ndarray:
  """As `fit`, or goes on with one that was stopped; float32 [L, V, D].

  Long fits leave a checkpoint after each level, below a name of its own for
  each configuration and content.
  """
  shape = (config.levels, config.vocab_size, rows.shape[1])
  content = hashlib.sha256((source.digest or source.name).encode())
  name = f"{config_lib.fingerprint(config)}-{content.hexdigest()[:16]}"
  like = {
    "codebooks": np.zeros(shape, np.float32),
    "levels": np.array(0, np.int32),
  }
  with checkpoint.open_directory(workdir / _FITS / name) as checkpointer:
    state = checkpoint.restore_latest(checkpointer, like)
    initial = None
    if state is not None:
      initial = np.asarray(state["codebooks"])[: int(state["levels"])]
    last = time.monotonic()

    def save(codebooks):
      nonlocal last
      if time.monotonic() - last < _WORTH_SAVING:
        return
      level = len(codebooks)
      padded = np.zeros(shape, np.float32)
      padded[:level] = codebooks
      state = {"codebooks": padded, "levels": np.array(level, np.int32)}
      checkpoint.save(checkpointer, level, state)
      last = time.monotonic()

    return fit(config, rows, initial=initial, on_level=save)


def check_size(count: int, levels: int, vocab_size: int) -> None:
  """Raises InputError where V^L is too small for `count` items."""
  try:
    sid.check_capacity(count, levels, vocab_size)
  except ValueError as error:
    raise InputError(f"--sid_vocab_size, --sid_levels: {error}") from error


def check_finite(rows: embeddings.Rows, ids: np.ndarray, where: str) -> None:
  """Raises InputError where a row, [N, D], is not finite; shows progress."""
  with _bar(len(ids), "check", "item") as bar:
    embeddings.check_finite(rows, ids, where, bar.update)


def load(
  workdir: pathlib.Path,
  items: Items,
  config: QuantizerConfig,
  given: np.ndarray | None = None,
) -> ActionSpace:
  """The catalogue of a dataset with the SIDs that `run` wrote.

  Args:
    workdir: with `sids/`.
    items: of the dataset.
    config: of the quantizer.
    given: int [N, L], tokens as a file has them, which may collide; None: those
      of residual k-means.

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
    index = dataclasses.replace(
      index, tokens=index.tokens.at[1:].set(plain.astype(index.tokens.dtype))
    )
  return ActionSpace(
    jnp.asarray(items.features), index, jnp.asarray(stored.codebooks)
  )


def _write(
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


def _titles(
  old: store.Sids, new: np.ndarray | None, fresh: np.ndarray
) -> np.ndarray | None:
  """Titles after the fresh ones of the newcomers were added; "" unknown."""
  if old.title is None and new is None:
    return None
  before = np.full(len(old.item_id), "") if old.title is None else old.title
  after = np.full(int(fresh.sum()), "") if new is None else new[fresh]
  return np.concatenate([before, after])


def _rows_of(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """The row of each id among `known`, int64; -1 where it is not there."""
  order = np.argsort(known, kind="stable")
  place = np.searchsorted(known, ids, sorter=order)
  row = order[np.minimum(place, len(known) - 1)]
  return np.where(known[row] == ids, row, -1)


def _refuse(ids: np.ndarray, where: str, what: str) -> None:
  if len(ids):
    named = ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")
    raise InputError(
      f"{where}: {len(ids)} item{'s are' if len(ids) > 1 else ' is'} {what} "
      f"({named}); expected none such: drop them from the file"
    )


def _bar(total: int, title: str, unit: str):
  return watch.bar(total, f"quantize: {title}", unit, delay=_BAR_AFTER)
