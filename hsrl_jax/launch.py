"""Trains and measures a recommender by hierarchical semantic RL.

  python -m hsrl_jax.launch --flagfile=launch/flags/quickstart.flags

Stages: data, quantize, simulator, policy, evaluate, report. Each is skipped
where its output is in --workdir, and goes on where it was stopped. All other
flags decide what is computed; --helpfull lists them.

  python -m hsrl_jax.launch --mode=quantize --embeddings=items.npy --workdir=W

gives semantic IDs to items of your own; add_items and remove_items go on.
"""

import functools
import json
import pathlib
import sys
import time

import jax
from absl import app, flags, logging

from hsrl_jax import config as config_lib
from hsrl_jax import files
from hsrl_jax import flags as flags_lib
from hsrl_jax.data import embeddings, prepare, source
from hsrl_jax.errors import InputError
from hsrl_jax.training import (
  evaluate,
  policy,
  progress,
  quantize,
  report,
  sid_report,
  simulator,
  sweep,
)
from hsrl_jax.training import workdir as workdir_lib

STAGES = flags_lib.STAGES
_EXAMPLES = 4

flags.declare_key_flag("mode")
flags.declare_key_flag("workdir")
flags.declare_key_flag("dataset")
flags.declare_key_flag("embeddings")
flags.declare_key_flag("item_ids")
flags.declare_key_flag("sweep")
flags.declare_key_flag("sid_levels")
flags.declare_key_flag("sid_vocab_size")
flags.declare_key_flag("simulator_protocol")
flags.declare_key_flag("iterations")
flags.declare_key_flag("seeds")


class Run:
  """One configuration in one workdir; what stages share is loaded once."""

  def __init__(self, config: config_lib.Config, workdir: pathlib.Path):
    """Binds a configuration to the folder it writes to."""
    self.config, self.workdir = config, workdir
    c = config
    self.fingerprints = {
      "data": config_lib.fingerprint(c.data),
      "quantize": config_lib.fingerprint(c.data, c.quantizer),
      "simulator": config_lib.fingerprint(c.data, c.simulator),
      "policy": config_lib.fingerprint(c),
      "evaluate": config_lib.fingerprint(c),
      "report": config_lib.fingerprint(c),
    }

  @functools.cached_property
  def dataset(self) -> source.Dataset:
    """The prepared data."""
    return source.load(self.workdir / "data")

  @functools.cached_property
  def catalogue(self):
    """Items and SIDs."""
    return quantize.load(
      self.workdir, self.dataset.items, self.config.quantizer.vocab_size
    )

  @functools.cached_property
  def env(self):
    """The simulator."""
    slate_size = self.dataset.splits["train"].exposed.shape[1]
    return simulator.make_env(self.config.simulator, slate_size)

  @functools.cached_property
  def response(self) -> simulator.ResponseParams:
    """The fitted click model."""
    return simulator.load(self.config.simulator, self.workdir, self.dataset)

  def users(self, split: str):
    """The simulator's parameters with the users of a split."""
    return simulator.pool(self.response, self.dataset.splits[split])

  def data(self) -> None:
    """Stage data."""
    with progress.bar(len(prepare.CONFIGS), "data", "table") as bar:
      prepare.prepare(
        self.config.data.dataset, self.workdir / "data", bar.update
      )
    items, splits = self.dataset
    sizes = ", ".join(f"{k} {len(v.user_id):,}" for k, v in splits.items())
    print(f"  {len(items.titles) - 1:,} items; slates: {sizes}")

  def quantize(self) -> None:
    """Stage quantize, of the dataset."""
    items = self.dataset.items
    _quantize(
      self.config.quantizer,
      self.workdir,
      quantize.of_dataset(items),
      quantize.Source(self.config.data.dataset),
      items.genres[1:],
    )

  def simulator(self) -> None:
    """Stage simulator."""
    made = simulator.run(self.config.simulator, self.workdir, self.dataset)
    print("  validation: " + ", ".join(f"{k} {v:.4f}" for k, v in made.items()))

  def policy(self) -> None:
    """Stage policy."""
    how = policy.acting(self.config.policy, self.catalogue.index)
    print(f"  acting: {how}")
    policy.run(
      self.config,
      self.workdir,
      self.env,
      self.catalogue,
      self.users("train"),
      self.users("val"),
    )

  def evaluate(self) -> None:
    """Stage evaluate."""
    c = self.config.evaluate
    users = self.users(c.split)
    key = jax.random.key(c.seed)
    params = policy.load(
      self.config, self.workdir, self.env, self.catalogue, self.users("train")
    )
    act = policy.greedy(policy.make_agent(self.config, self.env))
    bounds = evaluate.bounds(
      self.env, users, num_items=self.catalogue.index.num_items
    )
    policies = {name: [bound] for name, bound in bounds.items()}
    policies["hsrl"] = [(act, (p, self.catalogue)) for p in params]
    table = {}
    total = sum(map(len, policies.values()))
    with progress.bar(total, "evaluate", "policy") as bar:
      for name, seeds in policies.items():
        table[name] = []
        for act, p in seeds:
          sessions = evaluate.simulate(
            act, self.env, p, users, key, episodes=c.episodes
          )
          table[name].append(jax.device_get(sessions))
          bar.update()
    read = self._read_json
    files.write_json(
      self.workdir / "results.json",
      {
        "protocol": self.config.simulator.protocol,
        "dataset": self.config.data.dataset,
        "split": c.split,
        "episodes": c.episodes,
        "seeds": list(self.config.policy.seeds),
        "policies": evaluate.report(table),
        "simulator": read("simulator/quality.json"),
        "sids": read("sids/report.json"),
      },
    )
    items = self.dataset.items
    shown = evaluate.examples(
      table["hsrl"][0],
      self.dataset.splits[c.split].history,
      items.titles,
      _EXAMPLES,
    )
    files.write_json(self.workdir / "report" / "examples.json", shown)

  def report(self) -> None:
    """Stage report."""
    report.write(self.workdir, self.dataset.items)

  def stage(self, name: str) -> bool:
    """Runs a stage, unless it is done; says which. True if it ran."""
    fingerprint = self.fingerprints[name]
    if workdir_lib.is_done(self.workdir, name, fingerprint):
      return False
    for before in STAGES[: STAGES.index(name)]:
      workdir_lib.require(self.workdir, before, self.fingerprints[before])
    print(f"{name} ...", flush=True)
    start = time.monotonic()
    getattr(self, name)()
    workdir_lib.mark_done(self.workdir, name, fingerprint)
    print(f"{name} done in {time.monotonic() - start:.1f} s", flush=True)
    return True

  def _read_json(self, name: str):
    return json.loads((self.workdir / name).read_text())

  def conclude(self) -> None:
    """Prints the results' table and where everything is."""
    print(report.table(self._read_json("results.json")))
    print(f"results: {self.workdir / 'results.json'}")
    page = self.workdir / "report" / "report.html"
    print(f"report:  {page if page.exists() else 'run --mode=report'}")


