"""Tables of slates: `sessions`, a row for each, one table or a folder of them.

A folder `sessions` holds .parquet files, with all rows of a user in one file.
Where it has more than IN_MEMORY slates, those of the train split go to disk
block by block (`hsrl_jax.data.blocks`), and the dataset is a sample of
users. No more than one file is held in memory.
"""

import hashlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet

from hsrl_jax.data import blocks
from hsrl_jax.data.source import STEP_COLUMNS
from hsrl_jax.errors import InputError, reading
from hsrl_jax.shipped.datasets import schema
from hsrl_jax.shipped.datasets.logs import (
  arrow,
  collected,
  interactions,
  steps,
  tables,
)
from hsrl_jax.types import Sessions

NAME = "sessions"
NEEDED = ("user_id", "exposed", "response", "timestamp")
IN_MEMORY = 1_000_000  # Slates of a folder that are all read into memory.
SAMPLE = 100_000  # Slates of users that are drawn from a larger one.
_KNOWN = (
  *("user_id", "profile", "history", "exposed", "response", "propensity"),
  *("position", "timestamp", "split"),
  *steps.COLUMNS,
)
_LEARNED = (
  *("user_id", "profile", "history", "exposed", "response", "timestamp"),
  *("propensity", *STEP_COLUMNS),
)
_PIECE = 2**20  # Timestamps that are looked at at once.


class Slates(NamedTuple):
  """The slates of one or more tables, in the order of rows.

  Attributes:
    columns: of `sessions` (see schema.py); `split` is not there where splits
      are by the time of all slates.
    users: the name of user 1, 2, ...
    notes: lines for people.
  """

  columns: dict[str, np.ndarray]
  users: list[str]
  notes: list[str]


def read_table(
  folder: pathlib.Path, item_ids: list[str], by_user: bool
) -> Slates:
  """Reads and checks the table `sessions` of a folder; see `read`."""
  table, left_out = collected.sound(tables.read_table(folder, NAME, NEEDED))
  if not table.rows:
    raise InputError(f"{left_out[-1]}; expected a slate that is left")
  slates = read(table, item_ids, by_user)
  slates = slates._replace(notes=[*slates.notes, *left_out])
  if slates.columns["propensity"].size:
    tables.check_actions(table.path, slates.columns["exposed"])
  return slates


def read(table: tables.Table, item_ids: list[str], by_user: bool) -> Slates:
  """Reads and checks a table.

  Args:
    table: with the columns of NEEDED.
    item_ids: of item 1, 2, ...
    by_user: whether splits are by user.

  Raises:
    InputError: the file, row and column that is no good.
  """
  number = {item: i for i, item in enumerate(item_ids, 1)}

  def items(cell) -> list[int]:
    ids = [tables.id_(x) for x in tables.list_(cell)]
    unknown = [x for x in ids if x not in number]
    if unknown:
      raise ValueError(f"item {unknown[0]!r}; expected item_ids of the items")
    return [number[x] for x in ids]

  def slate(cell) -> list[int]:
    shown = items(cell)
    if len(set(shown)) < len(shown) or not shown:
      raise ValueError(f"{tables.short(cell)}; expected different items")
    return shown

  codes, users = tables.codes(table, "user_id")
  user_id = (codes + 1).astype(np.int32)
  exposed = arrow.slates(table.columns, "exposed", item_ids)
  if exposed is None:
    exposed = tables.matrix(table, "exposed", slate, dtype=np.int32)
  width = exposed.shape[1]
  response = tables.matrix(table, "response", tables.responses, width)
  timestamp = np.array(tables.column(table, "timestamp", tables.time))
  empty = np.zeros((len(user_id), 0), np.float32)
  optional = {"profile": empty, "propensity": empty, "position": empty}
  for name, parse, size, dtype in (
    ("profile", tables.numbers, None, np.float32),
    ("propensity", tables.probabilities, width, np.float32),
    ("position", tables.places, width, np.int32),
  ):
    if name in table.columns:
      optional[name] = tables.matrix(table, name, parse, size, dtype)
  optional["profile"], notes = tables.cut(optional["profile"], table.path.name)
  optional |= steps.read(table, user_id, timestamp, response)
  split = _split(table, codes, users, by_user)
  size = schema.HISTORY_LENGTH
  if "history" in table.columns:
    history = _history(table, item_ids, items, size)
  else:
    order = np.lexsort((timestamp, user_id))
    history = liked_before(user_id, exposed, response, order, size)
  columns = {
    "user_id": user_id,
    "history": history,
    "exposed": exposed,
    "response": response,
    "timestamp": timestamp,
    **({} if split is None else {"split": split}),
    **optional,
  }
  return Slates(columns, users, [*notes, *tables.unused(table, _KNOWN)])


