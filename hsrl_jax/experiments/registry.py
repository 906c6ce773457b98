"""The experiments that --experiment names.

A new one is a module, and its settings and line here. Modules are imported
once they are run: --help waits for none of them.
"""

import dataclasses
import functools
import importlib
from collections.abc import Collection
from types import ModuleType
from typing import NamedTuple

from hsrl_jax.agents import AGENTS
from hsrl_jax.checked import Checked, setting
from hsrl_jax.session_config import PROTOCOLS
from hsrl_jax.settings import Group


class Entry(NamedTuple):
  """An experiment."""

  # That chooses it; the flags of its settings begin with that name, too.
  flag: str
  package: str  # That has its module.
  # That the flag gives it, and of the module: `run` takes a jobs.Experiment.
  # COMPARED has the agents that it trains, or `compared` takes the settings and
  # names them.
  name: str
  # A dataclass of all that it reads beside the flags of a run.
  settings: type[Checked]
  # Of its results in docs/RESULTS.md, which is no experiment's name and so
  # shares no anchor with one; empty: they are on no page.
  title: str = ""
  question: str = ""  # That they answer.
  # Other recipes than --recipe by which it trains its agents.
  also: tuple[str, ...] = ()
  fits_sids: bool = False  # Whether it fits SIDs of its own.
  keeps_flags: bool = True  # Whether its workdir is its own.

  def __str__(self) -> str:
    return f"--{self.flag}={self.name}"

  @property
  def group(self) -> Group:
    """Of its settings."""
    return Group(self.flag, self.settings, f"{self.flag}_")

  def load(self) -> ModuleType:
    """The module."""
    return importlib.import_module(f"{self.package}.{self.name}")

  def compared(self, settings: Checked) -> Collection[str] | None:
    """The agents that it trains; None: --agent, if any is trained."""
    module = self.load()
    if hasattr(module, "compared"):
      return module.compared(settings)
    return getattr(module, "COMPARED", None)


class Front(NamedTuple):
  """A command that runs experiments."""

  module: str  # Of the command.
  # The experiments that it knows, in the order of docs/RESULTS.md.
  entries: tuple[Entry, ...]

  @property
  def known(self) -> dict[str, Entry]:
    """The experiments by name."""
    return {x.name: x for x in self.entries}

  @property
  def flags(self) -> tuple[str, ...]:
    """The flags that choose one of them."""
    return tuple(dict.fromkeys(x.flag for x in self.entries))


@dataclasses.dataclass(frozen=True)
class _Agents(Checked):
  """Settings of what compares agents.

  Attributes:
    agents: that are compared; None: all.
  """

  agents: tuple[str, ...] | None = None

  @property
  def named(self) -> tuple[str, ...]:
    """The agents."""
    return tuple(AGENTS) if self.agents is None else self.agents


@dataclasses.dataclass(frozen=True)
class _Variants(Checked):
  """Settings of what leaves out parts.

  Attributes:
    variants: parts that are left out; None: those that the experiment is about.
  """

  variants: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class _Protocols(Checked):
  """Settings of what sees more than one protocol.

  Attributes:
    protocols: under which the jobs are run.
  """

  protocols: tuple[str, ...] = setting(PROTOCOLS, among=PROTOCOLS, length=1)


@dataclasses.dataclass(frozen=True)
class _Tuned(Checked):
  """Settings of what takes what was found by tuning.

  Attributes:
    tuned: results.json, or several, that tune left; each agent has the settings
      that earned most there.
  """

  tuned: tuple[str, ...] | None = None

  def __post_init__(self):
    super().__post_init__()
    given = self.tuned != () and all(self.tuned or ())
    self.require("tuned", given, "a path, or leave it out")


@dataclasses.dataclass(frozen=True)
class World(_Tuned, _Agents, _Variants):
  """Settings of `world`."""


@dataclasses.dataclass(frozen=True)
class OnePolicy(_Variants):
  """Settings of `one_policy`."""


@dataclasses.dataclass(frozen=True)
class Benchmark(_Tuned, _Agents, _Protocols):
  """Settings of `benchmark`."""


@dataclasses.dataclass(frozen=True)
class Ablation(_Tuned, _Variants, _Protocols):
  """Settings of `ablation`."""


@dataclasses.dataclass(frozen=True)
class Tune(_Agents):
  """Settings of `tune`.

  Attributes:
    trials: of each agent; a multiple of 4.
  """

  trials: int = setting(16, least=4)

  def __post_init__(self):
    super().__post_init__()
    self.require("trials", self.trials % 4 == 0, "a multiple of 4")


@dataclasses.dataclass(frozen=True)
class Ab(Checked):
  """Settings of `ab`.

  Attributes:
    agents: control and treatment, each an agent, `random`, `best_constant`,
      `greedy_oracle`, or the folder of an evaluated run; None: `best_constant`
      and the method itself.
  """

  agents: tuple[str, ...] | None = None

  def __post_init__(self):
    super().__post_init__()
    two = self.agents is None or len(self.agents) == 2
    self.require("agents", two, "control and treatment")


@dataclasses.dataclass(frozen=True)
class Results(Checked):
  """Settings of `results`.

  Attributes:
    workdirs: of finished experiments, which are added to the docs.
  """

  workdirs: tuple[str, ...] = ()


_entry = functools.partial(Entry, "experiment", "hsrl_jax.experiments")
EXPERIMENTS = (
  _entry(
    "world",
    World,
    "Worlds",
    "Worlds in which tomorrow counts: what bores a user, or drives one away, "
    "depends on what was shown before. The greedy oracle knows the user and "
    "does not look ahead; whoever earns more than it does.",
  ),
  _entry(
    "one_policy",
    OnePolicy,
    "One policy",
    "Supervised on the next item, then RL in a world: what it earns there, "
    "beside RL alone, and what it finds on held-out logs.",
    also=("next_item", "on_policy"),
  ),
  _entry(
    "benchmark",
    Benchmark,
    "Benchmarks",
    "All agents with the same encoder, simulator, users, budget and "
    "evaluation, beside the bounds.",
  ),
  _entry(
    "ablation",
    Ablation,
    "Ablations",
    "HSRL with one part left out or changed at a time. What HSRL earns more "
    "than a row is what the part is worth.",
  ),
  _entry("tune", Tune),
  _entry(
    "ab",
    Ab,
    "A/B tests",
    "Two policies shown to the same simulated users. The paper reports "
    "+18.421 % conversion at +1.251 % cost in an online test; this one is "
    "simulated and says nothing about either.",
  ),
  _entry("results", Results, keeps_flags=False),
)
LAUNCH = Front("hsrl_jax.launch", EXPERIMENTS)
