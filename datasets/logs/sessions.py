"""Tables of slates: `sessions`, a row for each, one table or a folder of them.

A folder `sessions` holds .parquet files, with all rows of a user in one file.
Where it has more than IN_MEMORY slates, those of the train split go to disk
block by block (`hsrl_jax.data.blocks`), and the dataset is a sample of
users. No more than one file is held in memory.
"""

import hashlib
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hsrl_jax.data import blocks, source
from hsrl_jax.data.source import SPLITS
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets import schema
from hsrl_jax.shipped.datasets.logs import collected, steps, tables
from hsrl_jax.shipped.datasets.logs import slates as slates_lib
from hsrl_jax.shipped.datasets.logs.slates import Slates

NAME = "sessions"
NEEDED = ("user_id", "exposed", "response", "timestamp")
IN_MEMORY = 1_000_000  # Slates of a folder that are all read into memory.
SAMPLE = 100_000  # Slates of users that are drawn from a larger one.
_KNOWN = (
  *("user_id", "profile", "history", "exposed", "response", "propensity"),
  *("position", "timestamp", "split"),
  *steps.COLUMNS,
)


def read_all(
  folder: pathlib.Path,
  item_ids: Sequence[str],
  by_user: bool,
  target: pathlib.Path | None = None,
  progress: Callable[..., None] = lambda more=0: None,
) -> Slates:
  """Reads and checks the slates in a folder, in the order of time.

  They are the table `sessions`, or a folder of tables, see `read_folder`.
  """
  if is_folder(folder):
    path = folder / NAME
    slates = read_folder(folder, item_ids, by_user, target, progress)
  else:
    table, notes = collected.sound(tables.read_table(folder, NAME, NEEDED))
    path, slates = table.path, read(table, tables.Items(item_ids), by_user)
    slates = slates._replace(notes=[*slates.notes, *notes])
  if slates.columns["propensity"].size:
    tables.check_actions(path, slates.columns["exposed"])
  return slates_lib.by_time(slates)


def read(table: tables.Table, items: tables.Items, by_user: bool) -> Slates:
  """Reads and checks a table with the columns NEEDED.

  Raises:
    InputError: the file, row and column that is no good.
  """
  expected = "different items"
  exposed = tables.matrix(
    table, "exposed", items, dtype=np.int32, filled=expected
  )
  ordered = np.sort(exposed, 1)
  twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
  for row in np.flatnonzero(twice)[:1]:
    found = tables.short(table.data["exposed"][row].as_py())
    table.refuse(row, "exposed", f"{found}; expected {expected}")
  width = exposed.shape[1]
  response = tables.matrix(table, "response", tables.binary, width)
  slates = slates_lib.read(table, exposed, by_user, _KNOWN)
  user, time = (slates.columns[x] for x in ("user_id", "timestamp"))
  if "history" in table.names:
    liked, lengths = tables.lists(table, "history", items)
    history = schema.Histories(liked, np.cumsum(lengths), lengths)
  else:
    history = slates_lib.liked_before(user, exposed, response, time)
  columns = slates.columns | {"history": history, "response": response}
  columns |= steps.read(table, user, time, response)
  profile, notes = tables.cut(columns["profile"], table.path.name)
  columns["profile"] = profile
  return slates._replace(columns=columns, notes=[*notes, *slates.notes])


def is_folder(folder: pathlib.Path) -> bool:
  """Whether the slates are a folder of tables."""
  return (folder / NAME).is_dir()


def read_folder(
  folder: pathlib.Path,
  item_ids: Sequence[str],
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
  items = tables.Items(item_ids)
  for path in paths:
    slates = read(tables.read_file(path, NEEDED), items, by_user)
    columns, time = slates.columns, slates.columns["timestamp"]
    for name, size in (
      ("reward", 1),
      ("propensity", columns["exposed"].shape[1]),
    ):
      if name in survey.columns and not columns[name].size:
        columns[name] = np.full((len(time), size), np.nan, np.float32)
    if not parts:
      notes = slates.notes
    for name in ("exposed", "profile"):
      width, expected = (
        x[name].shape[1] for x in (columns, parts[0] if parts else columns)
      )
      if width != expected:
        raise InputError(
          f"{path}: {name} has {width} entries; expected {expected}, as in "
          f"{paths[0].name}"
        )
    if "split" not in columns:
      columns["split"], seen = slates_lib.split_at(time, survey.cuts, seen)
    if large:
      train = np.flatnonzero(columns["split"] == SPLITS.index("train"))
      own = {name: column[train] for name, column in columns.items()}
      logs = source.sessions_of(own)._replace(position=None)
      written.append(blocks.write(target, len(written), logs))
    chosen = _digests(slates.users) <= survey.last_digest
    rows = np.flatnonzero(chosen[columns["user_id"] - 1])
    part = {x: np.asarray(column[rows]) for x, column in columns.items()}
    number = np.cumsum(chosen) + len(users)
    part["user_id"] = number[part["user_id"] - 1].astype(np.int32)
    users += [slates.users[i] for i in np.flatnonzero(chosen)]
    parts.append(part)
    progress()
  columns = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  for name in ("reward", "propensity"):
    if np.isnan(columns[name]).all():
      columns[name] = columns[name][:, :0]
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


class _Survey(NamedTuple):
  """Facts of all tables, which reading the first one needs."""

  slates: int  # Of all.
  columns: list[str]  # Names.
  # Where val and test begin; empty where splits are not by time.
  cuts: tuple[slates_lib.Cut, ...]
  # Uint64, the largest digest of a user who is in the sample.
  last_digest: np.uint64


def _survey(
  paths: Sequence[pathlib.Path],
  by_user: bool,
  scratch: pathlib.Path,
  progress: Callable[[], None],
) -> _Survey:
  """Reads users and times of all tables, and checks that they go together."""
  columns = tables.names(paths[0])
  tables.check_columns(paths[0], columns, NEEDED)
  for path in paths[1:]:
    found = tables.names(path)
    if sorted(found) != sorted(columns):
      raise InputError(
        f"{path} has the columns {', '.join(found)}; expected "
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
        time = tables.column(table, "timestamp", tables.time)
        times.write(time.tobytes())
      progress()
    count = np.concatenate(counts)
    slates = int(count.sum())
    cuts: tuple[slates_lib.Cut, ...] = ()
    if by_time:
      times.flush()
      cuts = slates_lib.cuts_of(np.memmap(times, np.float64, "r+"))
  _check_users(paths, digests)
  digest = np.concatenate(digests)
  order = np.argsort(digest)
  wanted = slates if slates <= IN_MEMORY else SAMPLE
  place = np.searchsorted(np.cumsum(count[order]), wanted)
  return _Survey(slates, columns, cuts, digest[order[place]])


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