def _split(
  table: tables.Table, codes: np.ndarray, users: list[str], by_user: bool
) -> np.ndarray | None:
  """The split of each row; None where it is by the time of all slates."""
  if "split" not in table.columns:
    return schema.split_of_user(users)[codes] if by_user else None
  if by_user:
    raise InputError(
      f"{table.path} has a column split, and the split is by user; expected "
      "one of them"
    )
  return np.array(tables.column(table, "split", tables.split))


def _history(
  table: tables.Table,
  item_ids: list[str],
  items: Callable[[Any], list[int]],
  size: int,
) -> np.ndarray:
  """The column `history`, int32 [R, size]."""
  history = arrow.histories(table.columns, "history", item_ids)
  if history is None:
    past = tables.column(table, "history", items)
    history = np.array([schema.left_padded(x, size) for x in past])
  return history


def liked_before(
  user: np.ndarray,
  exposed: np.ndarray,
  response: np.ndarray,
  order: np.ndarray,
  size: int,
) -> np.ndarray:
  """What the user of each row liked in earlier rows, newest last, int32 [R, H].

  Args:
    user: int [R].
    exposed: int [R, K].
    response: [R, K].
    order: int [R], the rows by user, those of one user by time.
    size: H; 0 on the left where fewer were liked.
  """
  liked, user = response[order] > 0, user[order]
  count = liked.sum(1)
  before = np.cumsum(count) - count  # Likes of earlier rows, of all users.
  first = np.searchsorted(user, user)  # Row where the user begins.
  history = np.empty((len(order), size), np.int32)
  history[order] = arrow.last(
    exposed[order][liked], before, before - before[first], size
  )
  return history


def by_time(slates: Slates) -> dict[str, np.ndarray]:
  """The columns with their rows in the order of time, and with `split`."""
  columns = dict(slates.columns)
  time = columns["timestamp"]
  if "split" not in columns:
    columns["split"] = interactions.split_by_time(time)
  order = np.argsort(time, kind="stable")
  return {name: column[order] for name, column in columns.items()}


def is_folder(folder: pathlib.Path) -> bool:
  """Whether the slates are a folder of tables."""
  return (folder / NAME).is_dir()


def read_folder(
  folder: pathlib.Path,
  item_ids: list[str],
  by_user: bool,
  target: pathlib.Path,
  progress: Callable[..., None],
) -> Slates:
  """Reads and checks the tables of a folder; writes large logs to `target`.

  Args:
    folder: in which the folder `sessions` is.
    item_ids: of item 1, 2, ...
    by_user: whether splits are by user.
    target: where blocks of the train split are written, if there are more than
      IN_MEMORY slates.
    progress: called with how many tables more will be read, and after each.

  Returns:
    All slates, or the sample, with `split`.

  Raises:
    InputError: a file that is damaged, empty or unlike the first one, a user in
      two files, or the row and column that is no good.
  """
  paths = _paths(folder / NAME)
  progress(2 * len(paths))
  survey = _survey(paths, by_user, target.parent, progress)
  large = survey.slates > IN_MEMORY
  parts, written, users, seen = [], [], [], (0, 0)
  for path in paths:
    slates = read(tables.read_file(path, NEEDED), item_ids, by_user)
    columns, time = slates.columns, slates.columns["timestamp"]
    if "reward" in survey.columns and not columns["reward"].size:
      columns["reward"] = np.full((len(time), 1), np.nan, np.float32)
    if not parts:
      notes, widths = slates.notes, _widths(columns)
    _check_widths(_widths(columns), widths, path, paths[0])
    if "split" not in columns:
      columns["split"], seen = _split_by_time(time, survey.cuts, seen)
    if large:
      train = np.flatnonzero(columns["split"] == "train")
      written.append(blocks.write(target, len(written), _logs(columns, train)))
    chosen = _digests(slates.users) <= survey.last_digest
    rows = np.flatnonzero(chosen[columns["user_id"] - 1])
    part = {name: column[rows] for name, column in columns.items()}
    number = np.cumsum(chosen) + len(users)
    part["user_id"] = number[part["user_id"] - 1].astype(np.int32)
    users += [slates.users[i] for i in np.flatnonzero(chosen)]
    parts.append(part)
    progress()
  columns = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  if columns["propensity"].size:
    tables.check_actions(folder / NAME, columns["exposed"])
  if np.isnan(columns["reward"]).all():
    columns["reward"] = columns["reward"][:, :0]
  if large:
    slates = sum(x.counts["slates"] for x in written)
    if not slates:
      raise InputError(
        f"{folder / NAME}: no slate is in the train split; expected at least "
        "one"
      )
    blocks.write_index(target, written, len(item_ids))
    notes = [
      *notes,
      f"{folder / NAME}: {survey.slates:,} slates, more than {IN_MEMORY:,}: "
      f"the {slates:,} of the train split are for learning from logs; all "
      f"else sees a sample of {len(users):,} users with "
      f"{len(columns['user_id']):,} slates",
    ]
  return Slates(columns, users, notes)


