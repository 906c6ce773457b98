"""The folder of an export: its manifest and files, checked whenever read.

`manifest.json` names the other files with their checksums and is written last;
a catalogue that replaces another gets a file of its own. So a reader of the
manifest finds whole files that belong together, at any moment.

Exports of a run lie beside one another, each in `versions/N`, and the file
`current` says which one is served; see `versions`. Functions of this module
take that folder as well as the folder of one export.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import stat
from collections.abc import Iterable
from typing import Any, NamedTuple

from hsrl_jax import files
from hsrl_jax.errors import InputError
from hsrl_jax.serving import arguments
from hsrl_jax.serving import catalogue as catalogue_lib
from hsrl_jax.serving.catalogue import ServedCatalogue

FORMAT = 5
MANIFEST = "manifest.json"
POINTER = "current"
VERSIONS = "versions"
ROLES = ("decode", "policy", "catalogue")
SIZES = (
  *("history", "profile", "seen", "slate", "levels", "vocab_size"),
  *("capacity", "features", "shown", "tags"),
)
_MAY_BE_ZERO = ("profile", "seen", "shown")
RANGES = ("profile", "reward")
_BEYOND = 100.0  # So many times what training saw is still accepted.
_LARGEST = 2**24  # Bytes of a manifest, at most.
_KEPT = 2  # Catalogues: a reader of the last manifest may want the older one.


class File(NamedTuple):
  """A file of the folder."""

  name: str  # Without any folder.
  sha256: str  # Of the content.
  bytes: int  # Size of the content.


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The content of `manifest.json`."""

  # `history` H, `profile` P, `seen` T, `slate` K, `levels` L, `vocab_size` V,
  # `capacity` C, `features` D, `shown` R (items of a session that the policy
  # sees; 0: likes alone) and `tags` W (words of an item).
  sizes: dict[str, int]
  batch_sizes: tuple[int, ...]  # Users decoded at once, ascending.
  platforms: tuple[str, ...]  # Of `cpu`, `cuda`, `tpu`.
  codebooks: str  # Short hash of those that the policy was trained with.
  # `decode` the jax.export artefact, `policy` its parameters, `catalogue`.
  files: dict[str, File]
  # Agent, how it acts, seed, configuration, versions: for people.
  about: dict[str, Any]
  # The least and the largest value that training saw, of the numbers of a
  # `profile` and of the `reward` of a slate.
  ranges: dict[str, tuple[float, float]]
  # Whether items of a request's history and session are recommended again.
  repeat: bool
  format: int = FORMAT  # Of the folder.

  def check_range(self, name: str, values: Iterable[float]) -> None:
    """Raises InputError for a value that is far from what training saw.

    Args:
      name: of RANGES.
      values: numbers.
    """
    # Of users without any profile all numbers are 0.
    largest = _BEYOND * (max(map(abs, self.ranges[name])) or 1.0)
    for value in values:
      if not abs(value) <= largest:
        raise InputError(
          f"{name} has {arguments.short(value)}; expected numbers from "
          f"{-largest:g} to {largest:g}, {_BEYOND:g} times what training saw"
        )

  def check(self, catalogue: ServedCatalogue) -> None:
    """Raises InputError if a catalogue does not go with the export."""
    values = catalogue.sizes() | {"codebooks": catalogue.codebooks_digest()}
    for name, value in values.items():
      want = self.codebooks if name == "codebooks" else self.sizes[name]
      if value != want:
        raise InputError(
          f"the catalogue has {name} {value}; expected {want}, as this export "
          "has: export again, or make the catalogue from that of the export"
        )


class Pointer(NamedTuple):
  """The content of the file `current`."""

  version: int  # Number of the export that is served.
  # Number of the one that it took over from, which serves most users while a
  # canary share tries the new one; None: there is nothing to compare.
  before: int | None


def read_pointer(root: pathlib.Path) -> Pointer | None:
  """Reads which version is served; None: the folder has no versions.

  Raises:
    InputError: the file is damaged.
  """
  path = root / POINTER
  try:
    values = json.loads(_read(path, _LARGEST))
    pointer = Pointer(values["version"], values["before"])
    if type(pointer.version) is not int or pointer.version < 1:
      raise ValueError(f"version {pointer.version!r}")
    if pointer.before is not None and type(pointer.before) is not int:
      raise ValueError(f"before {pointer.before!r}")
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise unreadable(path, error) from error
  return pointer


