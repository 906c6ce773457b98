"""Every flag. Their names, defaults and help come from dataclasses of settings.

Each setting is the flag of its name; see settings.py. Agents may share one.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from absl import flags

from hsrl_jax import agents, docstrings, settings
from hsrl_jax import config as config_lib
from hsrl_jax.checked import Checked
from hsrl_jax.errors import InputError
from hsrl_jax.experiments.registry import LAUNCH, Entry, Front

MODES = (
  "all",
  "advise",
  "plan",
  *config_lib.STAGES,
  "add_items",
  "remove_items",
  "export",
  "collect",
  "rollback",
  "watch",
  "experiment",
)

MODE = flags.DEFINE_enum(
  "mode",
  "all",
  MODES,
  "The stage to run; `all`: what is missing. `advise` looks at the logs and "
  "says which recipe learns from them. `plan` says whether training fits on "
  "TPUs, and how long it takes. `add_items` and `remove_items` change a "
  "catalogue of --embeddings; for `export`, `collect`, `rollback` see "
  "docs/loop.md. `watch` serves a page of the run's simulated users.",
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run writes, and resumes. Required."
)
EMBEDDINGS = flags.DEFINE_string(
  "embeddings",
  None,
  "Items of your own for --mode=quantize, in place of a dataset, or for "
  "--mode=add_items: .npy [N, D], .npz (`embeddings`, `item_id`, `title`) or "
  ".parquet (`embedding`, `item_id`, `title`).",
)
ITEM_IDS = flags.DEFINE_string(
  "item_ids",
  None,
  "Items that --mode=remove_items removes: .txt, one id a line, or .npy.",
)
FROM = flags.DEFINE_string(
  "from",
  None,
  "With --mode=collect: the store of a server, the path of an SQLite file or a "
  "URL that begins with postgresql://.",
)
COLLECT_AFTER = flags.DEFINE_float(
  "collect_after",
  3_600.0,
  "With --mode=collect: seconds after which a slate that has some feedback is "
  "collected, and takes no more, though some of its items have no response.",
)
SWEEP = flags.DEFINE_list(
  "sweep",
  [],
  "With --mode=quantize: sizes V x L to compare, such as 64x3,128x3.",
)
TOPOLOGY = flags.DEFINE_string(
  "topology",
  "v5e-1",
  "With --mode=plan: TPUs that need not be there, as the cloud names them, "
  "such as v5e-16 or v4-8.",
)
AGENT = flags.DEFINE_string(
  "agent", agents.DEFAULT, f"Agent to train, one of {', '.join(agents.AGENTS)}."
)
WATCH_PORT = flags.DEFINE_integer(
  "watch_port",
  8001,
  "With --mode=watch: where the page is on this machine; 0: any that is free.",
  lower_bound=0,
  upper_bound=65_535,
)
DISTRIBUTED = flags.DEFINE_boolean(
  "distributed",
  False,
  "Train with the devices of many processes, which TPU VMs, SLURM and Open MPI "
  "name by themselves; elsewhere --coordinator, --processes and --process do. "
  "All of them get the same flags and a --workdir that all see.",
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT where all processes reach process 0."
)
PROCESSES = flags.DEFINE_integer(
  "processes",
  None,
  "How many processes --coordinator brings together.",
  lower_bound=1,
  upper_bound=2**31 - 1,
)
PROCESS = flags.DEFINE_integer(
  "process",
  None,
  "Which of the --processes this is, from 0.",
  lower_bound=0,
  upper_bound=2**31 - 1,
)


@flags.validator("collect_after", "expected a finite number of at least 0")
def _is_waiting_time(seconds: float) -> bool:
  return 0 <= seconds < float("inf")


@flags.validator("coordinator", "expected HOST:PORT with a port below 65536")
def _is_address(text: str | None) -> bool:
  if text is None:
    return True
  parts = re.fullmatch(r"(\S+):(\d{1,5})", text)
  return parts is not None and 1 <= int(parts[2]) <= 65535


for _path in ("embeddings", "item_ids", "from"):
  flags.register_validator(
    _path, lambda path: path != "", "expected a path, or leave it out"
  )


@flags.multi_flags_validator(
  ("processes", "process"), "expected --process below --processes"
)
def _is_one_of_them(values: dict[str, int | None]) -> bool:
  count, own = values["processes"], values["process"]
  return count is None or own is None or own < count


_PATHS = ("embeddings", *settings.PATHS)  # Kept as full paths.


def define(groups: Iterable[settings.Group], module: str = __name__) -> None:
  """Defines the flag of each field, which groups may share.

  --helpfull lists them under `module`.
  """
  for group, field, name, kind in settings.fields(tuple(groups)):
    if name in flags.FLAGS:
      continue
    text = docstrings.attribute(group.type, field.name)
    default, where = field.default, {"module_name": module}
    if kind is bool:
      flags.DEFINE_boolean(name, default, text, **where)
    elif kind in (int, int | None):
      flags.DEFINE_integer(name, default, text, **where)
    elif kind in (float, float | None):
      flags.DEFINE_float(name, default, text, **where)
    elif kind in (str, str | None):
      flags.DEFINE_string(name, default, text, **where)
    else:  # A tuple; a plain list flag, for multi flags would append.
      texts = None if default is None else [str(x) for x in default]
      flags.DEFINE_list(name, texts, text, **where)


def define_experiments(front: Front, module: str = __name__) -> None:
  """Defines the flags that choose an experiment, and those that they read."""
  for flag in front.flags:
    if flag not in flags.FLAGS:
      names = [x.name for x in front.entries if x.flag == flag]
      text = "Runs that are compared, for a table, a plot and results.json."
      flags.DEFINE_enum(flag, None, names, text, module_name=module)
  define((x.group for x in front.entries), module)


define((*settings.STAGES, settings.EXPORT, *settings.of_agents()))
define_experiments(LAUNCH)


class Chosen(NamedTuple):
  """The experiment that the flags choose, and its settings."""

  entry: Entry
  config: Checked


def named(front: Front) -> Entry | None:
  """The experiment that the parsed flags name, if any.

  Raises:
    InputError: there are two.
  """
  given = [x for x in front.flags if flags.FLAGS[x].value is not None]
  if len(given) > 1:
    raise InputError(f"--{given[0]} with --{given[1]}; expected one of them")
  return front.known[flags.FLAGS[given[0]].value] if given else None


def experiment_from_flags(front: Front) -> Chosen | None:
  """The same with its settings, of which no others may be given.

  Raises:
    InputError: a setting is out of range, or one that the experiment, or a
      single run, does not read is given.
  """
  entry, readers = named(front), {}
  for other in front.entries:
    for name in settings.names([other.group]):
      readers.setdefault(name, []).append(other)
  for name, known in readers.items():
    if flags.FLAGS[name].present and entry not in known:
      raise InputError(
        f"--{name} is given, but {entry or 'a single run'} does not read it; "
        f"expected {' or '.join(map(str, known))}, or no such flag"
      )
  return Chosen(entry, _from_flags(entry.group)) if entry else None


def config_from_flags(chosen: Chosen | None = None) -> config_lib.Config:
  """The configuration of a run, or of the jobs of an experiment, by the flags.

  Raises:
    InputError: a value is out of range, an agent is unknown or not trained by
      the recipe, or a flag is given that they do not read.
  """
  name, recipe = AGENT.value, flags.FLAGS.recipe
  settings.check_agent("--agent", name)
  trained, also = _trained(chosen)
  for x in trained:
    settings.check_agent("--agent", x)
  names = {*settings.names((*settings.STAGES, *settings.of_agents()))}
  values = {x: flags.FLAGS[x].value for x in names}
  for other in also:
    names -= set().union(*(settings.reads(x, other) for x in trained))
  present = [name for name in names if flags.FLAGS[name].present]
  settings.check_read(present, trained, recipe, "--")
  config = settings.build(name, values, "--")
  if chosen is None:
    agents.check(config)
  return config


def _trained(chosen: Chosen | None) -> tuple[Collection[str], tuple[str, ...]]:
  """The agents that are trained, and recipes of theirs beside --recipe."""
  agent: tuple[str, ...] = (AGENT.value,)
  if chosen is None:
    return agent, ()
  compared = chosen.entry.compared(chosen.config)
  return agent if compared is None else compared, chosen.entry.also


def settings_from_flags(agent: str, recipe: str) -> agents.Settings:
  """An agent's settings by a recipe, of the parsed flags."""
  recipe = agents.recipe_for(agent, recipe)
  return _from_flags(settings.of_agent(agent, recipe))


