"""Trains and measures a recommender by hierarchical semantic RL.

  python -m hsrl_jax.launch --flagfile=launch/flags/quickstart.flags

Stages: data, quantize, simulator, policy, evaluate, report. Each is skipped
where its output is in --workdir, and goes on where it was stopped. Then
--mode=export writes what a server needs, and collect takes what came of it as
logs (docs/loop.md). --helpfull lists all flags.

  python -m hsrl_jax.launch --mode=quantize --embeddings=items.npy --workdir=W

gives semantic IDs to items of your own; add_items and remove_items go on.

  python -m hsrl_jax.launch --experiment=NAME --flagfile=FILE --workdir=W

runs an experiment: many such runs, then a table, a plot and results.json.
"""

import os
import pathlib
import re
import sys

from absl import app, flags, logging

from hsrl_jax import errors, files
from hsrl_jax import flags as flags_lib
from hsrl_jax.experiments.registry import LAUNCH, Front
from hsrl_jax.host import compiled
from hsrl_jax.host import workdir as workdir_lib

for _name in (  # Those that --help shows.
  *(flags_lib.MODE.name, "workdir", "experiment", "dataset", "agent", "recipe"),
  *("raw_data_dir", "response_params", "embeddings", "item_ids", "sweep"),
  *("sid_levels", "sid_vocab_size", "simulator_protocol", "iterations"),
  "seeds",
):
  flags.declare_key_flag(_name)


def _shipped(argument: str) -> str:
  """A --flagfile below launch/, where it is not in the current folder."""
  parts = re.fullmatch("(--?flagfile=)launch/(.*)", argument)
  if parts is None or os.path.exists(argument.split("=", 1)[1]):
    return argument
  return f"{parts[1]}{files.shipped('launch') / parts[2]}"


def _of_flagfile(argument: str) -> list[str]:
  """The --workdir that a --flagfile names: its folder, if that kept it."""
  if not re.match("--?flagfile=", argument):
    return []
  path = pathlib.Path(os.path.expanduser(argument.partition("=")[2]))
  errors.check_regular(path, "a text file with flags, one a line")
  folder = path.parent
  is_kept = re.fullmatch(f"--?flagfile=(.*/)?{workdir_lib.FLAGS}", argument)
  if is_kept and {"agent", "dataset"} <= workdir_lib.kept_flags(folder).keys():
    return [f"--workdir={folder}"]
  return []


def _arguments(argv: list[str]) -> list[str]:
  """The arguments, with flagfiles where they are and the workdir they name."""
  joined = []
  for argument in argv[1:]:
    if any("\ud800" <= x <= "\udfff" for x in argument):
      raise errors.InputError(
        f"the argument {ascii(argument)} is no text in "
        f"{sys.getfilesystemencoding()}; expected some: set PYTHONUTF8=1, or "
        "LC_ALL to a locale of UTF-8"
      )
    if joined and joined[-1] in ("-flagfile", "--flagfile"):
      argument = f"{joined.pop()}={argument}"
    joined.append(_shipped(argument))
  workdirs = [x for argument in joined for x in _of_flagfile(argument)]
  return [argv[0], *workdirs, *joined]  # What comes later counts.


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(_arguments(argv))
  except UnicodeDecodeError as error:
    found = f"a --flagfile is no text ({error}); expected flags, one a line"
  except (flags.Error, OSError, errors.InputError) as error:
    found = str(error).removeprefix("ERROR:: ")
  print(errors.line(found), file=sys.stderr)
  sys.exit(2)


def run_command(argv: list[str], front: Front = LAUNCH) -> None:
  """Parses `argv` and runs it; exits with status 2 where it is wrong."""
  _run(_parse(argv), argv[1:], front)


def _run(argv: list[str], arguments: list[str], front: Front) -> None:
  # Before the import, in which matplotlib tells of fonts that it found.
  logging.set_verbosity(logging.WARNING)
  # Imported no sooner, so that --help and a bad flag are told at once.
  from hsrl_jax import command

  command.run(argv, arguments, front)


def entry(front: Front = LAUNCH) -> None:
  """The command `hsrl`, or another front, whose flags are defined."""
  compiled.keep()
  app.run(lambda argv: _run(argv, sys.argv[1:], front), flags_parser=_parse)


if __name__ == "__main__":
  entry()