def main(argv: list[str]) -> None:
  """Runs the stages that --mode names."""
  if len(argv) > 1:
    raise InputError(
      f"unexpected argument {argv[1]!r}; expected flags alone, see --help"
    )
  mode = flags_lib.MODE.value
  if not flags_lib.WORKDIR.value:
    raise InputError("--workdir is missing; expected a folder to write to")
  _check_inputs(mode)
  config = flags_lib.config_from_flags()
  workdir = pathlib.Path(flags_lib.WORKDIR.value)
  workdir_lib.settle(workdir / quantize.FOLDER)
  if mode in ("add_items", "remove_items"):
    _change_items(mode, workdir)
  elif flags_lib.SWEEP.value:
    _sweep(config, workdir)
  elif flags_lib.EMBEDDINGS.value:
    _quantize_embeddings(config, workdir)
  else:
    _run_stages(mode, config, workdir)


def _check_inputs(mode: str) -> None:
  """Raises InputError where a flag does not go with the mode."""
  for flag, modes, needed in (
    (flags_lib.EMBEDDINGS, ("quantize", "add_items"), ("add_items",)),
    (flags_lib.ITEM_IDS, ("remove_items",), ("remove_items",)),
    (flags_lib.SWEEP, ("quantize",), ()),
  ):
    if flag.value and mode not in modes:
      raise InputError(
        f"--{flag.name} with --mode={mode}; expected "
        f"{' or '.join(f'--mode={x}' for x in modes)}"
      )
    if not flag.value and mode in needed:
      raise InputError(f"--mode={mode} needs --{flag.name}; expected a file")


def _run_stages(mode: str, config: config_lib.Config, workdir) -> None:
  prepare.builder_folder(config.data.dataset)
  workdir_lib.claim(workdir, flags_lib.resolved())
  run = Run(config, workdir)
  ran = [run.stage(name) for name in (STAGES if mode == "all" else [mode])]
  if not any(ran):
    what = "all stages" if mode == "all" else f"stage {mode}"
    print(f"{what} of this configuration found in {workdir}; nothing to do")
  if mode in ("all", "evaluate", "report"):
    run.conclude()


