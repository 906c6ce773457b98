"""Runs a TFDS builder of `datasets/` into a data directory."""

import csv
import importlib.util
import json
import pathlib
import re
import shutil
import sys
import types
from collections.abc import Callable

import tensorflow_datasets as tfds

from hsrl_jax import files
from hsrl_jax.errors import InputError, reading

CONFIGS = ("items", "sessions")
MANIFEST = "manifest.json"  # Path to [bytes, SHA-256] of each file.
# What a builder may leave beside its data: file, row, why of rows left out.
MALFORMED = "malformed.csv"


def builder_folder(dataset: str) -> pathlib.Path:
  """The folder of a builder: a name below `datasets/`, or a path of one's own.

  Raises:
    InputError: there is no builder.
  """
  own = files.shipped("datasets")
  for folder in (own / dataset, pathlib.Path(dataset)):
    if list(folder.glob("*_dataset_builder.py")):
      return folder
  known = sorted(p.parent.name for p in own.glob("*/*_dataset_builder.py"))
  raise InputError(
    f"--dataset={dataset}: no builder found; expected one of "
    f"{', '.join(known)} or the path of a folder with a *_dataset_builder.py"
  )


def load_builder(path: pathlib.Path) -> types.ModuleType:
  """Imports the file of a builder, by its path."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[path.stem] = module  # TFDS asks where its builders come from.
  with tfds.core.registered.skip_registration():
    spec.loader.exec_module(module)
  return module


def prepare(
  dataset: str,
  data_dir: pathlib.Path,
  raw_data_dir: str | None = None,
  progress: Callable[[], None] = lambda: None,
) -> dict[pathlib.Path, list[tuple[str, ...]]]:
  """Writes the dataset below `data_dir` as array_record.

  Configs of an earlier attempt are made anew: the source may have changed. A
  manifest comes last.

  Args:
    dataset: see `builder_folder`.
    data_dir: where to write.
    raw_data_dir: where the source lies; for builders that say in
      MANUAL_DOWNLOAD_INSTRUCTIONS what they expect there.
    progress: called after each of CONFIGS.

  Returns:
    (file, row, why) of the rows that the builder left out, by the file in
    which it lists them.

  Raises:
    InputError: there is no such builder, or the source is missing or no good.
  """
  (path,) = builder_folder(dataset).glob("*_dataset_builder.py")
  module = load_builder(path)
  _check_raw(dataset, raw_data_dir, module.Builder)
  tfds.disable_progress_bar()
  malformed = {}
  for old in [x for name in CONFIGS for x in data_dir.glob(f"*/{name}")]:
    shutil.rmtree(old)
  for config in CONFIGS:
    builder = module.Builder(
      config=config, data_dir=data_dir, file_format="array_record"
    )
    try:
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=raw_data_dir)
      )
    except AssertionError as error:
      empty = re.search(r'split ("\w+"): No examples', str(error))
      if empty is None:
        raise
      raise InputError(
        f"--dataset={dataset}: split {empty[1]} of {config} has no row; "
        "expected at least one in each split: more data"
      ) from error
    listed = pathlib.Path(builder.data_dir) / MALFORMED
    if listed.exists():
      with listed.open(newline="") as file:
        malformed[listed] = [tuple(row) for row in csv.reader(file)][1:]
    progress()
  manifest = {
    str(path.relative_to(data_dir)): [path.stat().st_size, files.digest(path)]
    for path in sorted(data_dir.glob("*/*/*/*"))
  }
  files.write_json(data_dir / MANIFEST, manifest)
  return malformed


def _check_raw(dataset: str, raw_data_dir: str | None, builder) -> None:
  """Raises InputError where a source is wanted and not there, or vice versa."""
  wanted = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  if wanted is None:
    if raw_data_dir is not None:
      raise InputError(
        f"--raw_data_dir={raw_data_dir}, but --dataset={dataset} reads none; "
        "expected no --raw_data_dir, or another --dataset"
      )
    return
  if raw_data_dir is None:
    fault = "--raw_data_dir is missing"
  elif not pathlib.Path(raw_data_dir).is_dir():
    fault = f"--raw_data_dir={raw_data_dir} is no folder"
  elif not any(pathlib.Path(raw_data_dir).iterdir()):
    fault = f"--raw_data_dir={raw_data_dir} is empty"
  else:
    return
  raise InputError(
    f"--dataset={dataset}: {fault}; expected a folder with {wanted}"
  )


def verify(data_dir: pathlib.Path) -> None:
  """Checks that every file that `prepare` wrote is there and whole.

  Raises:
    InputError: the file that is missing, cut or altered.
  """
  path = data_dir / MANIFEST
  if not path.exists():
    raise InputError(f"{data_dir}: no prepared data; run --mode=data first")
  again = f"delete {data_dir} and {data_dir.parent}/.done/data, then run again"
  with reading(path, f"what --mode=data wrote: {again}"):
    manifest = dict(json.loads(path.read_text()))
  for name, (size, digest) in manifest.items():
    file = data_dir / name
    if not file.exists():
      raise InputError(f"{file} is missing; {again}")
    if file.stat().st_size != size:
      raise InputError(
        f"{file} has {file.stat().st_size} bytes; expected {size}; {again}"
      )
    if files.digest(file) != digest:
      raise InputError(f"{file} was altered since it was prepared; {again}")
