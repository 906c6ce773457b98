"""Runs a TFDS builder of `datasets/` into a data directory."""

import importlib.util
import pathlib
import sys

import tensorflow_datasets as tfds

from hsrl_jax.errors import InputError

CONFIGS = ("items", "sessions")
_DATASETS = pathlib.Path(__file__).parents[2] / "datasets"


def builder_folder(dataset: str) -> pathlib.Path:
  """The folder of a builder: a name below `datasets/`, or a path of one's own.

  Raises:
    InputError: there is no builder.
  """
  for folder in (_DATASETS / dataset, pathlib.Path(dataset)):
    if list(folder.glob("*_dataset_builder.py")):
      return folder
  known = sorted(
    p.parent.name for p in _DATASETS.glob("*/*_dataset_builder.py")
  )
  raise InputError(
    f"--dataset={dataset}: no builder found; expected one of "
    f"{', '.join(known)} or the path of a folder with a *_dataset_builder.py"
  )


def prepare(dataset: str, data_dir: pathlib.Path) -> None:
  """Writes the dataset below `data_dir` as array_record.

  TFDS writes each config under a temporary name and renames it when it is
  complete; what is complete already is kept.

  Raises:
    InputError: there is no such builder.
  """
  (path,) = builder_folder(dataset).glob("*_dataset_builder.py")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[path.stem] = module  # TFDS asks where its builders come from.
  spec.loader.exec_module(module)
  tfds.disable_progress_bar()
  for config in CONFIGS:
    builder = module.Builder(
      config=config, data_dir=data_dir, file_format="array_record"
    )
    builder.download_and_prepare()
