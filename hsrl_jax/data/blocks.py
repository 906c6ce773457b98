"""Training slates on disk: blocks of whole sessions, and rows of their stream.

Each file of a user's logs becomes an array_record file, each record of which is
a block: rows of a structured array, by session and step, about BLOCK of them. A
session is in one block, so that `transitions` of a block are those of its rows
among all.

What is read is an endless stream: the rows of all blocks in a random order of
blocks, then those of another order, and so on. So where W rows follow W rows,
each row is in as many of these windows as any other.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from array_record.python import array_record_module

from hsrl_jax import files
from hsrl_jax.data import transitions
from hsrl_jax.errors import InputError, reading
from hsrl_jax.types import Sessions, Transition

FORMAT = 2  # Of INDEX and of the blocks.
FOLDER = "slates"  # Of a prepared dataset.
INDEX = "index.json"
BLOCK = 512  # Rows of a block at least, but for the last one of a file.
_NARROW = ("response", "terminated")  # 0 or 1, stored as a byte.
_AGAIN = "what was prepared: prepare the data again, in a new workdir"


class File(NamedTuple):
  """A block that was written to a file."""

  name: str | None  # Of the file; None where there was no row.
  bytes: int  # Its size.
  rows: list[int]  # Of each block.
  fields: list[Any]  # Of the structured array, as numpy.dtype takes them.
  # int [N' + 1], how often items were shown; N' is the last shown.
  exposures: np.ndarray
  counts: dict[str, int]  # Transitions.counts of its slates.


class Blocks(NamedTuple):
  """Training slates on disk, M blocks."""

  paths: list[pathlib.Path]  # Of the files.
  file: np.ndarray  # int [M], the number of each block's file.
  record: np.ndarray  # int [M], its place in it.
  rows: np.ndarray  # int [M].
  fields: list[Any]  # Of the structured array, as numpy.dtype takes them.
  exposures: np.ndarray  # int [N + 1], how often each item was shown.
  counts: dict[str, int]  # Transitions.counts of all slates.


def write(folder: pathlib.Path, number: int, logs: Sessions) -> File:
  """Writes the slates of a file of logs, all rows of some users."""
  counts = transitions.counts(logs)
  exposures = np.bincount(logs.exposed.ravel(), minlength=1)
  ordered = transitions.order(logs)
  fields, columns = [], {}
  for name, column in logs._asdict().items():
    if column is not None:
      column = np.asarray(column)
      dtype = np.dtype(np.uint8) if name in _NARROW else column.dtype
      fields.append([name, dtype.str, list(column.shape[1:])])
      columns[name] = column
  rows = np.empty(len(ordered.rows), _dtype(fields))
  for name, column in columns.items():
    rows[name] = column[ordered.rows]
  if not len(rows):
    return File(None, 0, [], fields, exposures, counts)
  path = folder / f"{number:05d}.array_record"
  folder.mkdir(parents=True, exist_ok=True)
  cuts = _cuts(np.flatnonzero(ordered.last) + 1)
  writer = array_record_module.ArrayRecordWriter(
    str(path), "group_size:1,zstd:1"
  )
  for start, stop in zip([0, *cuts], cuts, strict=False):
    writer.write(rows[start:stop].tobytes())
  writer.close()
  sizes = np.diff(cuts, prepend=0).tolist()
  return File(path.name, path.stat().st_size, sizes, fields, exposures, counts)


def write_index(
  folder: pathlib.Path, written: Sequence[File], items: int
) -> None:
  """Writes the list of all files, one or more with rows, to be read by it."""
  own = [x for x in written if x.name is not None]
  exposures = np.zeros(items + 1, np.int64)
  for file in own:
    exposures[: len(file.exposures)] += file.exposures
  counts = {  # What is true or false: whether it is true of some file.
    name: (any if isinstance(one, bool) else sum)(x.counts[name] for x in own)
    for name, one in own[0].counts.items()
  }
  files.write_json(
    folder / INDEX,
    {
      "format": FORMAT,
      "counts": counts,
      "fields": own[0].fields,
      "files": [{"name": x.name, "bytes": x.bytes} for x in own],
      "rows": [x.rows for x in own],
      "exposures": exposures.tolist(),
    },
  )


def load(folder: pathlib.Path) -> Blocks | None:
  """The blocks that `write` and `write_index` left in a folder, or None.

  Raises:
    InputError: a file is missing, or longer or shorter than it was.
  """
  path = folder / INDEX
  if not path.exists():
    return None
  with reading(path, _AGAIN):
    index = files.read_json(path, FORMAT)
    paths = [folder / x["name"] for x in index["files"]]
    sizes = [x["bytes"] for x in index["files"]]
    counts = [len(x) for x in index["rows"]]
    blocks = Blocks(
      paths=paths,
      file=np.repeat(np.arange(len(paths)), counts),
      record=np.concatenate([np.arange(x) for x in counts]),
      rows=np.concatenate(index["rows"]),
      fields=index["fields"],
      exposures=np.array(index["exposures"]),
      counts=index["counts"],
    )
  for path, size in zip(paths, sizes, strict=True):
    if not path.exists():
      raise InputError(f"{path} is missing; expected {_AGAIN}")
    if path.stat().st_size != size:
      raise InputError(
        f"{path} has {path.stat().st_size} bytes; expected {size}, {_AGAIN}"
      )
  return blocks


def pieces(
  rows: np.ndarray, start: int, count: int
) -> Iterator[tuple[int, int, int]]:
  """The parts of blocks that some rows of the endless stream are.

  Args:
    rows: int [M], of each block.
    start: the first row, from 0.
    count: how many there are.

  Yields:
    A block, its first row, and the one past its last.
  """
  total = int(rows.sum())
  while count > 0:
    epoch, offset = divmod(start, total)
    key = jax.random.fold_in(jax.random.key(0), epoch)
    order = np.asarray(jax.random.permutation(key, len(rows)))
    ends = np.cumsum(rows[order])
    for place in range(int(np.searchsorted(ends, offset, "right")), len(order)):
      block = int(order[place])
      stop = int(rows[block])
      first = stop - (int(ends[place]) - offset)
      stop = min(stop, first + count)
      yield block, first, stop
      offset += stop - first
      count -= stop - first
      if not count:
        return
    start = (epoch + 1) * total


def read(
  blocks: Blocks, start: int, count: int, make: Callable[[Sessions], Transition]
) -> Transition:
  """Some rows of the endless stream as transitions, numpy leaves [count, ...].

  Args:
    blocks: on disk.
    start: the first row, from 0.
    count: how many there are.
    make: slates of whole sessions to transitions in the order of
      `transitions.order`.

  Raises:
    InputError: a file is damaged.
  """
  dtype, readers, window, done = _dtype(blocks.fields), {}, None, 0
  for block, first, stop in pieces(blocks.rows, start, count):
    path = blocks.paths[blocks.file[block]]
    with reading(path, _AGAIN):
      if path not in readers:
        readers[path] = array_record_module.ArrayRecordReader(
          str(path),
          "readahead_buffer_size:0,max_parallelism:0",
          file_reader_buffer_size=2**16,
        )
      (record,) = readers[path].read([int(blocks.record[block])])
      slates = np.frombuffer(record, dtype)
    made = make(Sessions(**{x: slates[x] for x in dtype.names}))
    if window is None:
      window = jax.tree.map(
        lambda x: np.empty((count, *x.shape[1:]), x.dtype), made
      )
    own = slice(done, done + stop - first)

    def put(to, x, own=own, rows=slice(first, stop)):
      to[own] = x[rows]

    jax.tree.map(put, window, made)
    done += stop - first
  for reader in readers.values():
    reader.close()
  return window


def example(blocks: Blocks) -> Sessions:
  """A slate of zeros with the fields of the blocks."""
  zeros = np.zeros(1, _dtype(blocks.fields))
  return Sessions(**{name: zeros[name] for name in zeros.dtype.names})


def _dtype(fields: Sequence[Any]) -> np.dtype:
  return np.dtype([(name, kind, tuple(shape)) for name, kind, shape in fields])


def _cuts(ends: np.ndarray) -> list[int]:
  """Where blocks end, out of where sessions end; the last of both is alike."""
  cuts, last = [], 0
  for end in ends.tolist():
    if end - last >= BLOCK:
      cuts.append(end)
      last = end
  if last < ends[-1]:
    cuts.append(int(ends[-1]))
  return cuts