def _paths(folder: pathlib.Path) -> list[pathlib.Path]:
  """The tables of a folder by name; names with _ or . before are left out."""
  paths = sorted(x for x in folder.iterdir() if x.name[0] not in "._")
  others = [x.name for x in paths if x.suffix != ".parquet"]
  if others or not paths:
    raise InputError(
      f"{folder} has {others[0] if others else 'no file'}; expected .parquet "
      "files alone, with all rows of a user in one file"
    )
  return paths


class _Cut(NamedTuple):
  """Where the slates of a split begin, in the order of time, then of rows.

  Attributes:
    time: of the first one.
    ties: slates of that time before it.
  """

  time: float
  ties: int


class _Survey(NamedTuple):
  """What must be known of all tables before the first one is read.

  Attributes:
    slates: of all.
    columns: names.
    cuts: where val and test begin; empty where splits are not by time.
    last_digest: uint64, the largest digest of a user who is in the sample.
  """

  slates: int
  columns: list[str]
  cuts: tuple[_Cut, ...]
  last_digest: np.uint64


def _survey(
  paths: Sequence[pathlib.Path],
  by_user: bool,
  scratch: pathlib.Path,
  progress: Callable[[], None],
) -> _Survey:
  """Reads users and times of all tables, and checks that they go together."""
  columns = _columns(paths[0])
  tables.check_columns(paths[0], columns, NEEDED)
  for path in paths[1:]:
    if sorted(_columns(path)) != sorted(columns):
      raise InputError(
        f"{path} has the columns {', '.join(_columns(path))}; expected "
        f"{', '.join(columns)}, as in {paths[0].name}"
      )
  by_time = not by_user and "split" not in columns
  digests, counts = [], []
  with tempfile.TemporaryFile(dir=scratch) as times:
    for path in paths:
      table = tables.read_file(path, ("user_id", "timestamp"), only=True)
      codes, names = tables.codes(table, "user_id")
      digests.append(_digests(names))
      counts.append(np.bincount(codes))
      if by_time:
        time = np.array(tables.column(table, "timestamp", tables.time))
        times.write(time.tobytes())
      progress()
    count = np.concatenate(counts)
    slates = int(count.sum())
    cuts: tuple[_Cut, ...] = ()
    if by_time:
      held_out = max(1, round(schema.HELD_OUT * slates))
      ranks = [max(slates - x * held_out, 0) for x in (2, 1)]
      cuts = select(lambda: _pieces(times), ranks)
  _check_users(paths, digests)
  digest = np.concatenate(digests)
  order = np.argsort(digest)
  wanted = slates if slates <= IN_MEMORY else SAMPLE
  place = np.searchsorted(np.cumsum(count[order]), wanted)
  return _Survey(slates, columns, cuts, digest[order[place]])


def _columns(path: pathlib.Path) -> list[str]:
  with reading(path, "a complete .parquet file"):
    return pyarrow.parquet.read_schema(path).names


def _digests(names: Sequence[str]) -> np.ndarray:
  """A number for each user, uint64 [U], that follows from the name alone."""
  hashed = b"".join(
    hashlib.blake2b(x.encode(), digest_size=8, person=b"sample").digest()
    for x in names
  )
  return np.frombuffer(hashed, np.uint64)


