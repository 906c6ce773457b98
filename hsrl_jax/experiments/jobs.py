"""Jobs of an experiment, the time that they took, and the files of results.

A job is a run that differs from the others in its configuration. It has a
folder of its own; data, SIDs and click model are shared with all jobs whose
configuration of them is the same. A job that is finished is skipped, one that
was stopped goes on where it was.
"""

import contextlib
import json
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure

from hsrl_jax import __version__, files
from hsrl_jax.agents import Settings, configure
from hsrl_jax.checked import Checked
from hsrl_jax.config import Config
from hsrl_jax.errors import InputError
from hsrl_jax.experiments.registry import LAUNCH, Entry
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.report import plots
from hsrl_jax.stages.run import Run

FORMAT = 1  # Of an experiment's results.json.
SHARED_STAGES = ("data", "quantize", "simulator")
_SECONDS = "seconds.json"  # Job to stage to seconds, of all attempts.


class Experiment(NamedTuple):
  """The inputs of an experiment."""

  name: str  # Of the experiment.
  base: Config  # What jobs vary.
  config: Checked  # The experiment's own settings, see registry.Entry.
  workdir: pathlib.Path  # Where everything is written.
  command: str  # That started it, for the record.
  settings: Mapping[str, Settings] = {}  # Of each agent, as the flags say.
  # All experiments of the command, by name.
  known: Mapping[str, Entry] = LAUNCH.known

  def with_agent(self, agent: str, **values: Any) -> Config:
    """The flags' configuration for an agent; see `agents.configure`."""
    return configure(self.base, agent, self.settings.get(agent), **values)


class Job(NamedTuple):
  """One run of an experiment."""

  name: str  # Of its folder below the workdir, such as `paper/hsrl`.
  config: Config  # Of the run.


def prepare(experiment: Experiment, job: Job, like: Run | None = None) -> Run:
  """The job's run, whose data, SIDs and click model are ready.

  Args:
    experiment: of the job.
    job: the job.
    like: a run whose loaded data is used again where it is the same.

  Raises:
    InputError: its folder belongs to another configuration.
  """
  folder = experiment.workdir / job.name
  run = Run(job.config, folder, experiment.workdir / "shared")
  mark = run.fingerprints["policy"]
  if not workdir_lib.is_done(folder, "start", mark):
    workdir_lib.mark_done(folder, "start", mark)
  if like is not None and like.fingerprints["data"] == run.fingerprints["data"]:
    run.dataset = like.dataset
  for stage in SHARED_STAGES:
    with timed(experiment, job.name, stage):
      run.stage(stage)
  return run


def run_all(experiment: Experiment, jobs: Iterable[Job]) -> dict[str, Run]:
  """Trains and evaluates each job; name to run, in the given order.

  Raises:
    InputError: a job's configuration or input is wrong; names the job.
    FloatingPointError: a job's training diverged; names the job.
  """
  jobs, runs, last = list(jobs), {}, None
  for number, job in enumerate(jobs, start=1):
    print(f"job {number} of {len(jobs)}: {job.name}", flush=True)
    try:
      run = prepare(experiment, job, last)
      for stage in ("policy", "evaluate"):
        with timed(experiment, job.name, stage):
          run.stage(stage)
    except (InputError, FloatingPointError) as error:
      raise type(error)(f"job {job.name}: {error}") from error
    runs[job.name] = last = run
    jax.clear_caches()  # The next job compiles functions of its own.
  return runs


def kept(
  path: pathlib.Path,
  make: Callable[[], Any],
  outdated: Callable[[Any], bool] = lambda value: False,
) -> Any:
  """The value in a JSON file, which `make` makes where it is missing.

  Args:
    path: of the file.
    make: returns the value.
    outdated: whether the value in the file is to be made again.
  """
  if not path.exists() or outdated(json.loads(path.read_text())):
    files.write_json(path, make())
  return json.loads(path.read_text())


@contextlib.contextmanager
def timed(experiment: Experiment, job: str, stage: str) -> Iterator[None]:
  """Adds the seconds inside to those of a job's stage.

  What a killed process had spent is lost; what an error or Ctrl-C ended counts.
  """
  start = time.monotonic()
  try:
    yield
  finally:
    spent = time.monotonic() - start
    if spent >= 0.01:  # Else there was nothing to do.
      add_seconds(experiment, job, stage, spent)


def add_seconds(
  experiment: Experiment, job: str, stage: str, spent: float
) -> None:
  """Adds seconds to those of a job's stage."""
  table = seconds(experiment)
  stages = table.setdefault(job, {})
  stages[stage] = stages.get(stage, 0.0) + spent
  files.write_json(experiment.workdir / _SECONDS, table)


def seconds(experiment: Experiment) -> dict[str, dict[str, float]]:
  """Job to stage to the seconds that it took so far."""
  path = experiment.workdir / _SECONDS
  return json.loads(path.read_text()) if path.exists() else {}


def finish(
  experiment: Experiment,
  results: dict[str, Any],
  table: Callable[[dict[str, Any]], str],
  figure: Callable[[dict[str, Any]], Figure],
) -> None:
  """Writes and prints the results of an experiment.

  Args:
    experiment: what it was.
    results: for `results.json`, between how it came about (command, commit,
      seeds, seconds) and the table's lines.
    table: results to `table.txt`, at most 80 columns wide.
    figure: results to `plot.png`.
  """
  spent = sum(x for job in seconds(experiment).values() for x in job.values())
  origin = {
    "format": FORMAT,
    "experiment": experiment.name,
    "command": experiment.command,
    "commit": commit(),
    "seeds": list(experiment.base.train.seeds),
    "seconds": spent,
  }
  workdir, text = experiment.workdir, table(results)
  whole = origin | results | {"table": text.splitlines()}
  files.write_json(workdir / "results.json", whole)
  files.write_atomic(workdir / "table.txt", text + "\n")
  files.write_atomic(workdir / "plot.png", plots.png(figure(results)))
  print(text)
  print(f"results: {workdir / 'results.json'}")
  print(f"plot:    {workdir / 'plot.png'}")


def commit() -> str:
  """The code's git commit, or the version where there is no git."""
  root = pathlib.Path(__file__).parents[2]

  def git(*arguments: str) -> str:
    return subprocess.run(
      ("git", "-C", str(root), *arguments),
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  version = f"hsrl_jax {__version__}"
  if not (root / ".git").exists():
    return version
  try:
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + (" with changes" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return version


def command_line(module: str, arguments: list[str]) -> str:
  """The command as others can give it: without this machine's folders."""
  shown = []
  for argument in arguments:
    name, equals, value = argument.partition("=")
    if pathlib.PurePath(value).is_absolute():
      value = f".../{pathlib.PurePath(value).name}"
    if name.lstrip("-") != "workdir":
      shown.append(name + equals + value)
  return " ".join((f"python -m {module}", *shown))
