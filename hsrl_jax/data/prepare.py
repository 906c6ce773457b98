"""Runs a TFDS builder of `datasets/` into a data directory."""

import contextlib
import csv
import errno
import importlib.util
import io
import os
import pathlib
import re
import shutil
import sys
import types
from collections.abc import Callable

import tensorflow_datasets as tfds

from hsrl_jax import files
from hsrl_jax.data import blocks, manifest, source
from hsrl_jax.data import item_vectors as vectors_lib
from hsrl_jax.errors import InputError

CONFIGS = ("items", "sessions")
_BEGUN = ".begun"  # Is there until the manifest is.
# What a builder may leave beside its data: file, row, why of rows left out.
MALFORMED = "malformed.csv"
NOTES = "notes.txt"  # Lines for people.


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
  """Imports the file of a builder, by its path.

  Raises:
    InputError: it needs a package that is not installed.
  """
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[path.stem] = module  # TFDS asks where its builders come from.
  try:
    with tfds.core.registered.skip_registration():
      spec.loader.exec_module(module)
  except ModuleNotFoundError as error:
    raise InputError(
      f"{path.name} needs the package {error.name}, which is not installed; "
      "expected it there: those of the shipped datasets come with the extra "
      "data, hsrl_jax[data]"
    ) from error
  return module


def prepare(
  dataset: str,
  data_dir: pathlib.Path,
  raw_data_dir: str | None = None,
  progress: Callable[..., None] = lambda more=0: None,
  item_vectors: str = vectors_lib.AUTO,
  split_by: str = "time",
) -> dict[pathlib.Path, list[tuple[str, ...]]]:
  """Writes the dataset below `data_dir` as array_record.

  Configs of an earlier attempt are made anew: the source may have changed. A
  manifest comes last. A folder that holds neither it nor the mark of an attempt
  is not ours, and stays as it is. What else people should know is in `notes`.

  Args:
    dataset: see `builder_folder`.
    data_dir: where to write.
    raw_data_dir: where the source lies; for builders that say in
      MANUAL_DOWNLOAD_INSTRUCTIONS what they expect there.
    progress: called after each of CONFIGS, and as a builder calls its own; with
      a number where there is more to do.
    item_vectors: what they are made of; see item_vectors.write.
    split_by: what the splits are made by; see config.DataConfig.

  Returns:
    (file, row, why) of the rows that the builder left out, by the file in
    which it lists them.

  Raises:
    InputError: there is no such builder, the source is missing or no good, or
      something else is in `data_dir`.
  """
  (path,) = builder_folder(dataset).glob("*_dataset_builder.py")
  module = load_builder(path)
  _check_raw(dataset, raw_data_dir, module.Builder)
  able = getattr(module.Builder, "SPLITS_BY", ("time",))
  if split_by not in able:
    raise InputError(
      f"--split_by={split_by}, but --dataset={dataset} has splits by "
      f"{' or '.join(able)}; expected that, or another "
      "--dataset"
    )
  _check_own(data_dir)
  files.write_atomic(data_dir / _BEGUN, "")
  tfds.disable_progress_bar()
  malformed, told, kept = {}, [], {}
  for old in [x for name in CONFIGS for x in data_dir.glob(f"*/{name}")]:
    shutil.rmtree(old)
  shutil.rmtree(data_dir / blocks.FOLDER, ignore_errors=True)
  for name in (source.ITEM_VECTORS, NOTES):
    (data_dir / name).unlink(missing_ok=True)
  for config in CONFIGS:
    builder = module.Builder(
      config=config, data_dir=data_dir, file_format="array_record"
    )
    builder.split_by, builder.progress = split_by, progress
    builder.blocks, builder.kept = data_dir / blocks.FOLDER, kept
    try:
      with contextlib.redirect_stdout(
        io.StringIO()
      ):  # TFDS tells of downloads.
        builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(manual_dir=raw_data_dir)
        )
    except RuntimeError as error:
      _raise_if_full(error, data_dir)
      raise
    except AssertionError as error:
      empty = re.search(r'split ("\w+"): No examples', str(error))
      if empty is None:
        raise
      known = (builder.info.metadata or {}).get("notes", [])
      raise InputError(
        f"--dataset={dataset}: split {empty[1]} of {config} has no row; "
        "expected at least one in each: more data, or smaller slates"
        + (f" ({'; '.join(known)})" if known else "")
      ) from error
    listed = pathlib.Path(builder.data_dir) / MALFORMED
    if listed.exists():
      with listed.open(newline="") as file:
        malformed[listed] = [tuple(row) for row in csv.reader(file)][1:]
    told += (builder.info.metadata or {}).get("notes", [])
    progress()
  if _makes_vectors(builder, item_vectors):
    progress(1)
    told += vectors_lib.write(data_dir, item_vectors)
    progress()
  files.write_atomic(data_dir / NOTES, "".join(f"{x}\n" for x in told))
  manifest.write(data_dir)
  (data_dir / _BEGUN).unlink()
  return malformed


def _raise_if_full(error: RuntimeError, data_dir: pathlib.Path) -> None:
  """Raises the OSError that array_record tells in words, of a full disk."""
  for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
    if os.strerror(number) in str(error):
      where = str(data_dir)
      raise OSError(number, os.strerror(number), where) from error


def notes(data_dir: pathlib.Path) -> list[str]:
  """Lines that people should read about what `prepare` did."""
  path = pathlib.Path(data_dir) / NOTES
  return path.read_text().splitlines() if path.exists() else []


def _makes_vectors(builder, kind: str) -> bool:
  """Whether item vectors may have to be made: asked for, or a user's logs."""
  return kind != vectors_lib.AUTO or bool(getattr(builder, "EXTRA_ITEMS", None))


def _check_own(data_dir: pathlib.Path) -> None:
  """Raises InputError where a folder holds what `prepare` did not write."""
  ours = any((data_dir / name).exists() for name in (manifest.MANIFEST, _BEGUN))
  if data_dir.is_dir() and any(data_dir.iterdir()) and not ours:
    raise InputError(
      f"{data_dir} holds files, but no prepared data of hsrl_jax; expected a "
      "folder that is missing or empty: use another --workdir, or move it away"
    )


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
