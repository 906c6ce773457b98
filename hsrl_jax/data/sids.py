"""SIDs that a user brings: read, checked and made unique."""

import collections
import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax import files
from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data import embeddings
from hsrl_jax.errors import InputError, reading
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid import resolve, store, trie

_MAX_TOKEN = 2**20
_DIGITS = 20  # Of a token that is looked at.


class SidFile(NamedTuple):
  """A file of SIDs, of items that may be in the catalogue or not."""

  path: pathlib.Path  # Where it lies.
  digest: str  # SHA-256 of its content.
  levels: int  # L, the tokens that most of its items have.
  vocab_size: int  # V, above the largest token of these items.
  # Item to its tokens, unchecked; empty where the file is gone.
  rows: Mapping[str, Sequence[Any]]


class BroughtSids(NamedTuple):
  """SIDs of a catalogue, no two equal."""

  # int32 [N, L], row i has the tokens that the file gives item i + 1.
  given: np.ndarray
  tokens: np.ndarray  # int32 [N, L], row i is the SID of item i + 1.
  vocab_size: int  # V, above the largest token of any level.
  # int64 [M], ids of items whose last tokens were replaced, since they shared a
  # SID with another item.
  moved: np.ndarray
  index: sid_index.SidIndex  # The SidIndex of the tokens.
  file: SidFile | None = None  # That they are of; None: an array.

  @property
  def origin(self) -> dict[str, Any]:
    """Facts of the file, for report.json; see `sid_page.brought_line`."""
    return {
      "file": self.file.path.name,
      "sha256": self.file.digest,
      "moved": len(self.moved),
    }


def read_file(path: str | pathlib.Path) -> SidFile:
  """Reads a file of SIDs; `of_items` checks them.

  The file is one of

  - .json: {item: [token, ...]};
  - .npz: item_id [M] and tokens int [M, L];
  - .csv: a header, then rows of an item and its L tokens.

  Levels may have vocabularies of their own; V is the largest.

  Raises:
    InputError: the file is missing or malformed, or no item has tokens.
  """
  path = pathlib.Path(path)
  readers = {".json": _read_json, ".npz": _read_npz, ".csv": _read_csv}
  if path.suffix not in readers:
    raise InputError(
      f"{path}: SIDs in a file of the kind {path.suffix!r}; expected "
      f"{', '.join(readers)}"
    )
  if not path.is_file():
    raise InputError(f"{path} is no file; expected the SIDs of all items")
  with reading(
    path,
    "SIDs as .json {item: tokens}, .npz with item_id and tokens, or .csv with "
    "a header and rows of an item and its tokens",
  ):
    rows = readers[path.suffix](path)
  levels = collections.Counter(len(x) for x in rows.values() if len(x))
  usual = levels.most_common(1)[0][0] if levels else 0
  whole = [row for row in rows.values() if len(row) == usual]
  known = [int(str(x)) for row in whole for x in row if _fault(x) is None]
  if not known:
    raise InputError(
      f"{path}: no item has a token; expected the SIDs of all items"
    )
  return SidFile(path, files.digest(path), usual, max(known) + 1, rows)


def taken_file(path: str, workdir: pathlib.Path) -> SidFile:
  """As `read_file`, also where the file is gone and `workdir` has its SIDs."""
  file = pathlib.Path(path)
  if not file.exists() and (workdir / store.FOLDER).exists():
    facts = store.read(workdir).facts
    origin = facts.get("brought", {})
    if origin.get("file") == file.name:
      sizes = facts["levels"], facts["vocab_size"]
      return SidFile(file, origin["sha256"], *sizes, {})
  return read_file(file)


def sized(config: QuantizerConfig, file: SidFile) -> QuantizerConfig:
  """`config` with the sizes of a file's SIDs.

  Raises:
    InputError: they are out of range.
  """
  sizes = {"levels": file.levels, "vocab_size": file.vocab_size}
  try:
    return dataclasses.replace(config, **sizes)
  except ValueError as error:
    raise InputError(f"{file.path}: {error}") from error


def of_items(file: SidFile, item_ids: Sequence[str | int]) -> BroughtSids:
  """The SIDs that a file gives the items of a catalogue.

  All items have as many tokens. Items of the file that are not in the catalogue
  are ignored.

  Args:
    file: see `read_file`.
    item_ids: the catalogue's N ids as the file spells them; item i + 1 of ours
      is item_ids[i].

  Raises:
    InputError: the file is gone; an item without SID, without tokens, with
      another number of tokens than the others, or with a token that is no
      integer from 0; or more items than SIDs.
  """
  if not file.rows:
    file = read_file(file.path)
  table = _table(file, item_ids)
  brought = unique_sids(table, str(file.path), file.vocab_size)
  return brought._replace(file=file)


def codebooks(
  rows: embeddings.Rows, tokens: np.ndarray, vocab_size: int
) -> np.ndarray:
  """Codebooks that go with given tokens, level by level.

  A token's vector is the mean, over the items that have it, of what the levels
  before leave of their features: the least-squares codebook of that level for
  this assignment. A token without items has zeros.

  Args:
    rows: [N, D], the features.
    tokens: int [N, L].
    vocab_size: V.

  Returns:
    float32 [L, V, D].
  """
  levels, width = tokens.shape[1], rows.shape[1]
  made = np.zeros((levels, vocab_size, width), np.float32)
  for level in range(levels):
    total = np.zeros((vocab_size, width))
    for start, block in embeddings.blocks(rows):
      own, rest = tokens[start : start + len(block)], block
      for before in range(level):
        rest = rest - made[before, own[:, before]]
      np.add.at(total, own[:, level], rest)
    count = np.bincount(tokens[:, level], minlength=vocab_size)
    made[level] = total / np.maximum(count, 1)[:, None]
  return made


