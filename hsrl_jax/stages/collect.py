"""Mode `collect`: what came since the last time, as logs to learn from.

A collection of slates of K items is one file below `slates_K/sessions.parquet`,
which `--dataset=logs` reads as one table. Names of files say which slates they
hold, so that what lies there is the only record of what was collected. A file
gets its name once it is complete: killed at any moment, the next collection
begins where the last complete one ended.

What a client chose can stop nobody from reading the rest: a slate with numbers
that no training holds is left out, counted and told, and names of sessions are
such that no client can give the one of another.
"""

import json
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from hsrl_jax import files
from hsrl_jax.data import transitions
from hsrl_jax.errors import InputError, reading
from hsrl_jax.server import store as store_lib
from hsrl_jax.server.store.database import COLLECTED, Store
from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.serving import versions
from hsrl_jax.serving.catalogue import ServedCatalogue

SESSIONS = "sessions.parquet"  # A folder, which parquet reads as one table.
ITEMS = "items.parquet"
# Its columns beside item_id.
_ABOUT = {
  "title": pa.string(),
  "genres": pa.string(),
  "tags": pa.list_(pa.string()),
  "added": pa.int64(),
  "feature": pa.list_(pa.float32()),
}
_NAME = re.compile(r"part-([0-9a-f]{8})-(\d{12})-(\d{12})\.parquet")
_ROWS = 10_000  # Slates that are held in memory at once.
_SCHEMA = pa.schema(
  {
    "user_id": pa.string(),
    "session_id": pa.string(),
    "step": pa.int64(),
    "timestamp": pa.float64(),
    "exposed": pa.list_(pa.string()),
    "position": pa.list_(pa.int32()),
    "response": pa.list_(pa.int8()),
    "propensity": pa.list_(pa.float32()),
    "history": pa.list_(pa.string()),
    "profile": pa.list_(pa.float32()),
    "reward": pa.float64(),
    "terminated": pa.int8(),
    "request_id": pa.string(),
  }
)


def run(
  where: str, workdir: pathlib.Path, export: str | None, after: float
) -> None:
  """Collects slates that are done, each once.

  A slate is done when all its places are answered, the user left after it, or
  it was shown `after` seconds ago and has some feedback; from then on it takes
  no more. Places without an answer count as no response.

  Args:
    where: the store, a path or a URL.
    workdir: what is written, beside what was collected before.
    export: folder whose items the slates show; None: the one that the server
      of the store serves.
    after: seconds.

  Raises:
    InputError: there is no store, or items are not those of the export.
  """
  if "://" not in where and not pathlib.Path(where).exists():
    raise InputError(
      f"--from={where} is missing; expected the store of a server, the path or "
      "URL that its --store has"
    )
  store = store_lib.open_store(where)
  try:
    _collect(store, workdir, export, after)
  except store_lib.StoreError as error:
    raise InputError(
      f"--from={where} cannot be read now ({error}); expected a store that "
      "answers: try again, nothing is lost"
    ) from error
  finally:
    store.close()


def _collect(
  store: Store, workdir: pathlib.Path, export: str | None, after: float
) -> None:
  while store.close_done(time.time() - after, _ROWS) == _ROWS:
    pass
  written, served = 0, None
  for width, last in store.widths():
    folder = workdir / f"slates_{width}"
    first = _cursor(folder / SESSIONS, store.id) + 1
    if last < first:
      continue
    served = served or _served(store, export)
    items, rewards = served
    check = _Check(_write_items(folder, items), rewards, left_out=[])
    count = _write(store, width, first, last, folder / SESSIONS, check)
    store.transact(lambda k=width, n=last: store.mark(f"collected_{k}", n))
    written += count
    print(f"  {count:,} slates of {width} to {folder}", flush=True)
    if check.left_out:
      print(
        f"  {len(check.left_out):,} slates of {width} left out, the first "
        f"since {check.left_out[0]}",
        flush=True,
      )
  print(f"collect: {written:,} slates that are new")


class _Check(NamedTuple):
  """Ids and range of rewards that slates may have; why others were left out."""

  items: set[str]
  rewards: tuple[float, float]
  left_out: list[str]

  def keeps(self, row: dict) -> bool:
    """Whether logs may have a row; see `left_out`.

    Raises:
      InputError: the row has an item that is none of `items`.
    """
    for item in (*row["exposed"], *row["history"]):
      if item not in self.items:
        raise InputError(
          f"the slate {row['request_id']} has the item {item!r}, which is none "
          "of the export's; expected the one that was served: see --export_dir"
        )
    fault = self._fault(row)
    if fault:
      self.left_out.append(f"{row['request_id']!r} has {fault}")
    return fault is None

  def _fault(self, row: dict) -> str | None:
    low, high = self.rewards
    reward, slack = row["reward"], 1e-5 * max(-low, high)  # Of float32.
    if reward is not None and not low - slack <= reward <= high + slack:
      return (
        f"the reward {reward:g}; expected {low:g} to {high:g}, or no reward: "
        "that of the responses then counts"
      )
    for number in row["profile"]:
      if not abs(number) <= transitions.LARGEST:
        return (
          f"the number {number:g} in its profile; expected at most "
          f"{transitions.LARGEST:g} in size"
        )
    if not all(0 < x <= 1 for x in np.float32(row["propensity"])):
      return "propensities that are none in float32; expected some in (0, 1]"
    return None


