"""The folder `sids/`: codebooks, SIDs and index of a catalogue, as files."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax import files
from hsrl_jax.errors import InputError
from hsrl_jax.sid import index as sid_index

FOLDER = "sids"
FILES = ("codebooks.npz", "sids.npz", "index.npz", "report.json")
FORMAT = 1  # Of codebooks.npz and sids.npz.


class Sids(NamedTuple):
  """What `sids/` holds.

  Attributes:
    codebooks: float32 [L, V, D].
    index: of all items ever; the item in row i has the id i + 1 there.
    item_id: int64 or str [N], the ids as given.
    tokens: int32 [N, L].
    active: bool [N].
    title: str [N], or None.
    facts: of report.json.
  """

  codebooks: np.ndarray
  index: sid_index.SidIndex
  item_id: np.ndarray
  tokens: np.ndarray
  active: np.ndarray
  title: np.ndarray | None
  facts: dict[str, Any]


def write(folder: pathlib.Path, sids: Sids) -> None:
  """Writes codebooks.npz, sids.npz, index.npz and report.json.

  Args:
    folder: exists, and is put in its place as a whole by the caller.
    sids: what is written.
  """
  columns = {
    "format": FORMAT,
    "item_id": sids.item_id,
    "tokens": sids.tokens,
    "active": sids.active,
    "codebooks": _hash(sids.codebooks),
  }
  if sids.title is not None:
    columns["title"] = sids.title
  np.savez_compressed(
    folder / "codebooks.npz", format=FORMAT, codebooks=sids.codebooks
  )
  np.savez_compressed(folder / "sids.npz", **columns)
  sid_index.save_index(folder / "index.npz", sids.index)
  files.write_json(folder / "report.json", sids.facts)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of one of the two files with a FORMAT."""
  return files.read_npz(path, FORMAT)


def read(workdir: pathlib.Path) -> Sids:
  """Reads `sids/`, and checks that its files belong together.

  Raises:
    InputError: a file is missing, damaged, of a newer version, or made with
      other codebooks.
  """
  folder = workdir / FOLDER
  if not folder.exists():
    raise InputError(
      f"{folder} is missing; expected the SIDs of a catalogue: run "
      "--mode=quantize first"
    )
  path = folder / "sids.npz"
  saved = _guard(read_npz, path)
  codebooks = _guard(
    lambda x: read_npz(x)["codebooks"], folder / "codebooks.npz"
  )
  try:
    tokens, active = saved["tokens"], saved["active"]
    found, expected = str(saved["codebooks"]), _hash(codebooks)
    index = _guard(sid_index.load_index, folder / "index.npz")
    result = Sids(
      codebooks,
      index,
      saved["item_id"],
      tokens,
      active,
      saved.get("title"),
      _guard(lambda x: json.loads(x.read_text()), folder / "report.json"),
    )
  except KeyError as error:
    raise InputError(
      f"{path} lacks {error}; expected what --mode=quantize wrote: restore "
      "it, or run that in a new --workdir"
    ) from error
  ids = np.arange(1, len(tokens) + 1)
  same = (
    found == expected
    and index.num_items == len(tokens)
    and np.array_equal(sid_index.sid_of(index, ids), tokens)
    and np.array_equal(np.asarray(index.active)[ids], active)
  )
  if not same:
    raise InputError(
      f"{path} is of other codebooks than those beside it, or index.npz is of "
      f"other SIDs (codebooks {found}, beside it {expected}); expected files "
      "of one run: restore them, or run --mode=quantize in a new --workdir"
    )
  return result


def _hash(codebooks: np.ndarray) -> str:
  return hashlib.sha256(codebooks.tobytes()).hexdigest()[:16]


def _guard(reader: Callable[[pathlib.Path], Any], path: pathlib.Path) -> Any:
  try:
    return reader(path)
  except InputError:
    raise
  except Exception as error:  # noqa: BLE001 (any reader error is bad input)
    what = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"{path} cannot be read ({what}); expected what --mode=quantize "
      "wrote: restore it, or run that in a new --workdir"
    ) from error
