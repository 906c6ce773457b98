"""Runs what the flags say: stages, an experiment, a change of a catalogue."""

import contextlib
import os
import pathlib
import sys
import time

import jax
import numpy as np
from absl import flags, logging

from hsrl_jax import agents, errors
from hsrl_jax import config as config_lib
from hsrl_jax import flags as flags_lib
from hsrl_jax.config import STAGES
from hsrl_jax.data import embeddings, sids
from hsrl_jax.engine import parallel, processes
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import jobs, sweep
from hsrl_jax.experiments.registry import Front
from hsrl_jax.host import stop, tpu
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.report import run_page, sid_page
from hsrl_jax.serving import versions
from hsrl_jax.sid import store
from hsrl_jax.stages import (
  advise,
  catalogue_changes,
  collect,
  export,
  plan,
  quantize,
  watch_users,
)
from hsrl_jax.stages import run as run_lib

_OF_EMBEDDINGS = ("quantize", "add_items", "remove_items")


def _main(argv: list[str], front: Front, command: str) -> None:
  """Runs what --mode names."""
  if len(argv) > 1:
    raise InputError(
      f"unexpected argument {argv[1]!r}; expected flags alone, see --help"
    )
  if flags_lib.MODE.value == "rollback":
    _roll_back()
    return
  if not flags_lib.WORKDIR.value:
    raise InputError("--workdir is missing; expected a folder to write to")
  workdir = pathlib.Path(flags_lib.WORKDIR.value)
  mode, chosen = _adopt_flags(workdir, front)
  _check_inputs(mode, chosen)
  config = flags_lib.config_from_flags(chosen)
  # A bad flag is told before anything runs, whatever the mode reads.
  flags_lib.export_from_flags()
  if mode == "plan":  # Of devices that need not be there, by one process.
    jax.config.update("jax_platforms", "cpu")
  elif _joins_others(mode):
    # Only process 0 prints, and keeps other runs out.
    with contextlib.ExitStack() as inside:
      if processes.is_first():
        inside.enter_context(workdir_lib.locked(workdir))
      else:
        logging.set_verbosity(logging.ERROR)
        nowhere = inside.enter_context(open(os.devnull, "w"))
        inside.enter_context(contextlib.redirect_stdout(nowhere))
      _run_stages(mode, config, workdir)
    return
  if mode == "watch":  # It only reads, also beside a command that writes.
    watch_users.serve(run_lib.of_workdir(workdir), flags_lib.WATCH_PORT.value)
    return
  parallel.use_cores(config.train)
  with workdir_lib.locked(workdir):
    if chosen is None:
      _run(mode, config, workdir)
    else:
      _run_experiment(chosen, config, workdir, front, command)


