"""One frozen dataclass per stage. Flags fill them; library code sees only them.

What only some agents read is no part of this file: each agent has a dataclass
of its own, see `hsrl_jax/agents`. A value out of range raises ValueError, whose
one line names the field, what was found and what was expected.
"""

import dataclasses
import re
from typing import Any

from hsrl_jax.checked import Checked, seed_setting, setting
from hsrl_jax.session_config import FITTED_TO_LOGS, SessionConfig

STAGES = ("data", "quantize", "simulator", "policy", "evaluate", "report")
PLATFORMS = ("cpu", "cuda", "tpu")
ASSIGNMENTS = ("unique", "plain", "shuffled")
SPLITS = ("train", "val", "test")
SPLITS_BY = ("time", "user")
RECIPES = ("replay", "on_policy", "logs", "next_item", "next_item,on_policy")
ITEM_VECTORS = ("auto", "given", "logs")
# The most of which draws of 8 bits keep anything.
_DROPOUT = 0.998
_INPUTS = ("ids", "features")


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
  """Which prepared data to train on.

  Attributes:
    dataset: folder of a TFDS builder below `datasets/`.
    raw_data_dir: folder with the source files, for datasets that are not
      downloaded. Read once, by the stage data; where it lies decides nothing.
    response_params: .npz file of a user response model trained elsewhere, to
      take in place of fitting one; with users and items of its own it stands
      for the dataset too.
    sids: file with the SIDs of all items (.json, .npz or .csv), to take in
      place of fitting some; it brings the sizes of the SIDs.
    truth: .npy file with the rating of every item by every user, by which
      sessions are scored in place of the fitted users (docs/simulator.md);
      these remain what a policy is trained with.
    split_by: what the splits are made by: `time`, so that users of the test are
      users of the training too, earlier on; `user`: a tenth of the users are of
      the test alone, a tenth of the validation, by a hash of their id.
    item_vectors: what SIDs and networks see of an item: `given`, its features;
      `logs`, vectors made of the training likes, joined with features, numbers
      and words of the items; `auto`: the latter where items of your own logs
      have no features.
  """

  dataset: str = "movielens_latest_small"
  # No part of equality, hence of fingerprints and of the flags that are kept.
  raw_data_dir: str | None = dataclasses.field(default=None, compare=False)
  response_params: str | None = None
  sids: str | None = None
  truth: str | None = None
  split_by: str = setting("time", among=SPLITS_BY)
  item_vectors: str = setting("auto", among=ITEM_VECTORS)


@dataclasses.dataclass(frozen=True)
class QuantizerConfig(Checked):
  """The semantic action space (docs/policy.md).

  Attributes:
    levels: L, tokens in a SID.
    vocab_size: V, values of a token.
    batch_size: rows per iteration; None: all of them.
    assignment: `unique`; for comparison, in a policy that scores every item,
      `plain`: items that collide share a SID and its probability; `shuffled`:
      unique SIDs, each of another item.
    topic_weight: length of a one-hot vector of the item's topic, the rarest of
      its categories, which is joined to the features that SIDs are made of and
      that agents see; 0: none is.
    likes_weight: length of a vector of the likes of half of the training users,
      joined likewise; the other half's decide `fatigue`. 0: none is.
  """

  levels: int = setting(3, least=1, most=62)
  vocab_size: int = setting(64, least=2)
  batch_size: int | None = setting(None, least=1)
  assignment: str = setting("unique", among=ASSIGNMENTS)
  topic_weight: float = setting(0.0, least=0)
  likes_weight: float = setting(0.0, least=0)

  def __post_init__(self):
    super().__post_init__()
    self.require(
      "levels",
      self.vocab_size**self.levels < 2**63,
      f"fewer: {self.vocab_size}^{self.levels} SIDs are too many to number",
    )