def _cursor(folder: pathlib.Path, store: str) -> int:
  """The last number that was collected of a store; drops unfinished files."""
  last = 0
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    if path.name.startswith(".part-"):
      path.unlink()  # A collection that was killed.
      continue
    name = _NAME.fullmatch(path.name)
    if name is None:
      raise InputError(
        f"{folder} holds {path.name!r}; expected files of --mode=collect "
        "alone, since their names say what was collected: move it away"
      )
    if name[1] == store[:8]:
      last = max(last, int(name[3]))
  return last


def _write(
  store: Store,
  width: int,
  first: int,
  last: int,
  folder: pathlib.Path,
  check: _Check,
) -> int:
  """Writes one file of closed slates; returns how many it holds."""
  path = folder / f"part-{store.id[:8]}-{first:012d}-{last:012d}.parquet"
  count = 0
  with (
    files.writing(path) as file,
    pyarrow.parquet.ParquetWriter(file, _SCHEMA) as writer,
  ):
    for rows in _read(store, width, first, last):
      rows = [row for row in rows if check.keeps(row)]
      writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
      count += len(rows)
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)  # The name, too.
  finally:
    os.close(handle)
  return count


def _read(store: Store, width: int, first: int, last: int) -> Iterator[list]:
  """Rows of the table, in pieces."""
  after = first - 1
  while rows := store.closed(width, after, last, _ROWS):
    after = rows[-1][0]
    yield [_row(dict(zip(COLLECTED, row, strict=True))) for row in rows]


def _row(slate: Mapping[str, Any]) -> dict[str, Any]:
  """A row of the table, of the columns that the store has."""
  items = json.loads(slate["items"])
  session = slate["session_id"], slate["part"], slate["request_id"]
  return {
    "user_id": slate["user_id"],
    "session_id": _session_name(*session),
    "step": slate["step"],
    "timestamp": slate["time"],
    "exposed": items,
    "position": list(range(len(items))),
    "response": [x or 0 for x in json.loads(slate["responses"])],
    "propensity": json.loads(slate["propensities"]),
    "history": json.loads(slate["history"]),
    "profile": json.loads(slate["profile"]),
    "reward": slate["reward"],
    "terminated": slate["terminated"] or 0,
    "request_id": slate["request_id"],
  }


def _session_name(session_id: str | None, part: int, request_id: str) -> str:
  """A name that is one session's alone, whatever clients call theirs.

  A / is of no client: one in an id of theirs is %2F, and a % of theirs %25.
  """
  if session_id is None:
    return f"/{request_id}"
  name = session_id.replace("%", "%25").replace("/", "%2F")
  return f"{name}/{part}" if part else name


def _served(
  store: Store, export: str | None
) -> tuple[dict[str, tuple], tuple[float, float]]:
  """Facts about shown slates from all versions of an export.

  Returns:
    Of the items that may have been shown, id to what _ABOUT names, of the
    newest version that has it; and the least and the largest reward of a slate.
  """
  where = export or store.about().get("folder")
  if where is None:
    raise InputError(
      "--export_dir is missing; expected the folder of the export that was "
      "served, since no server has used this store"
    )
  root = pathlib.Path(where)
  if not root.is_dir():
    raise InputError(
      f"{where} is missing; expected the folder of the export that was served: "
      "see --export_dir"
    )
  numbers = versions.numbers(root)
  items, rewards = {}, []
  for folder in [folder_lib.version_folder(root, x) for x in numbers] or [root]:
    manifest = folder_lib.read_manifest(folder)
    items |= _items(folder_lib.read_catalogue(folder, manifest), manifest.about)
    rewards += manifest.ranges["reward"]
  return items, (min(rewards), max(rewards))


def _items(
  catalogue: ServedCatalogue, about: dict[str, Any]
) -> dict[str, tuple]:
  """See _served."""
  width = catalogue.features.shape[1] - about.get("topics", 0)
  tags, genres = catalogue.tags, set(about.get("genres", ()))
  rows = np.flatnonzero(np.asarray(catalogue.index.known))
  items = {}
  for row in rows[rows > 0]:
    names = tags.of(row)
    items[catalogue.item_ids.of(row)] = (
      catalogue.titles.of(row),
      "|".join(x for x in names if x in genres),
      [x for x in names if x not in genres],
      int(tags.added[row]),
      catalogue.features[row, :width].tolist(),
    )
  return items


def _write_items(folder: pathlib.Path, items: dict[str, tuple]) -> set[str]:
  """Adds items to those that are there; returns all ids."""
  path, before = folder / ITEMS, {}
  if path.exists():
    with reading(path, "what --mode=collect wrote"):
      table = pyarrow.parquet.read_table(path).to_pydict()
      columns = zip(*(table[name] for name in _ABOUT), strict=True)
      before = dict(zip(table["item_id"], columns, strict=True))
  merged = before | items  # Numbers of items stay: old ones come first.
  if merged != before:
    columns = zip(
      _ABOUT.items(), zip(*merged.values(), strict=True), strict=True
    )
    table = pa.table(
      {
        "item_id": pa.array(merged, pa.string()),
        **{name: pa.array(x, kind) for (name, kind), x in columns},
      }
    )
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    files.write_atomic(path, sink.getvalue().to_pybytes())
  return set(merged)
