"""The studies that --study names, and the agent of this command.

A new study is a module, and its settings and line here.
"""

import dataclasses
import functools

from hsrl_jax.agents import Algorithm
from hsrl_jax.checked import Checked, setting
from hsrl_jax.experiments.registry import EXPERIMENTS, Entry, Front
from hsrl_jax.studies.published import agent as published

NEWCOMERS = ("content", "unrated", "logged")


@dataclasses.dataclass(frozen=True)
class ChangingCatalogue(Checked):
  """Settings of `changing_catalogue`.

  Attributes:
    shares: percent of the catalogue that are replaced.
    newcomers: what is known of items that arrive: `content`, as of all items
      there, words of their title and genres, and their year; `unrated`, the
      same, but features as they are, which may be made of ratings, stand beside
      it, and are zeros for newcomers; `logged`, their features as they are.
  """

  shares: tuple[int, ...] = setting((5, 20, 50), least=0, most=100, length=1)
  newcomers: str = setting("content", among=NEWCOMERS)


@dataclasses.dataclass(frozen=True)
class CatalogueSize(Checked):
  """Settings of `catalogue_size`.

  Attributes:
    sizes: items in the catalogue.
    memory_gb: what a job may take; one that needs more is left out.
    seconds_per_run: what training may take, for each seed; one that needs more
      is timed alone.
  """

  sizes: tuple[int, ...] = setting(
    (1_000, 10_000, 100_000, 1_000_000), least=1, length=1
  )
  memory_gb: float = setting(12.0, above=0)
  seconds_per_run: float = setting(240.0, above=0)


@dataclasses.dataclass(frozen=True)
class OffPolicy(Checked):
  """Settings of `off_policy`: the flags of a run alone."""


@dataclasses.dataclass(frozen=True)
class Conservatism(Checked):
  """Settings of `conservatism`.

  Attributes:
    agents: who learns; None: those that the study is about.
    logged_slates: how many are learned from.
    conservative_weights: of the conservative term, beside that of the flags,
      with the most slates.
  """

  agents: tuple[str, ...] | None = None
  logged_slates: tuple[int, ...] = setting(
    (1_000, 10_000, 100_000), least=1, length=1
  )
  conservative_weights: tuple[float, ...] = setting(
    (0.0, 0.01, 1.0), least=0, length=1
  )


@dataclasses.dataclass(frozen=True)
class ClosedLoop(Checked):
  """Settings of `closed_loop`.

  Attributes:
    variants: who else goes round the loop; None: all.
    rounds: of serving and learning.
    sessions: of each round.
  """

  variants: tuple[str, ...] | None = None
  rounds: int = setting(10, least=2)
  sessions: int = setting(2_000, least=2)


_study = functools.partial(Entry, "study", "hsrl_jax.studies")
STUDIES = (
  _study(
    "changing_catalogue",
    ChangingCatalogue,
    "A changing catalogue",
    "Items leave and others arrive under a trained policy: what it earns right "
    "after, and how long it takes to recover.",
    fits_sids=True,
  ),
  _study(
    "catalogue_size",
    CatalogueSize,
    "The size of the catalogue",
    "Reward, time and memory as the catalogue grows.",
    fits_sids=True,
  ),
  _study(
    "off_policy",
    OffPolicy,
    "Off-policy evaluation",
    "Two policies logged the same campaign. The value of each, estimated from "
    "the logs of the other, beside the mean of its own logs.",
  ),
  _study(
    "conservatism",
    Conservatism,
    "Learning from logs alone",
    "Reward in a world of policies that learn from its logs alone.",
    also=("on_policy",),
  ),
  _study(
    "closed_loop",
    ClosedLoop,
    "The closed loop",
    "A policy that is served, and learns from what it served alone, round "
    "after round.",
    also=("replay",),
  ),
)
FRONT = Front("hsrl_jax.studies", EXPERIMENTS + STUDIES)
AGENTS = {"hsrl_published": Algorithm(published.Settings, published.make)}
