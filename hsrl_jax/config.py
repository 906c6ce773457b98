"""One frozen dataclass per stage. Flags fill them; library code sees only them.

A value out of range raises ValueError, whose one line names the field, what
was found and what was expected.
"""

import dataclasses
import hashlib
import json
import re

STAGES = ("data", "quantize", "simulator", "policy", "evaluate", "report")
PLATFORMS = ("cpu", "cuda", "tpu")
PROTOCOLS = ("paper", "no_repeat")
RESIDUAL_MODES = ("expected", "sampled")
ITEM_LOGITS = ("features", "free")
ASSIGNMENTS = ("unique", "plain", "shuffled")
AGENTS = (
  "random",
  "popularity",
  "sasrec",
  "a2c",
  "ddpg",
  "td3",
  "pgra",
  "wolpertinger",
  "hac",
  "hsrl",
)


_DROPOUT = 0.998  # The most of which draws of 8 bits keep anything.
_DROPOUTS = f"in [0, {_DROPOUT}]"


def _require(config, field: str, holds: bool, expected: str) -> None:
  if not holds:
    raise ValueError(
      f"{field} is {getattr(config, field)!r}; expected {expected}"
    )


def _require_least(config, least: float, *fields: str) -> None:
  """Raises ValueError where one of the fields is below `least`; None is not."""
  for field in fields:
    value = getattr(config, field)
    _require(
      config, field, value is None or value >= least, f"at least {least}"
    )


