"""The settings of simulated sessions, which the fit of the click model ignores.

They are part of `config.SimulatorConfig`.
"""

import dataclasses

from hsrl_jax.checked import Checked, setting

PROTOCOLS = ("paper", "no_repeat")
FITTED_TO_LOGS = "fitted"
TIRED = ("fatigue", "fatigue_fine")
BOREDOM = ("none", "topic", "all", FITTED_TO_LOGS, *TIRED)
LEAVE_RULES = ("patience", "length", "boredom", "distance", "disappointment")
OBSERVED = ("likes", "interactions")
FITTED = "fitted"
WORLDS = (  # Of SARDINE; see sim/sardine.
  "SlateTopK-Bored",
  "SlateTopK-BoredInf",
  "SlateTopK-Uncertain",
  "SingleItem-Static",
  "SingleItem-BoredInf",
  "SingleItem-Uncertain",
)
REWARDS = ("auto", "mean", "sum")
# Last liked items that a user remembers.
BOREDOM_MEMORY = 10
# What is not decided by a world of SARDINE.
_OF_ANY_WORLD = ("world", "reward", "observed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionConfig(Checked):
  """Sessions of simulated users (docs/simulator.md).

  Attributes:
    world: whose users these are: `fitted`, of a click model that is fitted to
      logs; or those of a world of SARDINE, with the dataset `sardine`, which
      decides all below but `reward` and what is observed.
    reward: whether a slate earns the `mean` or the `sum` of what its items
      earn; `auto`: the mean, and in a world of SARDINE the sum, its clicks.
    protocol: `paper`, or `no_repeat`: an item is shown once a session.
    max_steps: a session is truncated here.
    penalty: reward of an item without a positive response.
    sweet_point: with a value, r <- 1 - |r - sweet_point| (RL4RS); None: off.
    slate_size: K, items shown at once; None: as many as in the logs.
    boredom: what a user likes less after likes of the same topic: `none`;
      `topic`: items of a boring topic get no likes; `all`: no item gets any
      while a topic bores; `fitted`: what the sessions of the logs say of it;
      `fatigue`: what is liked by the same users as what was shown, each user at
      a pace of their own; `fatigue_fine`: the same, but for what categories
      say. An item's topic is the rarest of its categories.
    boredom_threshold: lately liked items of one topic that make it boring.
    fatigue_power: of the cosine by which items are alike in `fatigue`.
    fatigue_scale: what an item that is quite alike, shown a moment ago, takes
      off the logit of a like there, in the mean of the users who tire.
    leave: when a user leaves: `patience`, when patience is used up; `length`,
      never before max_steps; `boredom`, when a category of a shown item was
      shown too often before; `distance`, when a shown item is near one that was
      shown before; `disappointment`, by chance, the sooner the less was liked
      lately.
    leave_window: last shown items, before the slate, that the leave rules
      `boredom` and `distance` look at.
    leave_threshold: by `boredom` the user leaves if a category of a shown item
      occurs more often than this among them.
    observed: what agents see of a session: `likes`, the last liked items;
      `interactions`, besides the last 50 shown ones with response, position
      and steps ago, and the step.
  """

  world: str = setting(FITTED, among=(FITTED, *WORLDS))
  reward: str = setting("auto", among=REWARDS)
  protocol: str = setting("paper", among=PROTOCOLS)
  max_steps: int = setting(20, least=1)
  penalty: float = -0.1
  sweet_point: float | None = None
  slate_size: int | None = setting(None, least=1)
  boredom: str = setting("none", among=BOREDOM)
  boredom_threshold: int = setting(5, least=1)
  fatigue_power: float = setting(1.5, above=0)
  fatigue_scale: float = setting(4.0, above=0)
  leave: str = setting("patience", among=LEAVE_RULES)
  leave_window: int = setting(5, least=1)
  leave_threshold: int = setting(2, least=0)
  observed: str = setting("likes", among=OBSERVED)

  def __post_init__(self):
    super().__post_init__()
    self.require(
      "boredom_threshold",
      self.boredom not in ("topic", "all")
      or self.boredom_threshold <= BOREDOM_MEMORY,
      f"at most {BOREDOM_MEMORY}, the likes that count: else nothing bores",
    )
    self.require(
      "leave_threshold",
      self.leave != "boredom" or self.leave_threshold < self.leave_window,
      f"less than leave_window = {self.leave_window}: else nobody leaves",
    )

    for field in dataclasses.fields(SessionConfig):
      own = field.name in _OF_ANY_WORLD or self.world == FITTED
      self.require(
        field.name,
        own or getattr(self, field.name) == field.default,
        f"{field.default}, the default: world = {self.world} decides it",
      )
    self.require(
      "reward",
      self.reward != "sum" or self.sweet_point is None,
      "mean where there is a sweet_point",
    )

  @property
  def sums(self) -> bool:
    """Whether a slate earns the sum of what its items earn."""
    default = "mean" if self.world == FITTED else "sum"
    return (default if self.reward == "auto" else self.reward) == "sum"

  @property
  def tires(self) -> bool:
    """Whether users tire of what is like what they were shown."""
    return self.boredom in TIRED

  @property
  def uses_topics(self) -> bool:
    """Whether sessions depend on the topics or categories of items."""
    return self.boredom != "none" or self.leave == "boredom"