def export_from_flags() -> config_lib.ExportConfig:
  """Settings of an export, of the parsed flags."""
  return _from_flags(settings.EXPORT)


def _from_flags(group: settings.Group):
  """An instance of the group's class."""
  values = {x: flags.FLAGS[x].value for x in settings.names([group])}
  return settings.make(group, values, "--")


def resolved(chosen: Chosen | None = None) -> dict[str, str]:
  """Name to text of every flag, with a value, that decides what a run is.

  Or what an experiment and its jobs are.
  """
  trained, also = _trained(chosen)
  own = [
    (name, recipe)
    for name in trained or (AGENT.value,)
    for recipe in {agents.recipe_for(name, flags.FLAGS.recipe), *also}
    if recipe in agents.AGENTS[name].recipes
  ]
  groups = (*settings.STAGES, *(settings.of_agent(*x) for x in own))
  read = set().union(*(settings.reads(*x) for x in own))
  names = ["agent", "embeddings", *(x for x in _deciding(groups) if x in read)]
  if chosen is not None:
    names += [chosen.entry.flag, *_deciding([chosen.entry.group])]
  return {x: _text(x) for x in names if flags.FLAGS[x].value is not None}


def given(mode: str) -> set[str]:
  """Names of the flags of a run that the command line or a --flagfile has.

  Args:
    mode: that they are for; items to add are no flag of a run.
  """
  names = {"agent", *_deciding((*settings.STAGES, *settings.of_agents()))}
  if mode == "quantize":
    names.add("embeddings")
  return {name for name in names if flags.FLAGS[name].present}


