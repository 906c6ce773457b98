"""The settings of experiments. `config` has them too."""

import dataclasses

from hsrl_jax.checked import Checked, seed_setting, setting
from hsrl_jax.session_config import PROTOCOLS

NEWCOMERS = ("content", "unrated", "logged")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(Checked):
  """What an experiment compares; each job is a Config that differs in it.

  Attributes:
    agents: that benchmark and world compare; None: all.
    protocols: under which the jobs are run.
    variants: parts that ablation, world and closed_loop leave out; none given:
      all, and in world those that matter where tomorrow counts.
    resamples: of the paired bootstrap.
    workdirs: of finished experiments, which --mode=results adds to the docs.
    tuned: results.json, or several, that tune left; world, benchmark and
      ablation take for each agent the settings that earned most there.
    trials: of each agent in tune; a multiple of 4.
    shares: percent of the catalogue that are replaced, for changing_catalogue.
    newcomers: what is known of items that arrive in changing_catalogue:
      `content`, as of all items there, words of their title and genres, and
      their year; `unrated`, the same, but features as they are, which may be
      made of ratings, stand beside it, and are zeros for newcomers; `logged`,
      their features as they are.
    sizes: items in the catalogue, for catalogue_size.
    memory_gb: what a job of catalogue_size may take; one that needs more is
      left out.
    seconds_per_run: what training may take there, for each seed; one that needs
      more is timed alone.
    seed: of whatever an experiment draws itself.
    control: of the A/B comparison: an agent, `random`, `best_constant`,
      `greedy_oracle`, or the folder of an evaluated run.
    treatment: what it is compared with; None: the method itself.
    logging_temperature: of the popularity policy that draws logs in
      conservatism.
    logged_slates: how many are learned from in conservatism.
    conservative_weights: of the conservative term in conservatism, beside that
      of the flags, with the most slates.
    rounds: of serving and learning in closed_loop.
    sessions: of each of these rounds.
    served_temperature: that slates are drawn with there.
    kl_weights: that hold RL to the supervised policy in after_supervised.
  """

  agents: tuple[str, ...] | None = None
  protocols: tuple[str, ...] = setting(PROTOCOLS, among=PROTOCOLS, length=1)
  variants: tuple[str, ...] | None = None
  resamples: int = setting(2_000, least=100)
  workdirs: tuple[str, ...] = ()
  tuned: tuple[str, ...] | None = None
  trials: int = setting(16, least=4)
  shares: tuple[int, ...] = (5, 20, 50)
  newcomers: str = setting("content", among=NEWCOMERS)
  sizes: tuple[int, ...] = setting(
    (1_000, 10_000, 100_000, 1_000_000), least=1, length=1
  )
  memory_gb: float = setting(12.0, above=0)
  seconds_per_run: float = setting(240.0, above=0)
  seed: int = seed_setting(0)
  control: str = "best_constant"
  treatment: str | None = None
  logging_temperature: float = setting(1.0, above=0)
  logged_slates: tuple[int, ...] = setting(
    (1_000, 10_000, 100_000), least=1, length=1
  )
  conservative_weights: tuple[float, ...] = setting(
    (0.0, 0.01, 1.0), least=0, length=1
  )
  rounds: int = setting(10, least=2)
  sessions: int = setting(2_000, least=2)
  served_temperature: float = setting(0.5, least=0)
  kl_weights: tuple[float, ...] = setting((0.0, 1.0, 5.0), least=0, length=1)

  def __post_init__(self):
    super().__post_init__()
    given = self.tuned != () and all(self.tuned or ())
    self.require("tuned", given, "a path, or leave it out")
    self.require("trials", self.trials % 4 == 0, "a multiple of 4")
    self.require(
      "shares",
      len(self.shares) >= 1 and all(0 <= x <= 100 for x in self.shares),
      "percentages",
    )
