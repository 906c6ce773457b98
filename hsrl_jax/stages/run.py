"""A run: one configuration's stages, each skipped where it is complete."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import config as config_lib
from hsrl_jax import files, serving
from hsrl_jax.agents import make_agent
from hsrl_jax.agents.base import ActionSpace, Agent
from hsrl_jax.config import STAGES
from hsrl_jax.data import prepare, source
from hsrl_jax.engine import processes
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import simulate
from hsrl_jax.host import progress, watch
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.report import run_page
from hsrl_jax.sid import store
from hsrl_jax.sim import response_file
from hsrl_jax.stages import export as export_lib
from hsrl_jax.stages import policy, quantize, simulator

SESSIONS = "sessions.npz"  # What each evaluated session was, by policy.
SUMMARY = "summary.json"  # Time by phase, and memory.
_SHARED = ("data", "quantize", "simulator")
_EXAMPLES = 4
_MALFORMED = 5  # Rows of the source that are named on the screen.


class Run:
  """One configuration in one workdir; what stages share is loaded once."""

  def __init__(
    self,
    config: config_lib.Config,
    workdir: pathlib.Path,
    shared: pathlib.Path | None = None,
  ):
    """Binds a configuration to the folder it writes to.

    Args:
      config: of the run.
      workdir: where it writes.
      shared: where the stages data, quantize and simulator write, each in a
        folder that its configuration names, so that runs share what they have
        in common; None: in the workdir.

    Raises:
      InputError: the file of --response_params is not as it should be.
    """
    self.workdir, self.shared = workdir, shared
    self._stages, self._phases = watch.Watch(), watch.Watch()
    self.given = None
    if config.data.response_params is not None:
      self.given = response_file.read(
        self._given_path(config), final_dense=config.simulator.final_dense
      )
      config = dataclasses.replace(
        config, simulator=simulator.sized(config.simulator, self.given)
      )
    if self.own_users:
      _check_without_slates(config, self.given.name)
    self.config = config
    # Of the file its content counts, not its path.
    c = dataclasses.replace(
      config, data=dataclasses.replace(config.data, response_params=None)
    )
    given = (self.given.digest,) if self.given else ()
    whole = config_lib.fingerprint(c, *given)
    data = (c.data, *given) if self.own_users else (c.data,)
    self.fingerprints = {
      "data": config_lib.fingerprint(*data),
      "quantize": config_lib.fingerprint(*data, c.quantizer),
      "simulator": config_lib.fingerprint(c.data, c.simulator.of_fit(), *given),
      "policy": whole,
      "evaluate": whole,
      "report": whole,
    }

  def _given_path(self, config: config_lib.Config) -> pathlib.Path:
    """The file of --response_params, or the copy that was made of it."""
    path = pathlib.Path(config.data.response_params)
    copy = self.workdir / simulator.FOLDER / simulator.GIVEN
    return copy if copy.exists() and not path.exists() else path

  @property
  def own_users(self) -> bool:
    """Whether users and items are those of the file --response_params."""
    return self.given is not None and self.given.dataset is not None

  @property
  def name(self) -> str:
    """What the users and items are called."""
    return self.given.name if self.own_users else self.config.data.dataset

  @functools.cached_property
  def dataset(self) -> source.Dataset:
    """The prepared data."""
    if self.own_users:
      return self.given.dataset
    return source.load(self._folder("data") / "data")

  @functools.cached_property
  def catalogue(self) -> ActionSpace:
    """Items, SIDs and popularity."""
    catalogue = quantize.load(
      self._folder("quantize"), self.dataset.items, self.config.quantizer
    )
    logs = self.dataset.splits["train"]
    counts = np.bincount(
      np.asarray(logs.exposed).ravel(),
      weights=np.asarray(logs.response).ravel(),
      minlength=len(self.dataset.items.features),
    )
    return catalogue._replace(popularity=jnp.asarray(counts, jnp.float32))

  @functools.cached_property
  def env(self):
    """The simulator."""
    c = self.config.simulator
    slate_size = c.slate_size or self.dataset.splits["train"].exposed.shape[1]
    items = len(self.dataset.items.features) - 1
    if slate_size > items:
      raise InputError(
        f"--simulator_slate_size={slate_size}; expected at most {items}, the "
        "number of items"
      )
    return simulator.make_env(c, slate_size)

  @functools.cached_property
  def response(self) -> simulator.ResponseParams:
    """The fitted click model."""
    if self.given:
      return simulator.of_file(self.config.simulator, self.given, self.dataset)
    return simulator.load(
      self.config.simulator, self._folder("simulator"), self.dataset
    )

  def users(self, split: str):
    """The simulator's parameters with the users of a split."""
    return simulator.pool(self.response, self.dataset.splits[split])

  def data(self) -> None:
    """Stage data."""
    if not self.own_users:
      with progress.bar(len(prepare.CONFIGS), "data", "table") as bar:
        malformed = prepare.prepare(
          self.config.data.dataset,
          self._folder("data") / "data",
          self.config.data.raw_data_dir,
          bar.update,
        )
      for path, rows in malformed.items():
        print(f"  {len(rows):,} malformed rows left out, all listed in {path}:")
        for file, row, why in rows[:_MALFORMED]:
          print(f"    {file} row {row}: {why}")
    items, splits = self.dataset
    sizes = ", ".join(f"{k} {len(v.user_id):,}" for k, v in splits.items())
    what = "users" if self.own_users else "slates"
    print(f"  {len(items.titles) - 1:,} items; {what}: {sizes}")

  def quantize(self) -> None:
    """Stage quantize, of the dataset."""
    items = self.dataset.items
    quantize_catalogue(
      self.config.quantizer,
      self._folder("quantize"),
      quantize.of_dataset(items),
      quantize.Source(self.name),
      items.genres[1:],
    )

  def simulator(self) -> None:
    """Stage simulator."""
    where = (self.config.simulator, self._folder("simulator"), self.dataset)
    if self.given:
      made = simulator.adopt(*where, self.given, self._given_path(self.config))
      print(f"  weights of {self.given.name}, nothing is fitted")
    else:
      made = simulator.run(*where)
    measured = ", ".join(f"{k} {v:.4f}" for k, v in made.items())
    print(f"  validation: {measured or 'no slates are logged'}")

  def policy(self) -> None:
    """Stage policy."""
    how = policy.acting(self.agent(), self.catalogue.index)
    print(f"  acting: {how}")
    policy.run(
      self.config,
      self.workdir,
      self.env,
      self.catalogue,
      self.users("train"),
      self.users("val"),
      self.dataset.splits["train"],
      self._phases,
    )

  def evaluate(self) -> None:
    """Stage evaluate."""
    c, agent_name = self.config.evaluate, self.config.agent
    users = self.users(c.split)
    key = jax.random.key(c.seed)
    policies = {
      name: [bound]
      for name, bound in simulate.bounds(
        self.env, users, self.catalogue.index.active
      ).items()
    }
    policies[agent_name] = self.policies()
    table = {}
    total = sum(map(len, policies.values()))
    with progress.bar(total, "evaluate", "policy") as bar:
      for name, seeds in policies.items():
        table[name] = []
        for act, p in seeds:
          sessions = simulate.simulate(
            act, self.env, p, users, key, episodes=c.episodes
          )
          table[name].append(jax.device_get(sessions))
          bar.update()
    simulate.save(
      self.workdir / SESSIONS, table, self.dataset.splits[c.split].user_id
    )
    files.write_json(
      self.workdir / "results.json",
      {
        "format": simulate.RESULTS_FORMAT,
        "protocol": self.config.simulator.protocol,
        "dataset": self.name,
        "split": c.split,
        "episodes": c.episodes,
        "seeds": list(self.config.train.seeds),
        "agent": agent_name,
        "policies": simulate.report(table),
        "simulator": self._read_json(
          self._folder("simulator"), "simulator/quality.json"
        ),
        "sids": self._read_json(self._folder("quantize"), "sids/report.json"),
      },
    )
    items = self.dataset.items
    shown = simulate.examples(
      table[agent_name][0],
      self.dataset.splits[c.split].history,
      items.titles,
      _EXAMPLES,
    )
    files.write_json(self.workdir / "report" / "examples.json", shown)

  def agent(self, slate_size: int | None = None) -> Agent:
    """The agent, for slates of K items; None: as many as the simulator shows.

    It acts as in training, also where it is served with other items.
    """
    return make_agent(
      self.config,
      slate_size or self.env.slate_size,
      self.catalogue.index.num_items,
    )

  def policies(self) -> list[tuple[Callable, tuple]]:
    """The trained greedy policy of each seed, with its parameters."""
    params = policy.load(
      self.config, self.workdir, self.env, self.catalogue, self.users("train")
    )
    act = policy.greedy(self.agent())
    return [(act, (p, self.catalogue)) for p in params]

  def export(self, export: config_lib.ExportConfig) -> None:
    """Mode export: the trained policy of a seed, for serving."""
    workdir_lib.require(self.workdir, "policy", self.fingerprints["policy"])
    config, items = self.config, self.dataset.items
    agent = self.agent(export.slate_size)
    capacity = export_lib.capacity(agent, config, export, len(items.titles) - 1)
    seeds = config.train.seeds
    seed = seeds[0] if export.seed is None else export.seed
    if seed not in seeds:
      raise InputError(f"--export_seed={seed}; expected one of --seeds={seeds}")
    slate_size = export.slate_size or self.env.slate_size
    if slate_size > capacity:
      raise InputError(
        f"--export_slate_size={slate_size}; expected at most {capacity}, the "
        "capacity"
      )
    env = self.env._replace(slate_size=slate_size)
    seen = export.seen
    if seen is None:
      seen = env.max_steps * slate_size
    found, users = self.catalogue, self.users("train")
    params = policy.load(config, self.workdir, self.env, found, users)
    served = serving.make_catalogue(
      found.index,
      found.codebooks,
      items.features,
      items.external_ids,
      items.titles,
      capacity=capacity,
      popularity=found.popularity if agent.reads_popularity else None,
    )
    folder = pathlib.Path(export.dir or self.workdir / export_lib.FOLDER)
    how = policy.acting(agent, served.index)
    print(f"export ...\n  acting: {how}", flush=True)
    made = export_lib.write(
      folder,
      agent,
      params[seeds.index(seed)],
      served,
      env.start(0, users).observation,
      export,
      slate_size=slate_size,
      seen=seen,
      about={
        "agent": config.agent,
        "acting": how,
        "seed": seed,
        "dataset": self.name,
        "fingerprint": self.fingerprints["policy"],
        "config": config_lib.values(config),
      },
    )
    size = sum(file.bytes for file in made.files.values())
    print(
      f"  {served.index.num_items:,} items with room for {capacity:,}, slates "
      f"of {slate_size}, for {', '.join(made.platforms)}; {size / 1e6:.1f} MB"
    )
    print(f"export: {folder}")

  def report(self) -> None:
    """Stage report."""
    run_page.write(
      self.workdir,
      self.dataset.items,
      self._folder("quantize"),
      self._folder("simulator"),
    )

  def stage(self, name: str) -> bool:
    """Runs a stage, unless it is done; says which. True if it ran."""
    # Of many processes the first decides, and runs all but the training alone.
    if not processes.on_first(lambda: self._is_due(name)):
      return False
    print(f"{name} ...", flush=True)
    with self._stages.phase(name):
      if name == "policy":
        self.policy()
      else:
        processes.on_first(getattr(self, name))
    if processes.is_first():
      workdir_lib.mark_done(self._folder(name), name, self.fingerprints[name])
    spent = self._stages.seconds()[name]
    print(f"{name} done in {spent:.1f} s", flush=True)
    return True

  def _is_due(self, name: str) -> bool:
    """Whether a stage is yet to run; raises where one before it is missing."""
    folder, fingerprint = self._folder(name), self.fingerprints[name]
    if workdir_lib.is_done(folder, name, fingerprint):
      return False
    for before in STAGES[: STAGES.index(name)]:
      workdir_lib.require(
        self._folder(before), before, self.fingerprints[before]
      )
    return True

  def summarise(self) -> list[str]:
    """Writes summary.json, of this process; lines for a terminal."""
    summary = {
      "stages": self._stages.seconds(),
      "policy": self._phases.seconds(),
      "memory": watch.peak_memory(),
    }
    files.write_json(self.workdir / SUMMARY, summary)
    return watch.lines(summary)

  def results(self) -> dict:
    """What stage evaluate left."""
    return simulate.read_results(self.workdir / "results.json")

  def _folder(self, stage: str) -> pathlib.Path:
    if self.shared is None or stage not in _SHARED:
      return self.workdir
    return self.shared / f"{stage}-{self.fingerprints[stage][:8]}"

  def _read_json(self, folder: pathlib.Path, name: str):
    return json.loads((folder / name).read_text())


def _check_without_slates(config: config_lib.Config, name: str) -> None:
  """Raises InputError where a configuration asks for logged slates."""
  if config.simulator.slate_size is None:
    raise InputError(
      "--simulator_slate_size is missing; expected the items of a slate, since "
      f"{name} has no slates that would tell"
    )
  if make_agent(config, config.simulator.slate_size, items=1).offline:
    raise InputError(
      f"--agent={config.agent} learns from logged slates and {name} has "
      "none; expected another agent, or a file on top of a --dataset"
    )


def quantize_catalogue(config, workdir: pathlib.Path, *catalogue) -> None:
  """quantize.run, and its outcome in words."""
  made = quantize.run(config, workdir, *catalogue)
  print(
    f"  {made['items']:,} items, {made['items']:,} SIDs; relative error "
    f"{made['relative_error_unique']:.3f} "
    f"({made['relative_error'][-1]:.3f} before {made['collided_items']:,} "
    "items that shared a SID got their own)"
  )
  show_sids(workdir)


def show_sids(workdir: pathlib.Path) -> None:
  """Prints where the SIDs are."""
  folder = workdir / store.FOLDER
  print(f"  SIDs: {folder / 'sids.npz'}, report: {folder / 'report.html'}")
