"""Items that come and go, with SIDs for life."""

import pathlib
from typing import Any

import numpy as np

from hsrl_jax import sid
from hsrl_jax.data import embeddings
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import sid_quality
from hsrl_jax.sid import store
from hsrl_jax.stages.quantize import titles_of, write
from hsrl_jax.stages.quantizer_fit import check_finite, check_size


def add_items(
  workdir: pathlib.Path, new: embeddings.Embeddings, where: str
) -> dict[str, Any]:
  """Adds items to the SIDs of a workdir; codebooks and other SIDs stay.

  An id that was removed gets its SID back, whatever its embedding is now.

  `new` has ids, and is held in memory.

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
  return write(
    workdir,
    old._replace(
      index=index,
      item_id=np.concatenate([old.item_id, ids[fresh]]),
      tokens=tokens,
      active=np.asarray(index.active)[1 : total + 1],
      title=titles_of(old, new.titles, fresh),
      facts=facts,
    ),
  )


def remove_items(
  workdir: pathlib.Path, ids: np.ndarray, where: str
) -> dict[str, Any]:
  """Removes items from the SIDs of a workdir; their SIDs stay reserved.

  `ids`, int64 or str [M], are as given with the embeddings.

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
  return write(workdir, old._replace(index=index, active=active))


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
