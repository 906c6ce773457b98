"""What a run leaves on disk: atomic files, and which stages are complete."""

import json
import os
import pathlib
import tempfile
from typing import Any

from hsrl_jax.errors import InputError

FLAGS = "flags.txt"


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


def is_done(workdir: pathlib.Path, stage: str, fingerprint: str) -> bool:
  """Whether the stage is complete with this configuration.

  Raises:
    InputError: it is complete, but with another one.
  """
  path = _marker(workdir, stage)
  if not path.exists():
    return False
  found = path.read_text().strip()
  if found != fingerprint:
    raise InputError(
      f"{workdir}: stage {stage} was made with another configuration "
      f"({found}, now {fingerprint}); expected the same: use a new --workdir"
    )
  return True


def mark_done(workdir: pathlib.Path, stage: str, fingerprint: str) -> None:
  """Marks a stage as complete; the last thing that a stage writes."""
  write_atomic(_marker(workdir, stage), fingerprint + "\n")


def require(workdir: pathlib.Path, stage: str, fingerprint: str) -> None:
  """Raises InputError where the stage is not complete."""
  if not is_done(workdir, stage, fingerprint):
    raise InputError(
      f"{workdir}: stage {stage} is missing; run --mode={stage} first, or "
      "--mode=all"
    )


def claim(workdir: pathlib.Path, flags: dict[str, str]) -> None:
  """Keeps the flags of a new workdir; an old one must have the same.

  A workdir counts as new until a stage beyond `data` has left something, so
  that a mistyped size can be put right.

  Args:
    workdir: where the run writes.
    flags: name to value, of all flags that decide what is computed.

  Raises:
    InputError: the workdir was made with other flags, or cannot be written.
  """
  path = workdir / FLAGS
  outputs = ("sids", "simulator", "policy", "results.json")
  if path.exists() and any((workdir / name).exists() for name in outputs):
    lines = [line.split("=", 1) for line in path.read_text().splitlines()]
    old = {x[0].removeprefix("--"): x[1] for x in lines if len(x) == 2}
    changed = [
      f"--{name} was {old.get(name, 'unset')}, now {flags.get(name, 'unset')}"
      for name in sorted(old.keys() | flags.keys())
      if old.get(name) != flags.get(name)
    ]
    if changed:
      raise InputError(
        f"{workdir} belongs to another configuration: {'; '.join(changed)}; "
        "expected the same flags: restore them or use a new --workdir"
      )
    return
  text = "".join(f"--{name}={flags[name]}\n" for name in sorted(flags))
  try:
    write_atomic(path, text)
  except OSError as error:
    raise InputError(
      f"--workdir={workdir} cannot be written ({error.strerror}); expected a "
      "folder that this user may write to"
    ) from error


def _marker(workdir: pathlib.Path, stage: str) -> pathlib.Path:
  return workdir / ".done" / stage
