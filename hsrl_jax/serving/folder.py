"""The folder of an export: what is in it, checked when it is read.

`manifest.json` names the other files with their checksums and is written last;
a catalogue that takes the place of another has a file of its own. So whoever
reads the manifest finds whole files that belong together, at any moment.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from hsrl_jax import files
from hsrl_jax.errors import InputError
from hsrl_jax.serving import catalogue as catalogue_lib
from hsrl_jax.serving.catalogue import Catalogue

FORMAT = 1
MANIFEST = "manifest.json"
ROLES = ("decode", "policy", "catalogue")
_KEPT = 2  # Catalogues; who has just read the last manifest may want the other.


class File(NamedTuple):
  """A file of the folder.

  Attributes:
    name: in the folder.
    sha256: of its content.
    bytes: its size.
  """

  name: str
  sha256: str
  bytes: int


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What was exported.

  Attributes:
    sizes: `history` H, `profile` P, `seen` T, `slate` K, `levels` L,
      `vocab_size` V, `capacity` C and `features` D.
    batch_sizes: users decoded at once, ascending.
    platforms: of `cpu`, `cuda`, `tpu`.
    codebooks: short name of those that the policy was trained with.
    files: `decode` the jax.export artefact, `policy` its parameters,
      `catalogue`.
    about: agent, how it acts, seed, configuration, versions: for people.
    format: of the folder.
  """

  sizes: dict[str, int]
  batch_sizes: tuple[int, ...]
  platforms: tuple[str, ...]
  codebooks: str
  files: dict[str, File]
  about: dict[str, Any]
  format: int = FORMAT

  def check(self, catalogue: Catalogue) -> None:
    """Raises InputError where a catalogue does not go with the export."""
    found = catalogue.sizes() | {"codebooks": catalogue.codebooks_digest()}
    for name, value in found.items():
      want = self.codebooks if name == "codebooks" else self.sizes[name]
      if value != want:
        raise InputError(
          f"the catalogue has {name} {value}; expected {want}, as this export "
          "has: export again, or make the catalogue from that of the export"
        )


def add_file(folder: pathlib.Path, name: str, data: bytes) -> File:
  """Writes a file of the folder."""
  files.write_atomic(folder / name, data)
  return File(name, hashlib.sha256(data).hexdigest(), len(data))


def add_catalogue(folder: pathlib.Path, catalogue: Catalogue) -> File:
  """Writes a catalogue's file, named by its content."""
  data = catalogue.to_bytes()
  name = hashlib.sha256(data).hexdigest()[:16]
  return add_file(folder, f"catalogue-{name}.npz", data)


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
  """Writes the manifest, after which the export is as it says."""
  values = dataclasses.asdict(manifest)
  values["files"] = {k: f._asdict() for k, f in manifest.files.items()}
  files.write_json(folder / MANIFEST, values)


def read_manifest(folder: pathlib.Path) -> Manifest:
  """Reads the manifest.

  Raises:
    InputError: it is missing, damaged, or of another version.
  """
  path = folder / MANIFEST
  try:
    values = json.loads(path.read_text())
    found = values["format"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise _unreadable(path, error) from error
  if found != FORMAT:
    raise InputError(
      f"{path} has format {found}; expected {FORMAT}: export again, or serve "
      "it with the version of hsrl_jax that wrote it"
    )
  try:
    return Manifest(
      **values
      | {
        "files": {role: File(**values["files"][role]) for role in ROLES},
        "batch_sizes": tuple(values["batch_sizes"]),
        "platforms": tuple(values["platforms"]),
      }
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise _unreadable(path, error) from error


def read_file(folder: pathlib.Path, manifest: Manifest, role: str) -> bytes:
  """The content of a file that the manifest names, checked.

  Raises:
    InputError: it is missing, or not what was written.
  """
  file = manifest.files[role]
  path = folder / file.name
  try:
    data = path.read_bytes()
  except OSError as error:
    raise _unreadable(path, error) from error
  if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
    raise InputError(
      f"{path} is not what was exported ({len(data)} bytes, or their SHA-256); "
      f"expected {file.bytes} bytes with {file.sha256[:16]}...: copy it again, "
      "or run --mode=export again"
    )
  return data


def read_catalogue(folder: pathlib.Path, manifest: Manifest) -> Catalogue:
  """The catalogue that the manifest names.

  Raises:
    InputError: it is missing, damaged, of another version, or does not go
      with the export.
  """
  data = read_file(folder, manifest, "catalogue")
  path = folder / manifest.files["catalogue"].name
  try:
    found = catalogue_lib.of_bytes(data)
  except Exception as error:  # Any error of the readers is a damaged file.
    raise _unreadable(path, error) from error
  manifest.check(found)
  return found


def write_catalogue(
  folder: str | pathlib.Path, catalogue: Catalogue
) -> Manifest:
  """Puts another catalogue in the place of an export's; servers take it over.

  One writer at a time.

  Returns:
    The new manifest.

  Raises:
    InputError: the folder is no export, or the catalogue does not go with it.
  """
  folder = pathlib.Path(folder)
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


def _unreadable(path: pathlib.Path, error: Exception) -> InputError:
  what = (str(error) or type(error).__name__).splitlines()[0]
  return InputError(
    f"{path} cannot be read ({type(error).__name__}: {what}); expected what "
    "--mode=export wrote: run it again"
  )
