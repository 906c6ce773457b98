"""Versions of an export: `versions/N`, and the file `current` that names one.

A version is never changed but for its catalogue, and never removed. `current`
is replaced by a rename, so a server sees the old version or the new one. The
folder of one export, such as a version's, is served as it is.
"""

import pathlib
from typing import NamedTuple

from hsrl_jax import files
from hsrl_jax.errors import InputError
from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.serving.folder import MANIFEST, POINTER, VERSIONS, Pointer


class Version(NamedTuple):
  """A version on disk."""

  name: str  # Number of the version; "" of a folder without versions.
  folder: pathlib.Path  # Of the export.


def numbers(root: pathlib.Path) -> list[int]:
  """Numbers of the versions that are complete, ascending."""
  found = (root / VERSIONS).glob(f"*/{MANIFEST}")
  names = [path.parent.name for path in found]
  return sorted(int(x) for x in names if x.isascii() and x.isdigit())


def served(root: pathlib.Path) -> tuple[Version, Version | None]:
  """Returns the newest version that is served, and the one before.

  The one before is None after a rollback, a promotion or the first export: then
  nothing is compared.

  Raises:
    InputError: `current` is damaged.
  """
  pointer = folder_lib.read_pointer(root)
  if pointer is None:
    return Version("", root), None
  newest, before = (
    None if x is None else Version(str(x), folder_lib.version_folder(root, x))
    for x in pointer
  )
  return newest, before


def next_folder(root: pathlib.Path) -> pathlib.Path:
  """Returns the folder to write the next version to; it does not exist.

  Args:
    root: is missing, empty, or has versions.

  Raises:
    InputError: something else is there.
  """
  if root.is_symlink() or (root.exists() and not root.is_dir()):
    raise _stranger(root, "is no folder")
  for path in sorted(root.iterdir()) if root.exists() else ():
    if path.name not in (VERSIONS, POINTER) and path.name[0] != ".":
      raise _stranger(root, f"holds {path.name!r}, which is no version")
  folder_lib.read_pointer(root)  # It must not be damaged.
  taken = [0]
  if (root / VERSIONS).is_dir():
    names = [path.name for path in (root / VERSIONS).iterdir()]
    taken += [int(x) for x in names if x.isascii() and x.isdigit()]
  return folder_lib.version_folder(root, max(taken) + 1)


def publish(folder: pathlib.Path) -> None:
  """Makes a version that `next_folder` gave, and that is written, current."""
  root = folder.parents[1]
  pointer = folder_lib.read_pointer(root)
  _point(root, int(folder.name), None if pointer is None else pointer.version)


def rollback(root: pathlib.Path) -> int:
  """Goes back to the version before the current one.

  Returns:
    Its number.

  Raises:
    InputError: there is none, or it is not complete.
  """
  pointer, there = _pointer(root), numbers(root)
  older = [x for x in there if x < pointer.version]
  target = pointer.before
  if target is None:
    target = older[-1] if older else None
  if target not in there:
    which = "no version before" if target is None else f"no version {target}"
    raise InputError(
      f"{root} serves version {pointer.version} and has {which}; expected one "
      "to go back to: it stays as it is"
    )
  _point(root, target, None)
  return target


def promote(root: pathlib.Path) -> int:
  """Gives the current version to all users, whatever the canary share.

  Returns:
    Its number.

  Raises:
    InputError: there are no versions.
  """
  pointer = _pointer(root)
  _point(root, pointer.version, None)
  return pointer.version


def _pointer(root: pathlib.Path) -> Pointer:
  pointer = folder_lib.read_pointer(root)
  if pointer is None:
    raise InputError(
      f"{root} has no versions; expected the folder of an export with "
      f"{POINTER} and {VERSIONS}/, which the next export makes"
    )
  return pointer


def _point(root: pathlib.Path, version: int, before: int | None) -> None:
  files.write_json(root / POINTER, Pointer(version, before)._asdict())


def _stranger(root: pathlib.Path, what: str) -> InputError:
  return InputError(
    f"{root} {what}; expected a folder that is missing, empty, or an export's "
    "with its versions: choose another one, or move away what is there"
  )