def _run(mode: str, config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Runs what is no experiment, in this process alone."""
  workdir_lib.settle(workdir / store.FOLDER, quantize.KIND)
  if mode in ("add_items", "remove_items"):
    _change_items(mode, workdir)
  elif mode == "collect":
    collect.run(
      flags_lib.FROM.value,
      workdir,
      flags_lib.export_from_flags().dir,
      flags_lib.COLLECT_AFTER.value,
    )
  elif flags_lib.SWEEP.value:
    _sweep(config, workdir)
  elif flags_lib.EMBEDDINGS.value:
    with workdir_lib.unclaimed_on_error(workdir):
      _quantize_embeddings(config, workdir)
  else:
    _run_stages(mode, config, workdir)


def _roll_back() -> None:
  """Serves the version before; a run of the workdir is not disturbed."""
  folder, workdir = flags_lib.export_from_flags().dir, flags_lib.WORKDIR.value
  if folder is None and workdir is None:
    raise InputError(
      "--mode=rollback needs --workdir or --export_dir; expected the folder of "
      "a run, or of its exports"
    )
  root = pathlib.Path(folder or os.path.join(workdir, export.FOLDER))
  print(f"export: {root} serves version {versions.rollback(root)}")


def _adopt_flags(
  workdir: pathlib.Path, front: Front
) -> tuple[str, flags_lib.Chosen | None]:
  """The mode and the experiment.

  The flags that nobody gave are from now on those that the workdir kept.
  """
  kept, mode = workdir_lib.kept_flags(workdir), flags_lib.MODE.value
  now = flags_lib.named(front)
  before = next((f"--{x}={kept[x]}" for x in front.flags if x in kept), None)
  if not flags_lib.MODE.present and (now or before):
    mode = "experiment"
  if kept and (before is None) == (mode == "experiment"):
    whose = "an experiment" if before else "a single run"
    raise InputError(
      f"{workdir} belongs to {whose}; expected another --workdir for "
      f"--mode={mode}, which may have the same flags: "
      f"--flagfile={workdir / workdir_lib.FLAGS} --workdir=..."
    )
  if "embeddings" in kept and mode not in _OF_EMBEDDINGS:
    raise InputError(
      f"{workdir} has SIDs of --embeddings and no run; expected another "
      f"--workdir for --mode={mode}, or one of {', '.join(_OF_EMBEDDINGS)}"
    )
  if mode != "quantize":
    kept.pop("embeddings", None)
  if now and str(now) != before:  # Another experiment, of the same jobs.
    kept = {k: x for k, x in kept.items() if k.split("_")[0] not in front.flags}
  if now is None or now.keeps_flags:
    flags_lib.adopt(kept, str(workdir / workdir_lib.FLAGS))
  return mode, flags_lib.experiment_from_flags(front)


def _run_experiment(
  chosen: flags_lib.Chosen, config: config_lib.Config, workdir, front, command
) -> None:
  """Runs an experiment, whose workdir keeps its flags too."""
  entry, own = chosen
  recipe = flags.FLAGS.recipe
  settings = {
    x: flags_lib.settings_from_flags(x, recipe) for x in agents.AGENTS
  }
  with workdir_lib.unclaimed_on_error(workdir):
    if entry.keeps_flags:
      kept, given = flags_lib.resolved(chosen), flags_lib.given("experiment")
      workdir_lib.claim(workdir, kept, given, changes=True)
    entry.load().run(
      jobs.Experiment(
        entry.name, config, own, workdir, command, settings, front.known
      )
    )


def _joins_others(mode: str) -> bool:
  """Starts this process as one of many, if flags say so."""
  names = [flags_lib.COORDINATOR, flags_lib.PROCESSES, flags_lib.PROCESS]
  given = [flag.value for flag in names]
  if not flags_lib.DISTRIBUTED.value and given == [None] * 3:
    return False
  own = flags_lib.EMBEDDINGS.value or flags_lib.SWEEP.value
  if own or mode not in ("all", *STAGES):
    raise InputError(
      f"--mode={mode} with many processes; expected a single one: only the "
      "stages of a dataset know what to do with more"
    )
  if flags.FLAGS.recipe == "next_item":
    raise InputError(
      "--recipe=next_item with many processes; expected a single one"
    )
  try:
    processes.start(*given)
  except InputError as error:
    raise InputError(
      f"{error}; see --distributed, --coordinator, --processes and --process"
    ) from error
  return True


def _check_inputs(mode: str, chosen: flags_lib.Chosen | None) -> None:
  """Raises InputError where a flag does not go with the mode."""
  for flag, modes, needed in (
    (flags_lib.EMBEDDINGS, ("quantize", "add_items"), ("add_items",)),
    (flags_lib.ITEM_IDS, ("remove_items",), ("remove_items",)),
    (flags_lib.SWEEP, ("quantize",), ()),
    (flags_lib.FROM, ("collect",), ("collect",)),
    (flags_lib.COLLECT_AFTER, ("collect",), ()),
    (flags_lib.TOPOLOGY, ("plan",), ()),
    (flags_lib.WATCH_PORT, ("watch",), ()),
  ):
    is_given = flag.present and flag.value not in (None, "", [])  # 0 is.
    if is_given and mode not in modes:
      raise InputError(
        f"--{flag.name} with --mode={mode}; expected "
        f"{' or '.join(f'--mode={x}' for x in modes)}"
      )
    if not flag.value and mode in needed:
      raise InputError(f"--mode={mode} needs --{flag.name}; expected a path")
  if flags.FLAGS.sids and flags_lib.SWEEP.value:
    raise InputError(
      "--sids with --sweep, which fits SIDs of its own; expected one of them"
    )
  if chosen is None:
    if mode == "experiment":
      raise InputError("--mode=experiment needs --experiment; expected a name")
    return
  entry, sids_of = chosen.entry, flags.FLAGS.sids
  recipe = flags.FLAGS.recipe
  for flag, is_wrong, expected in (
    ("mode", mode != "experiment", "--mode=experiment, or no --mode"),
    ("recipe", recipe == "next_item", "one that trains in the simulator"),
    ("sids", entry.fits_sids and sids_of, "none: it fits SIDs of its own"),
    ("continue_from", flags.FLAGS.continue_from, "a single run"),
  ):
    if is_wrong:
      value = flags.FLAGS[flag].value
      raise InputError(f"--{flag}={value} with {entry}; expected {expected}")


def _run_stages(mode: str, config: config_lib.Config, workdir) -> None:
  run = run_lib.Run(config, workdir)
  with contextlib.ExitStack() as inside:
    if processes.is_first():  # What the first one wrote, it alone takes back.
      inside.enter_context(workdir_lib.unclaimed_on_error(workdir))
    run.claim(flags_lib.resolved(), flags_lib.given(mode), flags_lib.of_data())
    _run_claimed(mode, run, workdir)


def _run_claimed(mode: str, run: run_lib.Run, workdir: pathlib.Path) -> None:
  if mode == "export":
    run.export(flags_lib.export_from_flags())
    return
  if mode == "plan":
    tpu.describe(flags_lib.TOPOLOGY.value)  # What is wrong is told at once.
    run.complete(plan.STAGES)
    print(plan.lines(plan.run(run, flags_lib.TOPOLOGY.value)))
    print(f"plan: {workdir / plan.FILE}")
    return
  if mode == "advise":
    run.complete(["data"])
    print("\n".join(advise.lines(run)))
    return
  ran = run.complete(STAGES if mode == "all" else [mode])
  if not ran:
    what = "all stages" if mode == "all" else f"stage {mode}"
    print(f"{what} of this configuration found in {workdir}; nothing to do")
  if mode in ("all", "evaluate", "report") and processes.is_first():
    print(run_page.table(run.results()))
    print(f"results: {workdir / 'results.json'}")
    page = workdir / "report" / "report.html"
    print(f"report:  {page if page.exists() else 'run --mode=report'}")
  if ran and processes.is_first():
    print("\n".join(run.summarise()))


def _quantize_embeddings(config: config_lib.Config, workdir) -> None:
  """Stage quantize of a file, which needs no dataset."""
  path = pathlib.Path(flags_lib.EMBEDDINGS.value)
  source = quantize.source_of(path)
  sizes, file = config.quantizer, None
  if config.data.sids is not None:
    file = sids.taken_file(config.data.sids, workdir)
    sizes = sids.sized(sizes, file)
  given = flags_lib.given("quantize")
  kept = run_lib.with_sizes(flags_lib.resolved(), given, sizes)
  workdir_lib.claim(workdir, kept, given, flags_lib.of_data())
  if (workdir / store.FOLDER).exists():  # Complete, since it is replaced.
    facts = store.read(workdir).facts
    if file and facts.get("brought", {}).get("sha256") != file.digest:
      raise InputError(
        f"{file.path} has changed since {workdir} took its SIDs; expected the "
        "same content: use a new --workdir"
      )
    if facts["source"]["digest"] != source.digest:
      raise InputError(
        f"{path} has changed since its SIDs in {workdir} were made; expected "
        "the same content: use a new --workdir, or --mode=add_items for new "
        "items"
      )
    print(f"the SIDs of {path.name} found in {workdir}; nothing to do")
    return
  start = time.monotonic()
  print("quantize ...", flush=True)
  items, brought = embeddings.read(path), None
  if file is not None:
    ids = items.item_ids
    ids = np.arange(1, items.rows.shape[0] + 1) if ids is None else ids
    brought = sids.of_items(file, ids)
  run_lib.quantize_catalogue(sizes, workdir, items, source, None, brought)
  print(f"quantize done in {time.monotonic() - start:.1f} s", flush=True)


def _change_items(mode: str, workdir: pathlib.Path) -> None:
  """Adds items to SIDs made of embeddings, or removes them."""
  workdir_lib.agree(workdir, flags_lib.resolved(), flags_lib.given(mode))
  if "embeddings" not in workdir_lib.kept_flags(workdir):
    raise InputError(
      f"--mode={mode}: {workdir} has no SIDs of --embeddings; expected the "
      "workdir of --mode=quantize --embeddings=..."
    )
  if mode == "add_items":
    path = pathlib.Path(flags_lib.EMBEDDINGS.value)
    new = embeddings.read(path)
    facts = catalogue_changes.add_items(workdir, new, str(path))
    print(f"  {new.rows.shape[0]:,} items added; {facts['items']:,} now")
  else:
    path = pathlib.Path(flags_lib.ITEM_IDS.value)
    ids = embeddings.read_ids(path)
    facts = catalogue_changes.remove_items(workdir, ids, str(path))
    print(f"  {len(ids):,} items removed; {facts['items']:,} now")
  if facts["drift"]:
    print(f"  {sid_page.drift_line(facts)}")
  run_lib.show_sids(workdir)


def _sweep(config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Compares sizes; leaves no SIDs and claims no workdir."""
  sizes = flags_lib.sweep_sizes()
  if flags_lib.EMBEDDINGS.value:
    path = pathlib.Path(flags_lib.EMBEDDINGS.value)
    items, name = embeddings.read(path), path.name
  else:
    run = run_lib.Run(config, workdir)
    name = run.name
    run.require("data")
    items = quantize.of_dataset(run.dataset.items)
  results = sweep.run(config.quantizer, workdir, items, name, sizes)
  print(sweep.table(results))
  print(f"sizes:   {workdir / 'sweep.html'}")


def _not_of_orbax(record) -> bool:
  return "orbax" not in record.pathname


def run(argv: list[str], arguments: list[str], front: Front) -> None:
  """Runs what the flags say; errors are one line, and a status.

  `argv` is the command's name and what its flags left over; `arguments` are
  all of them, for the record.
  """
  # Orbax logs what it raises, too: pages of it.
  logging.get_absl_logger().addFilter(_not_of_orbax)
  try:
    with stop.on_sigterm():
      _main(argv, front, jobs.command_line(front.module, arguments))
  except InputError as error:
    _fail(error)
  except FloatingPointError as error:
    _fail(error, status=1)
  except jax.errors.JaxRuntimeError as error:
    processes.end_if_lost(error)
    raise
  except RuntimeError as error:
    if "Unable to initialize backend" not in str(error):
      raise
    _fail(
      f"{error}; expected JAX_PLATFORMS to name devices that are here, or not "
      "to be set"
    )
  except OSError as error:  # Such as a full disk; what is written is whole.
    where = f"{error.filename}: " if error.filename else ""
    _fail(f"{where}{error.strerror or error}", status=1)
  except (stop.Terminated, KeyboardInterrupt) as signal:
    print(f"\n{stop.LINE}", file=sys.stderr)
    sys.exit(130 if isinstance(signal, KeyboardInterrupt) else 0)


def _fail(error, status: int = 2) -> None:
  print(errors.line(error), file=sys.stderr)
  processes.leave(status)
  sys.exit(status)