def current(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder of the export that is served; `folder` if it is one.

  Raises:
    InputError: the file `current` is damaged.
  """
  pointer = read_pointer(folder)
  return folder if pointer is None else version_folder(folder, pointer.version)


def version_folder(root: pathlib.Path, number: int) -> pathlib.Path:
  """Returns the folder of a version."""
  return root / VERSIONS / str(number)


def add_file(folder: pathlib.Path, name: str, data: bytes) -> File:
  """Writes a file of the folder."""
  files.write_atomic(folder / name, data)
  return File(name, hashlib.sha256(data).hexdigest(), len(data))


def add_catalogue(folder: pathlib.Path, catalogue: ServedCatalogue) -> File:
  """Writes a catalogue's file, named by its content."""
  data = catalogue.to_bytes()
  name = hashlib.sha256(data).hexdigest()[:16]
  return add_file(folder, f"catalogue-{name}.npz", data)


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
  """Writes the manifest; from then on, readers see its files."""
  values = dataclasses.asdict(manifest)
  values["files"] = {k: f._asdict() for k, f in manifest.files.items()}
  files.write_json(folder / MANIFEST, values)


def read_manifest(folder: pathlib.Path) -> Manifest:
  """Reads the manifest.

  Raises:
    InputError: it is missing, damaged, of another version, or names a file
      outside the folder.
  """
  path = current(folder) / MANIFEST
  try:
    values = json.loads(_read(path, _LARGEST))
    version = values["format"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise unreadable(path, error) from error
  files.check_format(path, version, FORMAT)
  try:
    manifest = Manifest(
      **values
      | {
        "files": {role: File(**values["files"][role]) for role in ROLES},
        "batch_sizes": tuple(values["batch_sizes"]),
        "platforms": tuple(values["platforms"]),
        "ranges": {
          name: tuple(map(float, pair))
          for name, pair in values["ranges"].items()
        },
      }
    )
    _check_values(manifest)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise unreadable(path, error) from error
  return manifest


def _check_values(manifest: Manifest) -> None:
  """Raises ValueError or KeyError for values that no export has."""
  numbers = {
    f"size {name}": (manifest.sizes[name], int(name not in _MAY_BE_ZERO))
    for name in SIZES
  }
  numbers |= {f"batch size {x!r}": (x, 1) for x in manifest.batch_sizes}
  numbers |= {f"{k}'s bytes": (f.bytes, 0) for k, f in manifest.files.items()}
  for name, (value, least) in numbers.items():
    if type(value) is not int or not least <= value < 2**63:
      raise ValueError(f"{name} is {value!r}")
  if not manifest.batch_sizes:
    raise ValueError("no batch size")
  if set(manifest.ranges) != set(RANGES):
    raise ValueError(f"ranges are of {sorted(manifest.ranges)}")
  for name, pair in manifest.ranges.items():
    if len(pair) != 2 or not -math.inf < pair[0] <= pair[1] < math.inf:
      raise ValueError(f"the range of {name} is {pair}")
  for file in manifest.files.values():
    name = file.name
    if name in ("", ".", "..") or "/" in name or "\0" in name:
      raise ValueError(f"the file name {name!r} leaves the folder")


def read_file(folder: pathlib.Path, manifest: Manifest, role: str) -> bytes:
  """Reads a file that the manifest names, and checks it.

  Raises:
    InputError: it is missing, no file, or not what was written.
  """
  file = manifest.files[role]
  path = current(folder) / file.name
  try:
    data = _read(path, file.bytes)
  except (OSError, ValueError) as error:
    raise unreadable(path, error) from error
  if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
    raise InputError(
      f"{path} is not what was exported ({len(data)} bytes, or their SHA-256); "
      f"expected {file.bytes} bytes with {file.sha256[:16]}...: copy it again, "
      "or run --mode=export again"
    )
  return data


def read_catalogue(folder: pathlib.Path, manifest: Manifest) -> ServedCatalogue:
  """Reads the catalogue that the manifest names, and checks it.

  Raises:
    InputError: it is missing, damaged, of another version, or does not go
      with the export.
  """
  data = read_file(folder, manifest, "catalogue")
  try:
    catalogue = catalogue_lib.of_bytes(data)
  except Exception as error:  # Any error of the readers is a damaged file.
    path = folder / manifest.files["catalogue"].name
    raise unreadable(path, error) from error
  manifest.check(catalogue)
  return catalogue


def write_catalogue(
  folder: str | pathlib.Path, catalogue: ServedCatalogue
) -> Manifest:
  """Replaces the catalogue of an export; running servers take it over.

  Only one process may write at a time.

  Returns:
    The new manifest.

  Raises:
    InputError: the folder is no export, or the catalogue does not go with it.
  """
  folder = current(pathlib.Path(folder))
  manifest = read_manifest(folder)
  manifest.check(catalogue)
  file = add_catalogue(folder, catalogue)
  manifest = dataclasses.replace(
    manifest, files=manifest.files | {"catalogue": file}
  )
  write_manifest(folder, manifest)
  written = sorted(
    folder.glob("catalogue-*.npz"), key=lambda path: path.stat().st_mtime_ns
  )
  for path in written[:-_KEPT]:
    if path.name != file.name:
      path.unlink()
  return manifest


def _read(path: pathlib.Path, most: int) -> bytes:
  """Reads a regular file of at most `most` bytes; never waits for a writer.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is a FIFO, a device, or larger.
  """
  # Without O_NONBLOCK, opening a FIFO waits for as long as nobody writes. What
  # an opener opened is closed where it is a folder; a number given would not.
  with open(
    path, "rb", opener=lambda name, mode: os.open(name, mode | os.O_NONBLOCK)
  ) as file:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
      raise ValueError("no regular file")
    if status.st_size > most:
      raise ValueError(f"{status.st_size} bytes, more than {most}")
    return file.read()


def unreadable(path: pathlib.Path, error: Exception) -> InputError:
  """Returns the error of a file that cannot be read."""
  what = (str(error) or type(error).__name__).splitlines()[0]
  return InputError(
    f"{path} cannot be read ({type(error).__name__}: {what}); expected what "
    "--mode=export wrote: run it again"
  )
