"""Tables that a caller gives, as the dataset `logs` reads them.

A table is a pandas DataFrame, or the path of a .csv or .parquet file. Frames
are written to files, so that one reader checks all tables.
"""

import contextlib
import hashlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet

from hsrl_jax import files
from hsrl_jax.errors import InputError, reading

SUFFIXES = (".csv", ".parquet")
_LOGS = ("interactions", "sessions")
# To the names of the caller's arguments.
_BESIDE = {"items": "items", "users": "profiles"}
_OPTIONS = "logs.json"


def in_folder(folder: pathlib.Path) -> bool:
  """Whether a folder has a table of logs."""
  names = [f"{name}{suffix}" for name in _LOGS for suffix in SUFFIXES]
  return any((folder / name).exists() for name in (*names, "sessions"))


def tables(
  logs: Any, items: Any = None, profiles: Any = None
) -> dict[str, Any]:
  """Tables by the names that the dataset `logs` has for them.

  Args:
    logs: with a column `exposed` a table of sessions, else of interactions.
    items: a table, or None.
    profiles: likewise, of users.

  Returns:
    Name to DataFrame or pathlib.Path.

  Raises:
    InputError: one of them is no table.
  """
  logs, columns = _table("logs", logs)
  named = {_LOGS["exposed" in columns]: logs}
  for name, table in zip(_BESIDE, (items, profiles), strict=True):
    if table is not None:
      named[name], _ = _table(_BESIDE[name], table)
  return named


def _table(name: str, table: Any) -> tuple[Any, list[str]]:
  """A table as a DataFrame or a pathlib.Path, and the names of its columns."""
  if hasattr(table, "to_parquet"):
    return table, list(table.columns)
  path = pathlib.Path(table if isinstance(table, str | pathlib.Path) else "")
  if path.suffix not in SUFFIXES:
    raise InputError(
      f"{name} is {type(table).__name__} {str(table)[:60]!r}; expected a "
      "pandas DataFrame, or the path of a .csv or .parquet file"
    )
  with reading(path, f"a complete {path.suffix} file"):
    if path.suffix == ".parquet":
      return path, pyarrow.parquet.read_schema(path).names
    with path.open(encoding="utf-8-sig") as file:
      return path, [x.strip() for x in file.readline().split(",")]


def digest(table: Any) -> str:
  """A hash of the content of a DataFrame, or of a file."""
  if isinstance(table, pathlib.Path):
    return files.digest(table)
  content = hashlib.sha256()
  for name in table.columns:
    content.update(f"\n{name}\n".encode())
    for cell in table[name]:
      cell = cell.tolist() if isinstance(cell, np.ndarray) else cell
      content.update(f"{cell}\0".encode())
  return content.hexdigest()


@contextlib.contextmanager
def written(
  folder: pathlib.Path, named: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[None]:
  """Has tables in a folder while the block runs; nothing is left of it.

  Args:
    folder: where to write; tables that an earlier call left are removed.
    named: see `tables`.
    options: of logs.json.

  Raises:
    InputError: something else is in the folder, a frame cannot be written, or
      what the block raises; a message about a file in the folder names what
      the caller gave instead.
  """
  _check_own(folder)
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  arguments = {str(folder / _OPTIONS): "log_options", _OPTIONS: "log_options"}
  try:
    for name, table in named.items():
      argument = _BESIDE.get(name, "logs")
      if isinstance(table, pathlib.Path):
        path = folder / f"{name}{table.suffix}"
        path.symlink_to(table.absolute())
        arguments[str(path)] = str(table)
      else:
        path = folder / f"{name}.parquet"
        arguments[str(path)] = argument
        with reading(argument, "columns that each have one type"):
          table.to_parquet(path, index=False)
    with reading("log_options", "what logs.json may hold"):
      files.write_json(folder / _OPTIONS, dict(options))
    yield
  except InputError as error:
    message = str(error)
    for path, argument in arguments.items():
      message = message.replace(path, argument)
    raise InputError(message) from error
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _check_own(folder: pathlib.Path) -> None:
  """Raises InputError where a folder has more than `written` leaves there."""
  tables = {f"{x}{y}" for x in (*_LOGS, *_BESIDE) for y in SUFFIXES}
  others = sorted(
    path.name
    for path in (folder.iterdir() if folder.is_dir() else ())
    if path.name not in tables
    and not path.name.startswith((_OPTIONS, f".{_OPTIONS}."))
  )
  if others:
    raise InputError(
      f"{folder} has {others[0]!r}; expected no such folder, since tables are "
      "written there for a while: move it away, or use another workdir"
    )
