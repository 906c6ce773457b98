"""The list of all files of a prepared dataset, with their digests."""

import json
import pathlib

from hsrl_jax import files
from hsrl_jax.errors import InputError, reading

MANIFEST = "manifest.json"  # Path to [bytes, SHA-256] of each file.


def write(data_dir: pathlib.Path) -> None:
  """Lists what lies below `data_dir`, as the last step of preparing it."""
  single = (*data_dir.glob("*.np[yz]"), *data_dir.glob("*/index.json"))
  paths = sorted([*data_dir.glob("*/*/*/*"), *single])
  files.write_json(
    data_dir / MANIFEST,
    {
      str(path.relative_to(data_dir)): [path.stat().st_size, files.digest(path)]
      for path in paths
    },
  )


def verify(data_dir: pathlib.Path) -> None:
  """Checks that every listed file is there and whole.

  Raises:
    InputError: the file that is missing, cut or altered.
  """
  path = data_dir / MANIFEST
  if not path.exists():
    raise InputError(f"{data_dir}: no prepared data; run --mode=data first")
  again = f"delete {data_dir} and {data_dir.parent}/.done/data, then run again"
  with reading(path, f"what --mode=data wrote: {again}"):
    listed = dict(json.loads(path.read_text()))
  for name, (size, digest) in listed.items():
    file = data_dir / name
    if not file.exists():
      raise InputError(f"{file} is missing; {again}")
    if file.stat().st_size != size:
      raise InputError(
        f"{file} has {file.stat().st_size} bytes; expected {size}; {again}"
      )
    if files.digest(file) != digest:
      raise InputError(f"{file} was altered since it was prepared; {again}")
