"""A run: one configuration's stages, each skipped where it is complete."""

import functools
import pathlib
from collections.abc import Collection, Mapping, Sequence

from hsrl_jax import config as config_lib
from hsrl_jax import files
from hsrl_jax import settings as settings_lib
from hsrl_jax.config import STAGES
from hsrl_jax.data import embeddings, prepare
from hsrl_jax.engine import processes
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import measures, sid_quality, simulate, verdict
from hsrl_jax.host import watch
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.report import run_page, sid_page
from hsrl_jax.sid import store
from hsrl_jax.stages import (
  evaluate,
  export,
  logged,
  next_item,
  policy,
  quantize,
  quantizer_fit,
  simulator,
)
from hsrl_jax.stages import start as start_lib
from hsrl_jax.stages import start_loading as loading
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params

SUMMARY = "summary.json"  # Time by phase, and memory.
_MALFORMED = 5  # Rows of the source that are named on the screen.


class Run(Parts):
  """One configuration's stages, by their names."""

  def __init__(
    self,
    config: config_lib.Config,
    workdir: pathlib.Path,
    shared: pathlib.Path | None = None,
    of: Parts | None = None,
  ):
    """See Parts."""
    super().__init__(config, workdir, shared, of)
    self._stages, self._phases = watch.Watch(), watch.Watch()

  def data(self) -> None:
    """Stage data."""
    if not self.own_users:
      with watch.bar(len(prepare.CONFIGS), "data", "table") as bar:

        def progress(more: int = 0) -> None:
          bar.total += more
          bar.update(0 if more else 1)

        c = self.config.data
        malformed = prepare.prepare(
          c.dataset,
          self.folder("data") / "data",
          c.raw_data_dir,
          progress,
          c.item_vectors,
          c.split_by,
        )
      for note in prepare.notes(self.folder("data") / "data"):
        print(f"  {note}")
      for path, rows in malformed.items():
        print(f"  {len(rows):,} malformed rows left out, all listed in {path}:")
        for file, row, why in rows[:_MALFORMED]:
          print(f"    {file} row {row}: {why}")
    items, splits = self.dataset
    sizes = ", ".join(f"{k} {len(v.user_id):,}" for k, v in splits.items())
    what = "users" if self.without_slates else "slates"
    print(f"  {len(items.titles) - 1:,} items; {what}: {sizes}")

  def quantize(self) -> None:
    """Stage quantize, of the dataset."""
    items = self.items
    quantize_catalogue(
      self.config.quantizer,
      self.folder("quantize"),
      quantize.of_dataset(items),
      quantizer_fit.Source(self.name),
      items.genres[1:],
      self.brought,
    )

  def simulator(self) -> None:
    """Stage simulator."""
    where = (self.config.simulator, self.folder("simulator"), self.dataset)
    if self.given:
      quality = simulator.adopt(
        *where, self.given, self.given_path(self.config)
      )
      print(f"  weights of {self.given.name}, nothing is fitted")
    elif self.made_up:
      quality = simulator.made_up(self.folder("simulator"))
    else:
      quality = simulator.run(*where)
    measured = ", ".join(
      f"{k} {v:.4f}" for k, v in quality.items() if isinstance(v, float)
    )
    print(f"  validation: {measured or 'no slates are logged'}")
    if quality:
      print(f"  {verdict.line(quality)}")

  def policy(self) -> None:
    """Stage policy."""
    if self.config.train.goes_on and self.config.train.continue_from is None:
      where = self.workdir / start_lib.FIRST
      first = Run(start_lib.first_part(self.as_given), where, of=self)
      first.claim(settings_lib.texts(first.config))
      first.complete(("policy",))
      self.start = start_lib.of_config(self.config, self.workdir)
      self.config = self.start.sized(self.config)
    how = policy.acting(self.agent(), self.catalogue.index)
    print(f"  acting: {how}")
    if self.config.train.recipe == "next_item":
      next_item.run(self, self._phases)
      return
    logs = self.dataset.splits["train"]
    if self.config.train.from_logs:
      logs = self.training_logs
      for line in logged.lines(logged.facts(self.config, logs)):
        print(f"  {line}")
    policy.run(
      self.config,
      self.workdir,
      self.env,
      self.catalogue,
      self.users("train"),
      self.users("val"),
      simulate.sample(
        self.dataset.splits["val"].user_id, policy.CURVE_EPISODES
      ),
      logs,
      self._phases,
      functools.partial(loading.load, self) if self.start else None,
    )

  def evaluate(self) -> None:
    """Stage evaluate."""
    evaluate.run(self, self.policies)

  def export(self, settings: config_lib.ExportConfig) -> None:
    """Mode export."""
    export.run(self, settings)

  @functools.cached_property
  def policies(self) -> list[tuple[simulate.Act, Params]]:
    """The trained greedy policy of each seed, with its parameters."""
    params = policy.trained(self)
    act = policy.greedy(self.agent())
    return [(act, (p, self.catalogue)) for p in params]

  def report(self) -> None:
    """Stage report."""
    run_page.write(
      self.workdir,
      self.dataset.items,
      self.folder("quantize"),
      self.folder("simulator"),
    )

  def claim(
    self,
    texts: Mapping[str, str],
    given: Collection[str] | None = None,
    of_data: Collection[str] = (),
  ) -> None:
    """Keeps the settings of a new workdir; an old one must have the same.

    Those of the evaluation may change, which is done anew then. Sizes of SIDs
    that a file brings are kept too, and sizes of networks that another run
    brings.

    Args:
      texts: of the settings; see workdir.claim.
      given: names of those that the user gave; None: all.
      of_data: see workdir.claim.

    Raises:
      InputError: there is no such dataset, the workdir has other settings, or a
        size is not that of the file.
    """
    if not self.own_users:
      prepare.builder_folder(self.config.data.dataset)
    kept = with_sizes(texts, given or (), self.config.quantizer)
    kept = start_lib.with_sizes(self.start, kept, given or (), self.config)
    later = settings_lib.names(
      x for x in settings_lib.STAGES if x.name == "evaluate"
    )
    processes.on_first(
      lambda: workdir_lib.claim(self.workdir, kept, given, of_data, later=later)
    )

  def complete(self, names: Sequence[str] = STAGES) -> bool:
    """Runs those of the stages that are not done; True if there were any."""
    return any([self.stage(name) for name in names])

  def stage(self, name: str) -> bool:
    """Runs a stage, unless it is done; says which. True if it ran."""
    # Of many processes the first decides, and runs all but the training alone.
    if not processes.on_first(lambda: self._is_due(name)):
      return False
    said = name if self.of is None else f"{name}, first part"
    print(f"{said} ...", flush=True)
    with self._stages.phase(name):
      if name == "policy":
        self.policy()
      else:
        processes.on_first(getattr(self, name))
    if processes.is_first():
      workdir_lib.mark_done(self.folder(name), name, self.fingerprints[name])
    spent = self._stages.seconds()[name]
    print(f"{said} done in {spent:.1f} s", flush=True)
    return True

  def _is_due(self, name: str) -> bool:
    """Whether a stage is yet to run; raises where one before it is missing."""
    if self.is_done(name):
      return False
    for before in STAGES[: STAGES.index(name)]:
      self.require(before)
    return True

  def summarise(self) -> list[str]:
    """Writes summary.json, of this process; lines for a terminal."""
    summary = {
      "stages": self._stages.seconds(),
      "policy": self._phases.seconds(),
      "speed": self._phases.speed,
      "memory": watch.peak_memory(),
    }
    files.write_json(self.workdir / SUMMARY, summary)
    return watch.lines(summary)

  def results(self) -> dict:
    """Results of the stage evaluate."""
    return measures.read_results(self.workdir / evaluate.RESULTS)