def of_data() -> set[str]:
  """Names of the flags that decide what stage `data` prepares."""
  groups = [x for x in settings.STAGES if x.name == "data"]
  return {*_deciding(groups)} - {*_PATHS}


def adopt(kept: Mapping[str, str], where: str) -> None:
  """Sets the flags that nobody gave to the texts that a workdir kept.

  Raises:
    InputError: a flag is unknown, or its value is none.
  """
  for name, text in kept.items():
    try:
      flag = flags.FLAGS[name]
      if not flag.present:
        flag.parse(text)
        flag.present = 0  # Nobody gave it.
    except (KeyError, flags.Error) as error:
      raise InputError(
        f"{where}: --{name}={text} is no flag of this command; expected the "
        "flags of a run: use the command and the version that made it, or a "
        "new --workdir"
      ) from error


def _deciding(groups: Iterable[settings.Group]) -> list[str]:
  """Names of the groups' flags that decide what is computed."""
  return [name for _, x, name, _ in settings.fields(tuple(groups)) if x.compare]


def sweep_sizes() -> list[tuple[int, int]]:
  """(V, L) of each size that --sweep names.

  Raises:
    InputError: one of them is no size.
  """
  sizes = []
  for text in SWEEP.value:
    size = re.fullmatch(r"(\d{1,19})x(\d{1,2})", text.strip())
    vocab_size, levels = map(int, size.groups()) if size else (0, 0)
    if vocab_size < 2 or levels < 1 or vocab_size**levels >= 2**63:
      raise InputError(
        f"--sweep has {text!r}; expected sizes such as 64x3: V of at least 2, "
        "x, L of at least 1, with V^L below 2^63"
      )
    sizes.append((vocab_size, levels))
  return sizes


def _text(name: str) -> str:
  """The value of a flag as a flagfile has it; files by their full path."""
  value = flags.FLAGS[name].value
  return settings.text(os.path.abspath(value) if name in _PATHS else value)