def _check_users(
  paths: Sequence[pathlib.Path], digests: Sequence[np.ndarray]
) -> None:
  """Raises InputError where a user is in two files."""
  digest = np.concatenate(digests)
  file = np.repeat(np.arange(len(paths)), [len(x) for x in digests])
  order = np.argsort(digest, kind="stable")
  digest, file = digest[order], file[order]
  for place in np.flatnonzero(digest[1:] == digest[:-1]):
    both = [paths[file[x]] for x in (place, place + 1)]
    names = [
      tables.codes(tables.read_file(x, ("user_id",), only=True), "user_id")[1]
      for x in both
    ]
    # Digests of different names may be the same, if hardly ever.
    shared = [x for x in names[1] if x in set(names[0])]
    if shared:
      raise InputError(
        f"{both[1]}: user {shared[0]!r} is in {both[0].name} too; expected all "
        "rows of a user in one file"
      )


def _pieces(file) -> Iterator[np.ndarray]:
  """The numbers of a file of float64, some at once."""
  file.seek(0)
  while piece := file.read(8 * _PIECE):
    yield np.frombuffer(piece, np.float64)


def select(
  pieces: Callable[[], Iterator[np.ndarray]], ranks: Sequence[int]
) -> tuple[_Cut, ...]:
  """Numbers by their ranks in the sorted order, by radix, in four passes.

  Args:
    pieces: gives all numbers, float64, some at once.
    ranks: of the numbers that are wanted, from 0.

  Returns:
    Of each rank the number, and how many of equal ones come before it.
  """
  ranks, prefixes = list(ranks), [0] * len(ranks)
  for shift in (48, 32, 16, 0):
    counts = np.zeros((len(ranks), 2**16), np.int64)
    for piece in pieces():
      keys = (piece + 0.0).view(np.uint64)  # No -0.
      # Unsigned integers in the order of the numbers.
      sign = keys >> np.uint64(63) == 1
      keys = np.where(sign, ~keys, keys | np.uint64(1 << 63))
      above, digit = keys >> np.uint64(shift), np.uint64(0xFFFF)
      for i, prefix in enumerate(prefixes):
        own = above[above >> np.uint64(16) == prefix]
        own = (own & digit).astype(np.int64)
        counts[i] += np.bincount(own, minlength=2**16)
    for i, total in enumerate(np.cumsum(counts, axis=1)):
      digit = int(np.searchsorted(total, ranks[i], side="right"))
      ranks[i] -= int(total[digit] - counts[i, digit])
      prefixes[i] = prefixes[i] << 16 | digit
  keys = np.array(prefixes, np.uint64)
  positive = keys >> np.uint64(63) == 1
  keys = np.where(positive, keys & np.uint64((1 << 63) - 1), ~keys)
  return tuple(map(_Cut, keys.view(np.float64).tolist(), ranks))


def _split_by_time(
  timestamp: np.ndarray, cuts: Sequence[_Cut], seen: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
  """The split of each row, [R], and `seen` with these rows.

  Args:
    timestamp: float64 [R].
    cuts: where val and test begin.
    seen: rows of earlier tables that have the time of each cut.
  """
  split = np.full(len(timestamp), "train")
  now = []
  for cut, name, before in zip(cuts, ("val", "test"), seen, strict=True):
    same = timestamp == cut.time
    place = before + np.cumsum(same) - 1
    split[(timestamp > cut.time) | same & (place >= cut.ties)] = name
    now.append(before + int(same.sum()))
  return split, tuple(now)


def _widths(columns: dict[str, np.ndarray]) -> dict[str, int]:
  """Entries of the lists that are as long in all rows."""
  return {name: columns[name].shape[1] for name in ("exposed", "profile")}


def _check_widths(
  widths: dict[str, int],
  expected: dict[str, int],
  path: pathlib.Path,
  first: pathlib.Path,
) -> None:
  """Raises InputError where lists are not as long as in the first table."""
  for name, width in widths.items():
    if width != expected[name]:
      raise InputError(
        f"{path}: {name} has {width} entries; expected {expected[name]}, as in "
        f"{first.name}"
      )


def _logs(columns: dict[str, np.ndarray], rows: np.ndarray) -> Sessions:
  """Some rows as agents learn from them."""
  own = {name: columns[name][rows] for name in _LEARNED}
  for name in (*STEP_COLUMNS, "propensity"):
    if not own[name].shape[1]:
      del own[name]
    elif name in STEP_COLUMNS:
      own[name] = own[name][:, 0]
  return Sessions(**own)