def of_workdir(workdir: str | pathlib.Path) -> Run:
  """The run that a workdir is of, by the settings that it keeps.

  Raises:
    InputError: it keeps none, or one that is not as it should be.
  """
  workdir = pathlib.Path(workdir)
  where, kept = workdir / workdir_lib.FLAGS, workdir_lib.kept_flags(workdir)
  if not kept:
    raise InputError(f"{where} is missing; expected the workdir of a run")
  return Run(settings_lib.of_texts(where, kept), workdir)


def with_sizes(
  texts: Mapping[str, str],
  given: Collection[str],
  config: config_lib.QuantizerConfig,
) -> dict[str, str]:
  """Settings with the sizes of SIDs, see settings.with_brought."""
  sizes = {"levels": config.levels, "vocab_size": config.vocab_size}
  return settings_lib.with_brought(
    texts,
    given,
    {f"sid_{name}": str(size) for name, size in sizes.items()},
    f"the SIDs of --sids={texts.get('sids')} have",
  )


def quantize_catalogue(
  config, workdir: pathlib.Path, catalogue: embeddings.Embeddings, *more
) -> None:
  """quantize.run, and its outcome in words."""
  facts = quantize.run(config, workdir, catalogue, *more)
  if "brought" in facts:
    print(f"  {sid_page.brought_line(facts)}")
  print(
    f"  {facts['items']:,} items, {facts['items']:,} SIDs; relative error "
    f"{facts['relative_error_unique']:.3f} "
    f"({facts['relative_error'][-1]:.3f} before {facts['collided_items']:,} "
    "items that shared a SID got their own)"
  )
  warnings = sid_quality.dear(sid_quality.of_facts(facts))
  fitted = "brought" not in facts and facts["items"] > 1
  if fitted and not embeddings.vary(catalogue.rows):
    warnings.append("all items have the same vector: SIDs tell nothing of them")
  for line in warnings:
    print(f"  warning: {line}")
  show_sids(workdir)


def show_sids(workdir: pathlib.Path) -> None:
  """Prints where the SIDs are."""
  folder = workdir / store.FOLDER
  print(f"  SIDs: {folder / 'sids.npz'}, report: {folder / 'report.html'}")
