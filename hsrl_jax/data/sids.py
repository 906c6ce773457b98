"""SIDs that a user brings: read, checked and made unique."""

import collections
import csv
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid import resolve, trie

_MAX_TOKEN = 2**20


class BroughtSids(NamedTuple):
  """SIDs of a catalogue, no two equal.

  Attributes:
    tokens: int32 [N, L], row i is the SID of item i + 1.
    vocab_size: V, above the largest token of any level.
    moved: int64 [M], ids of items whose last tokens were replaced, since they
      shared a SID with another item.
    index: the SidIndex of the tokens.
  """

  tokens: np.ndarray
  vocab_size: int
  moved: np.ndarray
  index: sid_index.SidIndex


def read_sids(
  path: str | pathlib.Path, item_ids: Sequence[str | int]
) -> BroughtSids:
  """Reads the SIDs of a catalogue from a file.

  The file is one of

  - .json: {item: [token, ...]};
  - .npz: item_id [M] and tokens int [M, L];
  - .csv: a header, then rows of an item and its L tokens.

  All items have as many tokens. Levels may have vocabularies of their own; V
  is the largest. Items of the file that are not in the catalogue are ignored.

  Args:
    path: of the file.
    item_ids: the catalogue's N ids as the file spells them; item i + 1 of ours
      is item_ids[i].

  Raises:
    InputError: the file is missing or malformed; an item without SID, listed
      twice, without tokens, with another number of tokens than the others, or
      with a token that is no integer from 0; or more items than SIDs.
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
  try:
    rows = readers[path.suffix](path)
  except InputError:
    raise
  except (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    csv.Error,
    zipfile.BadZipFile,
  ) as error:
    what = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"{path} cannot be read ({what}); expected SIDs as .json {{item: "
      "tokens}, .npz with item_id and tokens, or .csv with a header and rows "
      "of an item and its tokens"
    ) from error
  return unique_sids(_table(rows, item_ids, path), str(path))


def unique_sids(tokens: np.ndarray, where: str = "SIDs") -> BroughtSids:
  """Makes SIDs unique and builds their index.

  Of items that share a SID the first keeps it. Each of the others gets the
  nearest free token, by number, at the last level, or, where no token is free
  below its prefix, another prefix. Deterministic.

  >>> unique_sids(np.asarray([[0, 1], [0, 1], [0, 0]])).moved.tolist()
  [2]

  Args:
    tokens: int [N, L], row i of item i + 1; 0 or more.
    where: names the source in errors.

  Raises:
    InputError: more items than SIDs of V^L, or V^L is not below 2^63.
  """
  tokens = np.array(tokens, np.int32)
  count, levels = tokens.shape
  vocab_size = int(tokens.max()) + 1
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
  return BroughtSids(tokens, vocab_size, moved + 1, index)


def _table(
  rows: Mapping[str, Sequence[Any]],
  item_ids: Sequence[str | int],
  path: pathlib.Path,
) -> np.ndarray:
  """Tokens of the catalogue's items, int32 [N, L], all checked."""
  names = [str(x) for x in item_ids]
  missing = [name for name in names if name not in rows]
  if missing:
    raise InputError(
      f"{path}: item {missing[0]} has no SID ({len(missing)} such items of "
      f"{len(names)}); expected the tokens of every item: add them, or leave "
      "these items out of the logs"
    )
  sizes = [len(rows[name]) for name in names]
  empty = [name for name, size in zip(names, sizes, strict=True) if not size]
  if empty:
    raise InputError(
      f"{path}: item {empty[0]} has no tokens ({len(empty)} such items); "
      "expected at least one: give these items tokens"
    )
  levels = collections.Counter(sizes).most_common(1)[0][0]
  odd = [n for n, s in zip(names, sizes, strict=True) if s != levels]
  if odd:
    raise InputError(
      f"{path}: item {odd[0]} has {len(rows[odd[0]])} tokens ({len(odd)} such "
      f"items); expected {levels}, as most have"
    )
  table = np.zeros((len(names), levels), np.int32)
  for row, name in enumerate(names):
    for level, token in enumerate(rows[name]):
      table[row, level] = _token(token, name, path)
  return table


def _token(token: Any, name: str, path: pathlib.Path) -> int:
  text = str(token).strip()
  if isinstance(token, bool) or not (text.isascii() and text.isdigit()):
    what = "an empty token" if not text else f"the token {token!r}"
    raise InputError(
      f"{path}: item {name} has {what}; expected integers from 0"
    )
  if int(text) >= _MAX_TOKEN:
    raise InputError(
      f"{path}: item {name} has the token {text}; expected integers below "
      f"{_MAX_TOKEN}: number the tokens of each level from 0"
    )
  return int(text)


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
  with path.open("rb") as file, np.load(file) as arrays:
    names, tokens = arrays["item_id"], arrays["tokens"]
  if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
    raise ValueError(f"tokens are {tokens.dtype} {list(tokens.shape)}")
  if names.shape != tokens.shape[:1]:
    raise ValueError(f"item_id {list(names.shape)}, {len(tokens)} tokens")
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