@dataclasses.dataclass(frozen=True)
class SimulatorConfig(SessionConfig):
  """The user response model, and the sessions of its users (docs/simulator.md).

  Attributes:
    features: F, width in which users and items meet.
    hidden: width of the profile's hidden layer.
    heads: attention heads; divides `features`.
    final_dense: whether interest and user vector are mixed by a last layer, in
      all data sets but RL4RS.
    dropout: rate while fitting.
    learning_rate: peak of a cosine decay to zero.
    weight_decay: of AdamW.
    batch_size: slates per update.
    epochs: passes over the training slates; the best by validation log loss
      is kept.
    click_model: by which users respond: `attention`, the published one, knows
      items by their features; `blended` has also what the logs say of single
      items and users; `double_sigmoid`: `attention`, fitted as in the public
      code. None: `blended` for the dataset `logs`, else `attention`.
  """

  features: int = setting(16, least=1, found=True)
  hidden: int = setting(256, least=1, found=True)
  heads: int = setting(2, least=1)
  final_dense: bool = setting(True, found=True)
  dropout: float = setting(0.3, least=0, most=_DROPOUT)
  learning_rate: float = setting(1e-3, above=0)
  weight_decay: float = setting(0.1, least=0)
  batch_size: int = setting(64, least=1)
  epochs: int = setting(12, least=1)
  click_model: str | None = None

  def __post_init__(self):
    super().__post_init__()
    self.require_divisor("heads", "features")

  def of_fit(self) -> "SimulatorConfig":
    """The same fit, with what it does not depend on at its defaults."""
    changes = {x.name: x.default for x in dataclasses.fields(SessionConfig)}
    if self.boredom == FITTED_TO_LOGS:
      del changes["boredom"]
    return dataclasses.replace(self, **changes)