def unique_sids(
  tokens: np.ndarray, where: str = "SIDs", vocab_size: int | None = None
) -> BroughtSids:
  """Makes SIDs unique and builds their index.

  Of items that share a SID the first keeps it. Each of the others gets the
  nearest free token, by number, at the last level, or, where no token is free
  below its prefix, another prefix. Deterministic.

  >>> unique_sids(np.asarray([[0, 1], [0, 1], [0, 0]])).moved.tolist()
  [2]

  Args:
    tokens: int [N, L], row i of item i + 1; 0 or more.
    where: names the source in errors.
    vocab_size: V; None: just above the largest token.

  Raises:
    InputError: more items than SIDs of V^L, or V^L is not below 2^63.
  """
  given, tokens = (np.array(tokens, np.int32) for _ in range(2))
  count, levels = tokens.shape
  vocab_size = vocab_size or int(tokens.max()) + 1
  try:
    resolve.check_capacity(count, levels, vocab_size)
    _, first = np.unique(tokens, axis=0, return_index=True)
    moved = np.setdiff1d(np.arange(count), first)
    if len(moved):
      taken = np.sort(resolve.numbers(tokens[first], vocab_size))
      # A token's number stands for its vector, on an axis of its level.
      codebooks = np.zeros((levels, vocab_size, levels), np.float32)
      for level in range(levels):
        codebooks[level, :, level] = np.arange(vocab_size)
      tokens[moved] = resolve.encode_unique(
        codebooks, tokens[moved].astype(np.float32), taken=taken
      )
    index = trie.build_index(tokens, vocab_size)
  except ValueError as error:
    raise InputError(f"{where}: {error}") from error
  return BroughtSids(given, tokens, vocab_size, moved + 1, index)


def _table(file: SidFile, item_ids: Sequence[str | int]) -> np.ndarray:
  """Tokens of the catalogue's items, int32 [N, L], all checked."""
  rows, names = file.rows, [str(x) for x in item_ids]

  def refuse(bad: list[str], fault: str, of: str, expected: str) -> None:
    if bad:
      raise InputError(
        f"{file.path}: item {bad[0]} has {fault} ({len(bad)} such items{of}); "
        f"expected {expected}"
      )

  refuse(
    [x for x in names if x not in rows],
    "no SID",
    f" of {len(names)}",
    "the tokens of every item: add them, or leave these items out of the logs",
  )
  refuse(
    [x for x in names if not len(rows[x])],
    "no tokens",
    "",
    "at least one: give these items tokens",
  )
  odd = [x for x in names if len(rows[x]) != file.levels]
  size = len(rows[odd[0]]) if odd else 0
  refuse(odd, f"{size} tokens", "", f"{file.levels}, as most have")
  for name in names:
    for fault in filter(None, map(_fault, rows[name])):
      raise InputError(f"{file.path}: item {name} has {fault}")
  return np.array(
    [[int(str(x)) for x in rows[name]] for name in names], np.int32
  )


def _fault(token: Any) -> str | None:
  """Fault of a token, and what was expected; None: there is none."""
  text = str(token).strip()
  if isinstance(token, bool) or not (text.isascii() and text.isdigit()):
    what = "an empty token" if not text else f"the token {token!r}"
    return f"{what}; expected integers from 0"
  if len(text) > _DIGITS or int(text) >= _MAX_TOKEN:
    return (
      f"the token {text[:_DIGITS]}; expected integers below {_MAX_TOKEN}: "
      "number the tokens of each level from 0"
    )
  return None


def _read_json(path: pathlib.Path) -> dict[str, Sequence[Any]]:
  def refuse_twice(pairs):
    _check_once([key for key, _ in pairs], path)
    return dict(pairs)

  rows = json.loads(path.read_text(), object_pairs_hook=refuse_twice)
  if not isinstance(rows, dict):
    raise ValueError(f"a {type(rows).__name__} at the top")
  for name, tokens in rows.items():
    if not isinstance(tokens, list):
      raise InputError(
        f"{path}: item {name} has {tokens!r}; expected a list of tokens"
      )
  return rows


def _read_npz(path: pathlib.Path) -> dict[str, Sequence[Any]]:
  headers = files.npz_headers(path)
  names, tokens = headers["item_id"], headers["tokens"]
  if len(tokens.shape) != 2 or tokens.dtype.kind not in "iu":
    raise ValueError(f"tokens are {tokens.dtype} {list(tokens.shape)}")
  if names.shape != tokens.shape[:1]:
    raise ValueError(f"item_id {list(names.shape)}, {tokens.shape[0]} tokens")
  with path.open("rb") as file, np.load(file) as arrays:
    names, tokens = arrays["item_id"], arrays["tokens"]
  names = [str(x) for x in names.tolist()]
  _check_once(names, path)
  return dict(zip(names, tokens.tolist(), strict=True))


def _read_csv(path: pathlib.Path) -> dict[str, Sequence[Any]]:
  with path.open(newline="", encoding="utf-8-sig") as file:
    rows = [row for row in csv.reader(file) if row][1:]
  _check_once([row[0] for row in rows], path)
  return {row[0]: row[1:] for row in rows}


def _check_once(names: list[str], path: pathlib.Path) -> None:
  name, count = (
    collections.Counter(names).most_common(1)[0] if names else ("", 1)
  )
  if count > 1:
    raise InputError(
      f"{path}: item {name} is there {count} times; expected one SID an item"
    )
