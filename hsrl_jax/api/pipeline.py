"""From logs to a recommender: the stages of the command, called in Python."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from hsrl_jax import agents, files
from hsrl_jax import settings as settings_lib
from hsrl_jax.api import frames
from hsrl_jax.api.recommender import Recommender
from hsrl_jax.data import prepare
from hsrl_jax.errors import InputError, reading
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.sid import store
from hsrl_jax.stages import quantize
from hsrl_jax.stages import run as run_lib

SOURCE = "source.json"  # Digests of the tables of which a workdir was made.
_TABLES = ".logs"  # Folder for tables, until they are prepared.
_LOGS = "logs"  # The dataset that reads a user's tables.


def fit(
  logs: Any,
  items: Any = None,
  *,
  profiles: Any = None,
  workdir: str | pathlib.Path,
  agent: str = agents.DEFAULT,
  log_options: Mapping[str, Any] | None = None,
  **settings: Any,
) -> Recommender:
  """Trains a recommender, and measures it on held-out logs.

  All stages run whose output is not in the workdir yet. Another call with the
  same arguments goes on where the last one was stopped.

  Args:
    logs: a pandas DataFrame with the columns of `interactions` or `sessions`
      (docs/bring_your_own.md); the path of such a table, .csv or .parquet; a
      folder with tables; or the name of a dataset that is there, such as
      movielens_latest_small.
    items: a DataFrame or a path with the columns of `items`; None: what the
      logs tell.
    profiles: a DataFrame or a path with `user_id` and what is known of users,
      the columns of a file `users`.
    workdir: folder of the run.
    agent: what is trained, a name in agents.AGENTS.
    log_options: what logs.json may hold, such as {"like_from": 4}, for tables.
    **settings: by the names of the command's flags, such as `iterations`,
      `sid_vocab_size`, `simulator_epochs`, `seeds`.

  Raises:
    InputError: a table, an option or a setting is not as it should be, or the
      workdir belongs to other ones.
    FloatingPointError: training diverged; lower `learning_rate`.
  """
  workdir = _folder(workdir)
  tables, named = _given(logs, items, profiles, log_options)
  if tables:
    named["raw_data_dir"] = str(workdir / _TABLES)
  if doubled := sorted(named.keys() & settings.keys()):
    raise InputError(
      f"{doubled[0]} is given, and logs tells it; expected no such setting"
    )
  config = settings_lib.config(agent, named | settings)
  run = run_lib.Run(config, workdir)
  with workdir_lib.locked(workdir):
    workdir_lib.settle(workdir / store.FOLDER, quantize.KIND)
    run.claim(settings_lib.texts(config))
    ran = False
    if tables:
      ran = _prepare(run, tables, log_options or {})
    if run.complete() or ran:
      run.summarise()
  return Recommender(run)


def load(workdir: str | pathlib.Path) -> Recommender:
  """Returns the recommender that `fit` or the command left in a workdir.

  Raises:
    InputError: there is none.
  """
  run = run_lib.of_workdir(_folder(workdir))
  run.require("policy")
  return Recommender(run)


def _folder(workdir: Any) -> pathlib.Path:
  """The path of a workdir."""
  if not isinstance(workdir, str | os.PathLike) or not os.fspath(workdir):
    raise InputError(
      f"workdir is {workdir!r}; expected the path of a folder, such as "
      "'runs/mine'"
    )
  return pathlib.Path(workdir)


def _given(
  logs: Any, items: Any, profiles: Any, options: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
  """The tables by name, DataFrames or paths, and the settings of the data."""
  if options is not None and not isinstance(options, Mapping):
    raise InputError(
      f"log_options is {str(options)[:60]!r}; expected a dict, such as "
      "{'like_from': 4}"
    )
  path = pathlib.Path(logs) if isinstance(logs, str | pathlib.Path) else None
  if path is None or path.suffix in frames.SUFFIXES:
    return frames.tables(logs, items, profiles), {"dataset": _LOGS}
  if any(x is not None for x in (items, profiles, options)):
    raise InputError(
      f"logs is {str(logs)!r} and `items`, `profiles` or `log_options` are "
      "given too; expected them with a table alone: folders and datasets bring "
      "their own"
    )
  if frames.in_folder(path):
    return {}, {"dataset": _LOGS, "raw_data_dir": str(path)}
  try:
    prepare.builder_folder(str(logs))
  except InputError as error:
    _, _, known = str(error).partition("expected ")
    raise InputError(
      f"logs is {str(logs)!r}; expected a DataFrame, a .csv or .parquet file, "
      f"a folder with interactions or sessions, {known}"
    ) from error
  return {}, {"dataset": str(logs)}


def _prepare(
  run: run_lib.Run, tables: Mapping[str, Any], options: Mapping[str, Any]
) -> bool:
  """Stage data, of tables; True if it ran."""
  path = run.workdir / SOURCE
  digests = {name: frames.digest(table) for name, table in tables.items()}
  made_of = {"format": 1, "tables": digests, "options": dict(options)}
  if run.is_done("data"):
    kept = json.loads(path.read_text()) if path.exists() else made_of
    if kept != made_of:
      raise InputError(
        f"{run.workdir} was made of other logs, items, profiles or "
        "log_options; expected the same: use a new workdir"
      )
    return False
  with reading("log_options", "what logs.json may hold"):
    files.write_json(path, made_of)
  with frames.written(run.workdir / _TABLES, tables, options):
    return run.stage("data")