def _heads(width: int, size: int) -> int:
  """Attention heads of about `size` numbers, two at least if they divide."""
  most = max(width // size, 2)
  return next(x for x in range(most, 0, -1) if width % x == 0)


@dataclasses.dataclass(frozen=True)
class NetworkConfig(Checked):
  """Sizes of the networks, the same for every agent.

  Attributes:
    width: d of the encoder's state, and of what is made of it.
    layers: transformer layers of the encoder; 0: the history is summed up, once
      evenly and once with more weight to what is newer.
    dropout: rate in training.
    critic_hidden: hidden widths of each value.
  """

  width: int = setting(32, least=1)
  layers: int = setting(1, least=0)
  dropout: float = setting(0.1, least=0, most=_DROPOUT)
  critic_hidden: tuple[int, ...] = setting((256, 64), least=1)

  @property
  def encoder(self) -> tuple[int, int, int, float]:
    """The sizes that an Encoder takes."""
    return self.width, self.layers, self.heads, self.dropout

  @property
  def heads(self) -> int:
    """Attention heads."""
    return _heads(self.width, 8)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
  """How an agent is trained, whichever it is (docs/policy.md).

  Attributes:
    recipe: what an agent learns from. `replay`: in the simulator, each
      iteration from a batch of what was shown lately; `on_policy`: from all of
      the last segment; `logs`: from slates of the training split, without the
      simulator; `next_item`: what users liked next in the logs;
      `next_item,on_policy` goes on from there in the simulator.
    continue_from: workdir of a finished run from whose parameters training
      starts, of the same agent and recipe, or of the recipe's part before the
      comma, which then is not trained anew.
    segment: on-policy, iterations between times of learning; a divisor of
      iterations_per_call.
    minibatches: on-policy, of each of three passes over a segment; a divisor of
      segment.
    polyak: rate of the target networks, which are also what is evaluated.
    temperature: how far training strays from the best slate. An agent that
      scores items shows the top K of log pi / temperature + Gumbel noise; one
      with a latent action adds normal noise of this standard deviation to it.
    explore_no_repeat: whether in training no item is shown twice in a session,
      even where the protocol allows it, so that more of the catalogue is
      tried.
    learning_rate: peak of a cosine decay to zero.
    users: parallel simulated users; with logs, parts of a batch that devices
      may share.
    batch_size: replayed or logged transitions per update; a multiple of
      `users`.
    buffer_size: transitions kept; a multiple of users * iterations_per_call.
    iterations: of act, step, replay, update.
    iterations_per_call: of them in one call of the device. It should take less
      than 20 s: on SIGTERM a run saves after the call in hand, and ends
      without if that takes longer.
    curve_every: iterations between points of the learning curve.
    save_every: iterations between checkpoints; at the default they take about
      2 % of the time on two CPU cores.
    seeds: one training run each; they run side by side.
    profile_steps: FIRST:LAST writes a profiler's trace of the calls that do
      these iterations to `policy/profile`.
  """

  recipe: str = setting(RECIPES[0], among=RECIPES)
  continue_from: str | None = None
  segment: int = setting(20, least=1)
  minibatches: int = setting(4, least=1)
  polyak: float = setting(0.01, least=0, most=1)
  temperature: float = setting(0.2, above=0)
  explore_no_repeat: bool = True
  learning_rate: float = setting(2e-3, above=0)
  users: int = setting(32, least=1)
  batch_size: int = 64
  buffer_size: int = 102_400
  iterations: int = 6_000
  iterations_per_call: int = setting(100, least=1)
  curve_every: int = 1_000
  save_every: int = 2_000
  seeds: tuple[int, ...] = seed_setting((0,))
  # It decides nothing: see DataConfig.raw_data_dir.
  profile_steps: str | None = dataclasses.field(default=None, compare=False)

  @property
  def from_logs(self) -> bool:
    """Whether it is logged slates that are learned from."""
    return self.recipe == "logs"

  @property
  def on_policy(self) -> bool:
    """Whether all of the last segment is learned from, and then forgotten."""
    return self.recipe.endswith("on_policy")

  @property
  def goes_on(self) -> bool:
    """See `goes_on`."""
    return goes_on(self.recipe)

  @property
  def profile_range(self) -> tuple[int, int] | None:
    """The first and the last of profile_steps."""
    if self.profile_steps is None:
      return None
    bounds = re.fullmatch(r"(\d+):(\d+)", self.profile_steps)
    return (int(bounds[1]), int(bounds[2])) if bounds else (1, 0)

  def __post_init__(self):
    super().__post_init__()
    for name, unit in (
      ("batch_size", self.users),
      ("buffer_size", self.users * self.iterations_per_call),
    ):
      value = getattr(self, name)
      unread = name in unread_of(self.recipe)
      self.require(
        name,
        unread or value >= unit and value % unit == 0,
        f"a multiple of {unit}",
      )
    for name in ("iterations", "curve_every", "save_every"):
      value = getattr(self, name)
      self.require(
        name,
        value >= 1 and value % self.iterations_per_call == 0,
        f"a multiple of iterations_per_call = {self.iterations_per_call}",
      )
    if self.on_policy:
      for name, of in (
        ("segment", self.iterations_per_call),
        ("minibatches", self.segment),
      ):
        self.require(name, of % getattr(self, name) == 0, f"a divisor of {of}")
    self.require(
      "seeds",
      len(self.seeds) >= 1 and len(set(self.seeds)) == len(self.seeds),
      "distinct integers, at least one",
    )
    first, last = self.profile_range or (1, 1)
    self.require("profile_steps", 1 <= first <= last, "such as 101:300")


def goes_on(recipe: str) -> bool:
  """Whether RL goes on from a policy of the next item."""
  return "," in recipe


def unread_of(recipe: str) -> tuple[str, ...]:
  """Fields of TrainConfig of which RL by a recipe has no use."""
  segments = ("segment", "minibatches")
  if recipe == "logs":
    return (
      *("buffer_size", "explore_no_repeat", "curve_every"),
      *(*segments, "temperature"),
    )
  if recipe.endswith("on_policy"):
    return ("temperature", "batch_size", "buffer_size")
  return segments


@dataclasses.dataclass(frozen=True)
class NextItemConfig(Checked):
  """Training on the next item that a user likes, `--recipe=next_item`.

  An item's vector is the sum of `inputs` and, in hsrl, of embeddings of its
  tokens.

  Attributes:
    width: d of all layers.
    layers: transformer layers of the encoder.
    dropout: rate in training.
    history: T, liked items that are looked at.
    inputs: of an item's vector: `ids`, an embedding of its own; `features`, a
      linear map of its features.
    interactions: numbers of a vector by who liked the item in the training
      logs (a truncated SVD) that stands beside its features; 0 for none. Not
      where the features are made of the logs already.
    hidden: width of the block before each level's token logits, in hsrl.
    token_dropout: rate on that block.
    beams: width of the beam search by which hsrl finds items, of which the
      response then has its say: more beams, more weight to the response.
    learning_rate: peak, after a warm-up, of a cosine decay.
    weight_decay: of AdamW.
    batch_rows: rows of `history` inputs in an update; short sequences share a
      row.
    epochs: at most.
    patience: epochs without a better NDCG@10 of the validation split after
      which training ends.
    eval_every: epochs between validations.
    eval_rows: rows of the validation split that are looked at, drawn once; 0:
      all.
  """

  width: int = setting(64, least=1)
  layers: int = setting(1, least=1)
  dropout: float = setting(0.3, least=0, most=_DROPOUT)
  history: int = setting(50, least=1)
  inputs: tuple[str, ...] = setting(_INPUTS, among=_INPUTS, length=1)
  interactions: int = setting(64, least=0, found=True)
  hidden: int = setting(256, least=0)
  token_dropout: float = setting(0.2, least=0, most=_DROPOUT)
  beams: int = setting(20, least=1)
  learning_rate: float = setting(2e-3, above=0)
  weight_decay: float = setting(0.01, least=0)
  batch_rows: int = setting(64, least=1)
  epochs: int = setting(20, least=1)
  patience: int = setting(6, least=1)
  eval_every: int = setting(1, least=1)
  eval_rows: int = setting(2_000, least=0)

  def __post_init__(self):
    super().__post_init__()
    self.require(
      "patience",
      self.patience >= self.eval_every,
      f"at least eval_every = {self.eval_every}",
    )

  @property
  def heads(self) -> int:
    """Attention heads."""
    return _heads(self.width, 32)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Checked):
  """The final evaluation.

  Attributes:
    split: logged sessions from which the users are drawn.
    episodes: sessions simulated for each policy and seed.
    without: what the lists for held-out users leave out: `history`, unless
      users like things again; or `seen`, also all that the splits before showed
      the user, liked or not.
  """

  split: str = setting("test", among=SPLITS)
  episodes: int = setting(2_000, least=1)
  without: str = setting("history", among=("history", "seen"))


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides what a run computes.

  Attributes:
    data: what it trains on.
    quantizer: the semantic action space.
    simulator: the users.
    network: sizes of the agent's networks.
    train: how the agent is trained.
    evaluate: how it is measured.
    next_item: how it is trained on the next item.
    agent: a name in `agents.AGENTS`; None where no policy is trained.
    settings: of the agent, its own dataclass; see `agents.configure`.
  """

  data: DataConfig = DataConfig()
  quantizer: QuantizerConfig = QuantizerConfig()
  simulator: SimulatorConfig = SimulatorConfig()
  network: NetworkConfig = NetworkConfig()
  train: TrainConfig = TrainConfig()
  evaluate: EvaluateConfig = EvaluateConfig()
  next_item: NextItemConfig = NextItemConfig()
  agent: str | None = None
  settings: Any = None


@dataclasses.dataclass(frozen=True)
class ExportConfig(Checked):
  """Settings of --mode=export.

  Attributes:
    dir: folder that is written; None: `export` in the workdir.
    batch_sizes: users decoded at once; each is compiled when it is loaded.
    platforms: that it will run on, of PLATFORMS.
    slate_size: K, items recommended; None: as in training.
    seen: T, ids that a request may exclude; None: as many as the simulator
      shows in a session, and without `repeat` a history.
    capacity: the largest id that fits; None: a quarter more than there are
      items.
    seed: which of --seeds; None: the first.
    repeat: whether items of a request's history and session come again.
    any: whether a policy is exported that the run's own results doubt.
  """

  dir: str | None = None
  batch_sizes: tuple[int, ...] = setting((8, 32), least=1, length=1)
  platforms: tuple[str, ...] = setting(PLATFORMS, among=PLATFORMS, length=1)
  slate_size: int | None = setting(None, least=1)
  seen: int | None = setting(None, least=0)
  capacity: int | None = setting(None, least=1)
  seed: int | None = seed_setting(None)
  repeat: bool = False
  any: bool = False