def _quantize_embeddings(config: config_lib.Config, workdir) -> None:
  """Stage quantize of a file, which needs no dataset."""
  path = pathlib.Path(flags_lib.EMBEDDINGS.value)
  source = quantize.source_of(path)
  workdir_lib.claim(workdir, flags_lib.resolved())
  if (workdir / quantize.FOLDER).exists():  # Complete, since it is replaced.
    made_of = quantize.read(workdir).facts["source"]
    if made_of["digest"] != source.digest:
      raise InputError(
        f"{path} has changed since its SIDs in {workdir} were made; expected "
        "the same content: use a new --workdir, or --mode=add_items for new "
        "items"
      )
    print(f"the SIDs of {path.name} found in {workdir}; nothing to do")
    return
  start = time.monotonic()
  print("quantize ...", flush=True)
  _quantize(config.quantizer, workdir, embeddings.read(path), source)
  print(f"quantize done in {time.monotonic() - start:.1f} s", flush=True)


def _quantize(config, workdir: pathlib.Path, *catalogue) -> None:
  made = quantize.run(config, workdir, *catalogue)
  print(
    f"  {made['items']:,} items, {made['items']:,} SIDs; relative error "
    f"{made['relative_error_unique']:.3f} "
    f"({made['relative_error'][-1]:.3f} before {made['collided_items']:,} "
    "items that shared a SID got their own)"
  )
  _show_sids(workdir)


def _change_items(mode: str, workdir: pathlib.Path) -> None:
  """Adds items to SIDs made of embeddings, or removes them."""
  workdir_lib.agree(workdir, flags_lib.given())
  if "embeddings" not in workdir_lib.kept_flags(workdir):
    raise InputError(
      f"--mode={mode}: {workdir} has no SIDs of --embeddings; expected the "
      "workdir of --mode=quantize --embeddings=..."
    )
  if mode == "add_items":
    path = pathlib.Path(flags_lib.EMBEDDINGS.value)
    new = embeddings.read(path)
    made = quantize.add_items(workdir, new, str(path))
    print(f"  {new.rows.shape[0]:,} items added; {made['items']:,} now")
  else:
    path = pathlib.Path(flags_lib.ITEM_IDS.value)
    ids = embeddings.read_ids(path)
    made = quantize.remove_items(workdir, ids, str(path))
    print(f"  {len(ids):,} items removed; {made['items']:,} now")
  if made["drift"]:
    print(f"  {sid_report.drift_line(made)}")
  _show_sids(workdir)


def _sweep(config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Compares sizes; leaves no SIDs and claims no workdir."""
  sizes = flags_lib.sweep_sizes()
  if flags_lib.EMBEDDINGS.value:
    path = pathlib.Path(flags_lib.EMBEDDINGS.value)
    items, name = embeddings.read(path), path.name
  else:
    run, name = Run(config, workdir), config.data.dataset
    workdir_lib.require(workdir, "data", run.fingerprints["data"])
    items = quantize.of_dataset(run.dataset.items)
  found = sweep.run(config.quantizer, workdir, items, name, sizes)
  print(sweep.table(found))
  print(f"sizes:   {workdir / 'sweep.html'}")


def _show_sids(workdir: pathlib.Path) -> None:
  folder = workdir / quantize.FOLDER
  print(f"  SIDs: {folder / 'sids.npz'}, report: {folder / 'report.html'}")


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (flags.Error, OSError) as error:
    _fail(error)


def _guarded(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)
  try:
    main(argv)
  except InputError as error:
    _fail(error)
  except FloatingPointError as error:
    _fail(error, status=1)
  except OSError as error:  # Such as a full disk; what is written is whole.
    where = f"{error.filename}: " if error.filename else ""
    _fail(f"{where}{error.strerror or error}", status=1)
  except KeyboardInterrupt:
    print("\nstopped; the same command goes on from here", file=sys.stderr)
    sys.exit(130)


def run_command(argv: list[str]) -> None:
  """Parses `argv` and runs it; exits with status 2 where it is wrong."""
  _guarded(_parse(argv))


def _fail(error, status: int = 2) -> None:
  text = " ".join(str(error).split())
  print(f"error: {text}", file=sys.stderr)
  sys.exit(status)


def entry() -> None:
  """The command `hsrl`."""
  app.run(_guarded, flags_parser=_parse)


if __name__ == "__main__":
  entry()
