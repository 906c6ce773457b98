"""The folder `sids/`: codebooks, SIDs and index of a catalogue, as files."""

import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from hsrl_jax import files
from hsrl_jax.errors import InputError
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid import trie

FOLDER = "sids"
FILES = ("codebooks.npz", "sids.npz", "index.npz", "report.json")
FORMAT = 1  # Of codebooks.npz and sids.npz.
_INDEX_FORMAT = 1  # Of index.npz.


class Sids(NamedTuple):
  """Contents of `sids/`."""

  codebooks: np.ndarray  # float32 [L, V, D].
  # All items ever; the item of row i has the id i + 1 in the index.
  index: sid_index.SidIndex
  # int64 or str [N], the ids as the catalogue's owner gave them.
  item_id: np.ndarray
  tokens: np.ndarray  # int32 [N, L].
  active: np.ndarray  # bool [N].
  title: np.ndarray | None  # str [N], or None.
  facts: dict[str, Any]  # Contents of report.json.


def write(folder: pathlib.Path, sids: Sids) -> None:
  """Writes codebooks.npz, sids.npz, index.npz and report.json.

  Args:
    folder: an existing folder; the caller renames it when all is written.
    sids: the contents.
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
  save_index(folder / "index.npz", sids.index)
  files.write_json(folder / "report.json", sids.facts)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads codebooks.npz or sids.npz, and checks its format."""
  return files.read_npz(path, FORMAT)


def read(workdir: pathlib.Path) -> Sids:
  """Reads `sids/`, and checks that its files belong together.

  Raises:
    InputError: a file is missing, damaged, of another format, or belongs to
      other codebooks.
  """
  folder = workdir / FOLDER
  if not folder.exists():
    raise InputError(
      f"{folder} is missing; expected the SIDs of a catalogue: run "
      "the stage quantize first"
    )
  path = folder / "sids.npz"
  saved = _guard(read_npz, path)
  codebooks = _guard(
    lambda x: read_npz(x)["codebooks"], folder / "codebooks.npz"
  )
  try:
    tokens, active = saved["tokens"], saved["active"]
    named, beside = str(saved["codebooks"]), _hash(codebooks)
    index = _guard(load_index, folder / "index.npz")
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
      f"{path} lacks {error}; expected what the stage quantize wrote: "
      "restore it, or run that stage in a new workdir"
    ) from error
  ids = np.arange(1, len(tokens) + 1)
  same = (
    named == beside
    and index.num_items == len(tokens)
    and np.array_equal(sid_index.sid_of(index, ids), tokens)
    and np.array_equal(np.asarray(index.active)[ids], active)
  )
  if not same:
    raise InputError(
      f"{path} is of other codebooks than those beside it, or index.npz is of "
      f"other SIDs (codebooks {named}, beside it {beside}); expected files "
      "of one run: restore them, or run quantize in a new workdir"
    )
  return result


def save_index(path: str | os.PathLike, index: sid_index.SidIndex) -> None:
  """Writes the index to `path`, one .npz, all or nothing."""
  buffer = io.BytesIO()
  np.savez(buffer, format=_INDEX_FORMAT, **trie.to_arrays(index))
  files.write_atomic(pathlib.Path(path), buffer.getvalue())


def load_index(path: str | os.PathLike) -> sid_index.SidIndex:
  """Reads what `save_index` wrote: the same index, array for array.

  Raises:
    ValueError: the file is damaged, of another kind or of another format.
    OSError: the file cannot be opened.
  """
  with open(path, "rb") as file:
    try:
      return _read_index(file)
    except Exception as error:  # Any error of the readers is a damaged file.
      raise ValueError(
        f"{path} is no index that can be read ({error}); expected a file that "
        "save_index wrote: write it again"
      ) from error


def _read_index(file: BinaryIO) -> sid_index.SidIndex:
  """Reads an index; any exception means that the file is damaged."""
  with np.load(file) as arrays:
    if arrays["format"] != _INDEX_FORMAT:
      raise ValueError(f"format {arrays['format']}, expected {_INDEX_FORMAT}")
    return trie.from_arrays(arrays)


def _hash(codebooks: np.ndarray) -> str:
  """Fingerprint of codebooks, 16 hexadecimal digits."""
  return hashlib.sha256(codebooks.tobytes()).hexdigest()[:16]


def _guard(reader: Callable[[pathlib.Path], Any], path: pathlib.Path) -> Any:
  """Calls a reader; any of its errors becomes an InputError."""
  try:
    return reader(path)
  except InputError:
    raise
  except Exception as error:  # noqa: BLE001 (any reader error is bad input)
    what = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"{path} cannot be read ({what}); expected what the stage "
      "quantize wrote: restore it, or run that stage in a new workdir"
    ) from error
