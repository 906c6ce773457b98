"""Files that are whole or not there."""

import json
import os
import pathlib
import tempfile
from typing import Any


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
