"""Files that are whole or not there, and what tells whether they changed."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import secrets
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from hsrl_jax.errors import InputError

_PIECE = 2**24  # Bytes that are hashed at once.
# An .npz file may inflate to so many bytes, or so many times its own.
_INFLATED, _RATIO = 2**27, 50


def shipped(name: str) -> pathlib.Path:
  """A folder of the repository that lies beside the package: datasets, launch.

  Where the package is installed the wheel brings its content; see setup.py.
  """
  package = pathlib.Path(__file__).parent
  inside = package / "shipped" / name
  return inside if inside.exists() else package.parent / name


def write_atomic(path: pathlib.Path, data: str | bytes) -> None:
  """Writes a file as `writing` does."""
  with writing(path) as file:
    file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """A file to write, under a temporary name beside it; then it is renamed.

  Who may read the file is up to the umask, as with any new file.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
  try:
    with unfinished.open("xb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    unfinished.replace(path)
  except BaseException as error:
    unfinished.unlink(missing_ok=True)
    if isinstance(error, OSError):
      error.filename = str(path)  # For people; a full disk names no file.
    raise


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON for people and scripts, atomically; NaN is refused."""
  write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: pathlib.Path, expected: int) -> Any:
  """Reads an object with a `format`; see `check_format`."""
  value = json.loads(path.read_text())
  check_format(path, value.get("format"), expected)
  return value


def write_npz(path: pathlib.Path, number: int, **arrays: Any) -> None:
  """Writes arrays and the number of their format, atomically."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, format=number, **arrays)
  write_atomic(path, buffer.getvalue())


def read_npz(path: pathlib.Path, expected: int) -> dict[str, np.ndarray]:
  """Reads arrays, one of which is `format`; see `check_format`."""
  # Opened here, since numpy leaves a damaged file open.
  with path.open("rb") as file, np.load(file) as saved:
    arrays = dict(saved)
  number = int(arrays["format"]) if "format" in arrays else None
  check_format(path, number, expected)
  return arrays


class Header(NamedTuple):
  """Header of an array, see numpy.lib.format."""

  shape: tuple[int, ...]
  dtype: np.dtype


def read_header(file: IO[bytes]) -> Header:
  """Reads the header of an .npy file; the file is then at its numbers.

  Raises:
    ValueError: it is no such file.
  """
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  elif version == (2, 0):
    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
  else:
    raise ValueError(f"it has version {version} of the .npy format")
  return Header(shape, dtype)


def npz_headers(path: pathlib.Path) -> dict[str, Header]:
  """Headers of the arrays of a user's .npz file, without inflating any.

  Raises:
    InputError: they would be far larger than the file, as no numbers are that
      tell anything.
    Exception: of zipfile or numpy, it is no such file.
  """
  with path.open("rb") as file, zipfile.ZipFile(file) as saved:
    size, members = path.stat().st_size, saved.infolist()
    inflated = sum(member.file_size for member in members)
    if inflated > max(_INFLATED, _RATIO * size):
      raise InputError(
        f"{path} has {size:,} bytes, and its arrays {inflated:,}; expected at "
        f"most {_RATIO} times as many: save what is needed of them"
      )
    headers = {}
    for member in members:
      with saved.open(member) as array:
        headers[member.filename.removesuffix(".npy")] = read_header(array)
  return headers


def check_format(path: pathlib.Path, number: int | None, expected: int) -> None:
  """Raises InputError unless a file's format has the expected number.

  Its own is None where it has none.
  """
  if number != expected:
    has = "no number of a format" if number is None else f"format {number}"
    raise InputError(
      f"{path} has {has}; expected {expected}: another version of hsrl_jax "
      "wrote it, use that one or make it again"
    )


def digest(
  path: pathlib.Path, on_bytes: Callable[[int], object] = lambda count: None
) -> str:
  """SHA-256 of a file; `on_bytes` is called with how many bytes were read.

  Raises:
    OSError: the file cannot be read.
  """
  content = hashlib.sha256()
  with path.open("rb") as file:
    while piece := file.read(_PIECE):
      content.update(piece)
      on_bytes(len(piece))
  return content.hexdigest()