def _require_seed(config, field: str = "seed") -> None:
  """Raises ValueError where a field, or a value in it, is no seed."""
  value = getattr(config, field)
  values = value if isinstance(value, tuple) else (value,)
  _require(
    config,
    field,
    all(x is None or 0 <= x < 2**32 for x in values),
    "0 to 2^32 - 1",
  )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which prepared data to train on.

  Attributes:
    dataset: folder of a TFDS builder below `datasets/`.
    raw_data_dir: folder with the source files, for datasets that are not
      downloaded. Read once, by the stage data; where it lies decides nothing.
    response_params: .npz file of a user response model trained elsewhere, to
      take in place of fitting one; with users and items of its own it stands
      for the dataset too.
  """

  dataset: str = "movielens_latest_small"
  # No part of equality, hence of fingerprints and of the flags that are kept.
  raw_data_dir: str | None = dataclasses.field(default=None, compare=False)
  response_params: str | None = None


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
  """The semantic action space (DESIGN, section 3).

  Attributes:
    levels: L, tokens in a SID.
    vocab_size: V, values of a token.
    iterations: Lloyd iterations per level.
    restarts: seedings tried per level; the best is kept.
    batch_size: rows per iteration; None: all of them.
    balance: no token is used by more than this times N / V items; None: any
      number of items.
    assignment: `unique`; for comparison, in a policy that scores every item,
      `plain`: items that collide share a SID and its probability; `shuffled`:
      unique SIDs, each of another item.
    seed: of the seeding, and the shuffling.
  """

  levels: int = 3
  vocab_size: int = 64
  iterations: int = 30
  restarts: int = 4
  batch_size: int | None = None
  balance: float | None = None
  assignment: str = "unique"
  seed: int = 0

  def __post_init__(self):
    _require_least(self, 1, "levels", "iterations", "restarts", "batch_size")
    _require_least(self, 1, "balance")
    _require_least(self, 2, "vocab_size")
    _require_seed(self)
    # With V of at least 2 more than 62 levels have no numbers below 2^63.
    _require(self, "levels", self.levels <= 62, "at most 62")
    _require(
      self,
      "levels",
      self.vocab_size**self.levels < 2**63,
      f"fewer: {self.vocab_size}^{self.levels} SIDs are too many to number",
    )
    _require(
      self,
      "assignment",
      self.assignment in ASSIGNMENTS,
      f"one of {ASSIGNMENTS}",
    )


# Fields of SimulatorConfig of which the fit knows nothing.
_OF_SESSIONS = (
  "protocol",
  "patience",
  "max_steps",
  "penalty",
  "sweet_point",
  "slate_size",
)


@dataclasses.dataclass(frozen=True)
class SimulatorConfig:
  """The user response model and its simulator (DESIGN, sections 4 and 5).

  Attributes:
    features: F, width in which users and items meet.
    hidden: width of the profile's hidden layer.
    heads: attention heads; divides `features`.
    final_dense: True for the MovieLens variant of the network.
    dropout: rate while fitting.
    learning_rate: peak of a cosine decay to zero.
    weight_decay: of AdamW.
    batch_size: slates per update.
    epochs: passes over the training slates; the best by validation log loss
      is kept.
    seed: of initialisation, order and dropout.
    protocol: `paper`, or `no_repeat`: an item is shown once a session.
    patience: what a user starts with; the user leaves when it is below 1.
    max_steps: a session is truncated here.
    penalty: reward of an item without a positive response.
    sweet_point: with a value, r <- 1 - |r - sweet_point| (RL4RS); None: off.
    slate_size: K, items shown at once; None: as many as in the logs.
    click_model: by which users respond, a name of CLICK_MODELS in
      sim/click_model.py.
  """

  features: int = 16
  hidden: int = 256
  heads: int = 2
  final_dense: bool = True
  dropout: float = 0.3
  learning_rate: float = 1e-3
  weight_decay: float = 0.1
  batch_size: int = 64
  epochs: int = 12
  seed: int = 0
  protocol: str = "paper"
  patience: float = 20.0
  max_steps: int = 20
  penalty: float = -0.1
  sweet_point: float | None = None
  slate_size: int | None = None
  click_model: str = "attention"

  def __post_init__(self):
    _require_least(self, 1, "features", "hidden", "heads", "batch_size")
    _require_least(self, 1, "epochs", "patience", "max_steps", "slate_size")
    _require(
      self,
      "heads",
      self.features % self.heads == 0,
      f"a divisor of features = {self.features}",
    )
    _require(self, "dropout", 0 <= self.dropout <= _DROPOUT, _DROPOUTS)
    _require(self, "learning_rate", self.learning_rate > 0, "above 0")
    _require_least(self, 0, "weight_decay")
    _require_seed(self)
    _require(
      self, "protocol", self.protocol in PROTOCOLS, f"one of {PROTOCOLS}"
    )

  def of_fit(self) -> "SimulatorConfig":
    """The same fit, with what it does not depend on at its defaults."""
    defaults = {
      field.name: field.default
      for field in dataclasses.fields(self)
      if field.name in _OF_SESSIONS
    }
    return dataclasses.replace(self, **defaults)


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
  """The agent and its training (DESIGN, sections 4, 6 and 7).

  Attributes:
    agent: what is trained, one of AGENTS.
    width: d of encoder and policy.
    layers: transformer layers.
    heads: attention heads; divides `width`.
    dropout: rate in training.
    critic_hidden: hidden widths of each level's value.
    residual_mode: `expected` or `sampled`.
    residual: whether each level sees what the last one left, instead of the
      state.
    semantic_tokens: whether tokens share what they learn by their codebook
      vectors.
    item_logits: what scores an item in agents without SIDs: `features`, a
      linear map of its features, or `free`, a row of its own.
    item_residual: whether what a SID loses of an item's features counts too
      when items are ranked; needs semantic_tokens.
    compose_slates: whether a slate may end in items that are hardly wanted,
      where the reward has a sweet point that would be overshot without them.
    critic_gradient: whether the critic's loss also trains what it looks at.
    level_critics: whether each level has a value, instead of the state alone.
    train_level_weights: whether the mix of these values is trained.
    discount: gamma.
    polyak: rate of the target networks, which are also what is evaluated.
    advantage_clip: bound of the slate's advantage.
    item_credit: whether each item of a slate has its own advantage.
    level_advantages: whether each level's loss uses that level's own value.
    importance_clip: truncation of the importance weights of replayed
      actions; 0 turns the weights off.
    actor_weight: of the actor's loss.
    critic_weight: of the critic's loss.
    behaviour_weight: of the behaviour loss.
    entropy_weight: beta at the start; 0, with the other, for none.
    entropy_weight_end: beta at the end (geometric in between).
    temperature: of the acting policy at the start: top-K of
      log pi / temperature + Gumbel noise.
    temperature_end: the same at the end (geometric in between).
    explore_no_repeat: whether in training no item is shown twice in a session,
      even where the protocol allows it, so that more of the catalogue is
      tried.
    beams: width of the beam search, which acts in `sampled` mode and from
      100,000 items on.
    learning_rate: peak of a cosine decay to zero.
    max_grad_norm: global norm at which gradients are clipped.
    users: parallel simulated users.
    batch_size: replayed transitions per update; a multiple of `users`.
    buffer_size: transitions kept; a multiple of users * iterations_per_call.
    iterations: of act, step, replay, update.
    iterations_per_call: of them in one call of the device. It should take less
      than 20 s: on SIGTERM a run saves after the call in hand, and ends
      without if that takes longer.
    curve_every: iterations between points of the learning curve.
    curve_episodes: validation sessions of such a point.
    save_every: iterations between checkpoints; at the default they take about
      2 % of the time on two CPU cores.
    seeds: one training run each; they run side by side.
    profile_steps: FIRST:LAST writes a profiler's trace of the calls that do
      these iterations to `policy/profile`.
  """

  agent: str = "hsrl"
  width: int = 32
  layers: int = 2
  heads: int = 4
  dropout: float = 0.1
  critic_hidden: tuple[int, ...] = (256, 64)
  residual_mode: str = "expected"
  residual: bool = True
  semantic_tokens: bool = True
  item_logits: str = "features"
  item_residual: bool = True
  compose_slates: bool = True
  critic_gradient: bool = False
  level_critics: bool = True
  train_level_weights: bool = True
  discount: float = 0.9
  polyak: float = 0.01
  advantage_clip: float = 1.0
  item_credit: bool = True
  level_advantages: bool = False
  importance_clip: float = 0.0
  actor_weight: float = 0.01
  critic_weight: float = 1.0
  behaviour_weight: float = 1.0
  entropy_weight: float = 0.01
  entropy_weight_end: float = 1e-4
  temperature: float = 0.3
  temperature_end: float = 0.3
  explore_no_repeat: bool = True
  beams: int = 50
  learning_rate: float = 1e-3
  max_grad_norm: float = 1.0
  users: int = 32
  batch_size: int = 64
  buffer_size: int = 102_400
  iterations: int = 6_000
  iterations_per_call: int = 100
  curve_every: int = 500
  curve_episodes: int = 256
  save_every: int = 2_000
  seeds: tuple[int, ...] = (0,)
  # It decides nothing: see DataConfig.raw_data_dir.
  profile_steps: str | None = dataclasses.field(default=None, compare=False)

  @property
  def profile_range(self) -> tuple[int, int] | None:
    """The first and the last of profile_steps."""
    if self.profile_steps is None:
      return None
    found = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
    return (int(found[1]), int(found[2])) if found else (1, 0)

  def __post_init__(self):
    _require(self, "agent", self.agent in AGENTS, f"one of {AGENTS}")
    _require_least(self, 1, "width", "layers", "heads", "beams", "users")
    _require_least(self, 1, "iterations_per_call", "curve_episodes")
    _require_least(self, 0, "importance_clip", "entropy_weight")
    _require_least(self, 0, "actor_weight", "critic_weight", "behaviour_weight")
    for name in ("advantage_clip", "learning_rate", "max_grad_norm"):
      _require(self, name, getattr(self, name) > 0, "above 0")
    _require(
      self,
      "critic_hidden",
      min(self.critic_hidden, default=1) >= 1,
      "widths of at least 1",
    )
    _require_seed(self, "seeds")
    _require(
      self,
      "heads",
      self.width % self.heads == 0,
      f"a divisor of width = {self.width}",
    )
    _require(self, "dropout", 0 <= self.dropout <= _DROPOUT, _DROPOUTS)
    _require(
      self,
      "residual_mode",
      self.residual_mode in RESIDUAL_MODES,
      f"one of {RESIDUAL_MODES}",
    )
    _require(
      self,
      "item_residual",
      self.semantic_tokens or not self.item_residual,
      "false without semantic_tokens",
    )
    _require(
      self,
      "item_logits",
      self.item_logits in ITEM_LOGITS,
      f"one of {ITEM_LOGITS}",
    )
    for name in ("discount", "polyak"):
      _require(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
    _require(
      self,
      "level_advantages",
      not self.level_advantages or self.level_critics,
      "false without level_critics",
    )
    _require(
      self,
      "entropy_weight_end",
      (self.entropy_weight_end > 0) == (self.entropy_weight > 0)
      and self.entropy_weight_end >= 0,
      "above 0, or 0 where entropy_weight is 0",
    )
    for name in ("temperature", "temperature_end"):
      _require(self, name, getattr(self, name) > 0, "above 0")
    for name, unit in (
      ("batch_size", self.users),
      ("buffer_size", self.users * self.iterations_per_call),
    ):
      value = getattr(self, name)
      _require(
        self,
        name,
        value >= unit and value % unit == 0,
        f"a multiple of {unit}",
      )
    for name in ("iterations", "curve_every", "save_every"):
      value = getattr(self, name)
      _require(
        self,
        name,
        value >= 1 and value % self.iterations_per_call == 0,
        f"a multiple of iterations_per_call = {self.iterations_per_call}",
      )
    _require(
      self,
      "seeds",
      len(self.seeds) >= 1 and len(set(self.seeds)) == len(self.seeds),
      "distinct integers, at least one",
    )
    first, last = self.profile_range or (1, 1)
    _require(self, "profile_steps", 1 <= first <= last, "such as 101:300")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """The final evaluation.

  Attributes:
    split: logged sessions from which the users are drawn.
    episodes: sessions simulated for each policy and seed.
    seed: of the users' responses; the same for all policies.
  """

  split: str = "test"
  episodes: int = 2_000
  seed: int = 0

  def __post_init__(self):
    _require(
      self, "split", self.split in ("train", "val", "test"), "train, val, test"
    )
    _require_least(self, 1, "episodes")
    _require_seed(self)


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides what a run computes."""

  data: DataConfig = DataConfig()
  quantizer: QuantizerConfig = QuantizerConfig()
  simulator: SimulatorConfig = SimulatorConfig()
  policy: PolicyConfig = PolicyConfig()
  evaluate: EvaluateConfig = EvaluateConfig()


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """What an experiment compares; each job is a Config that differs in it.

  Attributes:
    agents: that the benchmark compares.
    protocols: under which the jobs are run.
    variants: of the ablation, beside the full method; none named: all.
    resamples: of the paired bootstrap.
    workdirs: of finished experiments, which --mode=results adds to the docs.
    shares: percent of the catalogue that are replaced, for changing_catalogue.
    sizes: items in the catalogue, for catalogue_size.
    memory_gb: what a job of catalogue_size may take; one that needs more is
      left out.
    seconds_per_run: what training may take there, for each seed; one that needs
      more is timed alone.
    seed: of whatever an experiment draws itself.
    control: of the A/B comparison: an agent, `random`, `best_constant`,
      `greedy_oracle`, or the folder of an evaluated run.
    treatment: what it is compared with.
    temperatures: of the policies that the offline check estimates.
    logging_temperature: of the policy that draws its logs in the simulator.
    weight_clip: importance weights are cut there.
  """

  agents: tuple[str, ...] = AGENTS
  protocols: tuple[str, ...] = PROTOCOLS
  variants: tuple[str, ...] = ()
  resamples: int = 2_000
  workdirs: tuple[str, ...] = ()
  shares: tuple[int, ...] = (5, 20, 50)
  sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
  memory_gb: float = 12.0
  seconds_per_run: float = 240.0
  seed: int = 0
  control: str = "best_constant"
  treatment: str = "hsrl"
  temperatures: tuple[float, ...] = (1.0, 0.7, 0.5, 0.3, 0.2)
  logging_temperature: float = 1.0
  weight_clip: float = 100.0

  def __post_init__(self):
    for name, known in (
      ("agents", AGENTS),
      ("protocols", PROTOCOLS),
    ):
      values = getattr(self, name)
      _require(
        self,
        name,
        len(values) >= 1 and set(values) <= set(known),
        f"at least one of {known}",
      )
    _require(
      self,
      "shares",
      len(self.shares) >= 1 and all(0 <= x <= 100 for x in self.shares),
      "percentages",
    )
    _require(
      self,
      "sizes",
      len(self.sizes) >= 1 and all(x >= 1 for x in self.sizes),
      "at least 1 each",
    )
    _require(self, "resamples", self.resamples >= 100, "at least 100")
    _require(
      self,
      "temperatures",
      len(self.temperatures) >= 1 and min(self.temperatures) > 0,
      "at least one, above 0",
    )
    _require_seed(self)
    for name in (
      "logging_temperature",
      "weight_clip",
      "memory_gb",
      "seconds_per_run",
    ):
      _require(self, name, getattr(self, name) > 0, "above 0")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
  """What --mode=export writes.

  Attributes:
    dir: folder that is written; None: `export` in the workdir.
    batch_sizes: users decoded at once; each is compiled when it is loaded.
    platforms: that it will run on, of PLATFORMS.
    slate_size: K, items recommended; None: as in training.
    seen: T, ids that a request may exclude; None: as many as the simulator
      shows in a session.
    capacity: the largest id that fits; None: a quarter more than there are
      items.
    seed: which of --seeds; None: the first.
  """

  dir: str | None = None
  batch_sizes: tuple[int, ...] = (8, 32)
  platforms: tuple[str, ...] = PLATFORMS
  slate_size: int | None = None
  seen: int | None = None
  capacity: int | None = None
  seed: int | None = None

  def __post_init__(self):
    _require_least(self, 1, "slate_size", "capacity")
    _require_least(self, 0, "seen")
    _require_seed(self)
    _require(
      self,
      "batch_sizes",
      len(self.batch_sizes) >= 1 and min(self.batch_sizes) >= 1,
      "at least one, each at least 1",
    )
    _require(
      self,
      "platforms",
      len(self.platforms) >= 1 and set(self.platforms) <= set(PLATFORMS),
      f"at least one of {PLATFORMS}",
    )


def values(config):
  """What decides of a config, as a dict; other values as they are."""
  if not dataclasses.is_dataclass(config):
    return config
  fields = [x.name for x in dataclasses.fields(config) if x.compare]
  return {name: values(getattr(config, name)) for name in fields}


def fingerprint(*parts) -> str:
  """A short name of configs' values and of texts, the same in every process."""
  text = json.dumps([values(x) for x in parts], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
