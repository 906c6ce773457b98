"""Files that are whole or not there, and what tells whether they changed."""

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

_PIECE = 2**24  # Bytes that are hashed at once.


def write_atomic(path: pathlib.Path, data: str | bytes) -> None:
  """Writes a file under a temporary name beside it, then renames it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(data, str):
    data = data.encode()
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, path)
  except BaseException:
    pathlib.Path(name).unlink(missing_ok=True)
    raise


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON for people and scripts, atomically; NaN is refused."""
  write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def digest(
  path: pathlib.Path, on_bytes: Callable[[int], object] = lambda count: None
) -> str:
  """SHA-256 of a file's content.

  Args:
    path: of the file.
    on_bytes: called with how many bytes were read.

  Raises:
    OSError: the file cannot be read.
  """
  found = hashlib.sha256()
  with path.open("rb") as file:
    while piece := file.read(_PIECE):
      found.update(piece)
      on_bytes(len(piece))
  return found.hexdigest()
