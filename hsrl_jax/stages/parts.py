"""Shared parts of a run's stages: data, catalogue, simulator, folders."""

import dataclasses
import functools
import pathlib

import jax.numpy as jnp
import numpy as np

from hsrl_jax import agents, checked
from hsrl_jax import config as config_lib
from hsrl_jax.agents import agent_of
from hsrl_jax.agents.base import Agent
from hsrl_jax.data import blocks, sids, source
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import ranking
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.session_config import FITTED, WORLDS
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import (
  click_model,
  fatigue,
  leave,
  response_file,
  sardine,
  truth,
  user_simulator,
)
from hsrl_jax.sim import topics as topics_lib
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.stages import quantize, simulator
from hsrl_jax.stages import score_truth as scored_by
from hsrl_jax.stages import start as start_lib
from hsrl_jax.types import Sessions

_SHARED = ("data", "quantize", "simulator", "bounds")
_MADE_UP = "sardine"  # The dataset of WORLDS.


class Parts:
  """Parts of one configuration in one workdir, each loaded once, when asked.

  Attributes:
    config: of the run, with the sizes of a given click model, given SIDs and
      the networks that it continues with.
    workdir: where the run writes.
    shared: where stages write whose output several runs share, or None.
    given: the file of a click model that was trained elsewhere, or None.
    sid_file: the file of SIDs that were made elsewhere, or None.
    start: the run that this one continues from, or None.
    as_given: `config` without the networks that it continues with.
    of: the run of which this one is the first part, or None.
    fingerprints: stage, or `bounds`, to the short name of what decides its
      output.
  """

  def __init__(
    self,
    config: config_lib.Config,
    workdir: pathlib.Path,
    shared: pathlib.Path | None = None,
    of: "Parts | None" = None,
  ):
    """Binds a configuration to the folder it writes to.

    Args:
      config: of the run.
      workdir: where it writes.
      shared: where the stages data, quantize and simulator write, each in a
        folder that its configuration names, so that runs share what they have
        in common; None: in the workdir.
      of: the run of which this one is the first part, with these stages.

    Raises:
      InputError: the file of --response_params or --sids, or the run of
        --continue_from, is not as it should be.
    """
    self.workdir, self.shared, self.of = workdir, shared, of
    self.given = None
    config = dataclasses.replace(config, simulator=simulator.chosen(config))
    _check_world(config)
    if config.data.response_params is not None:
      self.given = response_file.read(self.given_path(config))
      config = dataclasses.replace(
        config, simulator=simulator.sized(config.simulator, self.given)
      )
    if self.own_users:
      _check_without_slates(config, self.given.name)
    self.sid_file = None
    if config.data.sids is not None:
      self.sid_file = sids.taken_file(config.data.sids, workdir)
      config = dataclasses.replace(
        config, quantizer=sids.sized(config.quantizer, self.sid_file)
      )
    self.start, self.as_given = start_lib.of_config(config, workdir), config
    self.config = self.start.sized(config) if self.start else config
    begun = ()
    if self.start is not None and not self.start.is_first_part:
      # What the flags say of a first part tells all, before it is there.
      config, begun = self.config, (f"start {self.start.digest}",)
    agents.check(config)
    # Of the files their content counts, not their paths.
    plain = dataclasses.replace(
      config.data, response_params=None, sids=None, truth=None
    )
    train = dataclasses.replace(config.train, continue_from=None)
    c = dataclasses.replace(config, data=plain, train=train)
    given = (self.given.digest,) if self.given else ()
    brought = (f"SIDs {self.sid_file.digest}",) if self.sid_file else ()
    scored = scored_by.digest(config)
    learned = dataclasses.replace(c, evaluate=config_lib.EvaluateConfig())
    learned, whole = (
      checked.fingerprint(x, *given, *brought, *begun, *scored)
      for x in (learned, c)
    )
    data = (c.data, *given) if self.own_users else (c.data,)
    self.fingerprints = {
      "data": checked.fingerprint(*data),
      "quantize": checked.fingerprint(*data, c.quantizer, *brought),
      "simulator": checked.fingerprint(c.data, c.simulator.of_fit(), *given),
      # No stage: how simple policies do in the world, for `evaluate`.
      "bounds": checked.fingerprint(
        c.data, c.simulator, c.evaluate, *given, *scored
      ),
      "policy": learned,
      "evaluate": whole,
      "report": whole,
    }

  def given_path(self, config: config_lib.Config) -> pathlib.Path:
    """The file of --response_params, or the copy that was made of it."""
    path = pathlib.Path(config.data.response_params)
    copy = self.workdir / simulator.FOLDER / simulator.GIVEN
    return copy if copy.exists() and not path.exists() else path

  @property
  def own_users(self) -> bool:
    """Whether users and items are those of the file --response_params."""
    return self.given is not None and self.given.dataset is not None

  @property
  def without_slates(self) -> bool:
    """Whether no slates are logged from which an agent could learn."""
    return self.own_users or self.made_up

  @property
  def made_up(self) -> bool:
    """Whether the users are those of a world that nothing is fitted to."""
    return self.config.simulator.world != FITTED

  @property
  def name(self) -> str:
    """Name of the users and items."""
    return self.given.name if self.own_users else self.config.data.dataset

  @functools.cached_property
  def dataset(self) -> source.Dataset:
    """The prepared data."""
    if self.own_users:
      return self.given.dataset
    return source.load(self.folder("data") / "data")

  @functools.cached_property
  def training_logs(self) -> Sessions | blocks.Blocks:
    """All training slates, which --recipe=logs learns from."""
    on_disk = None
    if not self.own_users:
      on_disk = blocks.load(self.folder("data") / "data" / blocks.FOLDER)
    return on_disk or self.dataset.splits["train"]

  @functools.cached_property
  def brought(self) -> sids.BroughtSids | None:
    """The SIDs of --sids; None where they are fitted."""
    if self.sid_file is None:
      return None
    return sids.of_items(self.sid_file, self.dataset.items.ids[1:])

  @functools.cached_property
  def items(self) -> source.Items:
    """The items as SIDs and agents see them, with topics and likes joined."""
    items, c = self.dataset.items, self.config.quantizer
    joined = [items.features]
    if c.topic_weight:
      joined.append(c.topic_weight * self._one_hot_topics())
    if c.likes_weight:
      seen = fatigue.seen(self.dataset.splits["train"], len(items.features) - 1)
      joined.append(c.likes_weight * seen)
    return items._replace(features=np.concatenate(joined, 1))

  def _one_hot_topics(self) -> np.ndarray:
    """Topics of the items, float32 [N + 1, T]."""
    weight = self.config.quantizer.topic_weight
    topics = self._topics_for(
      f"--sid_topic_weight={weight}", "--sid_topic_weight=0"
    )
    one_hot = np.eye(len(topics.names) + 1, dtype=np.float32)[topics.of_items]
    return one_hot[:, 1:]

  @functools.cached_property
  def catalogue(self) -> Catalogue:
    """Items, SIDs, and what the training logs and metadata say of them."""
    c, given = self.config.quantizer, None
    if c.assignment == "plain" and self.brought:
      given = self.brought.given
    catalogue = quantize.load(self.folder("quantize"), self.items, c, given)
    logs = self.dataset.splits["train"]
    shown, likes = ranking.counts(logs, len(self.dataset.items.features) - 1)
    categories = topics_lib.of_categories(self.dataset.items.genres).categories
    width = self.dataset.items.features.shape[1]
    return catalogue._replace(
      popularity=jnp.asarray(likes, jnp.float32),
      exposures=jnp.asarray(shown, jnp.float32),
      categories=jnp.asarray(categories) if categories.size else None,
      plain=jnp.zeros((0, width)) if c.topic_weight or c.likes_weight else None,
    )

  @functools.cached_property
  def env(self) -> UserSimulator:
    """The simulator."""
    c = self.config.simulator
    if self.made_up:
      return sardine.make(c, self.dataset.items.features.shape[1])
    slate_size = c.slate_size or self.dataset.splits["train"].exposed.shape[1]
    items = len(self.dataset.items.features) - 1
    if slate_size > items:
      raise InputError(
        f"--simulator_slate_size={slate_size}; expected at most {items}, the "
        "number of items"
      )
    topics = 0 if self.topics is None else len(self.topics.names)
    return user_simulator.make(c, slate_size, topics)

  @functools.cached_property
  def topics(self) -> topics_lib.Topics | None:
    """The topics of the items; None where users do not care for topics."""
    c = self.config.simulator
    if not c.uses_topics:
      return None
    return self._topics_for(
      f"--simulator_boredom={c.boredom} and --simulator_leave={c.leave}",
      "--simulator_boredom=none and another --simulator_leave",
    )

  def _topics_for(self, asked: str, other: str) -> topics_lib.Topics:
    """The topics of the items; InputError where there are none."""
    topics = topics_lib.of_categories(self.dataset.items.genres)
    if not topics.names:
      raise InputError(
        f"{asked}, but no item of {self.name} has a category; expected items "
        f"with `genres`, or {other}"
      )
    return topics

  @functools.cached_property
  def near(self) -> leave.NearPairs | leave.NearVectors | None:
    """Which items are near each other; None where users do not care."""
    c, features = self.config.simulator, self.dataset.items.features
    if c.leave != "distance":
      return None
    if len(features) < 3:
      raise InputError(
        f"--simulator_leave=distance, but {self.name} has {len(features) - 1} "
        "item; expected at least 2, or another --simulator_leave"
      )
    if self.ratings is not None:
      features = self.ratings.T
    return leave.nearness(features)

  @functools.cached_property
  def kernel(self) -> np.ndarray | None:
    """By what items are alike to users who tire; None where nobody does."""
    c, items = self.config.simulator, self.dataset.items
    if not c.tires:
      return None
    return fatigue.kernel(
      self.dataset.splits["train"],
      items.features,
      self.topics.categories if c.boredom == "fatigue_fine" else None,
    )

  @functools.cached_property
  def ratings(self) -> np.ndarray | None:
    """The matrix of --truth, see truth.read; None where there is none."""
    if self.config.data.truth is None:
      return None
    return scored_by.ratings(self.config.data.truth, self.dataset)

  @property
  def judge(self) -> UserSimulator:
    """The simulator by which sessions are scored."""
    return self.env if self.ratings is None else truth.scored(self.env)

  def judged_users(self) -> EnvParams:
    """The parameters of `judge` with the users of the evaluation's split."""
    split = self.config.evaluate.split
    users = self.users(split)
    if self.ratings is None:
      return users
    return truth.pool(users, self.ratings, self.dataset.splits[split].user_id)

  @functools.cached_property
  def response(self) -> click_model.ResponseParams:
    """The fitted click model."""
    if self.given:
      return simulator.of_file(self.config.simulator, self.given, self.dataset)
    return simulator.load(
      self.config.simulator, self.folder("simulator"), self.dataset
    )

  def agent(self, slate_size: int | None = None) -> Agent:
    """The agent, for slates of K items; None: as many as the simulator shows.

    It acts as in training, also where it is served with other items.
    """
    return agent_of(
      self.config,
      slate_size or self.env.slate_size,
      self.catalogue.index.num_items,
    )

  def users(self, split: str) -> EnvParams:
    """The simulator's parameters with the users of a split."""
    sessions = self.dataset.splits[split]
    if self.made_up:
      return sardine.pool(self.dataset.items.features, sessions)
    return user_simulator.pool(
      self.response, sessions, self.topics, self.near, self.kernel
    )

  def folder(self, stage: str) -> pathlib.Path:
    """Where a stage writes."""
    if self.of is not None and stage in _SHARED:
      return self.of.folder(stage)
    if self.shared is None or stage not in _SHARED:
      return self.workdir
    return self.shared / f"{stage}-{self.fingerprints[stage][:8]}"

  def is_done(self, stage: str) -> bool:
    """Whether a stage is complete; see workdir.is_done.

    The evaluation, of which nothing is learned, is done again by other settings
    of its own.
    """
    return workdir_lib.is_done(
      self.folder(stage),
      stage,
      self.fingerprints[stage],
      again=stage in ("evaluate", "report"),
    )

  def require(self, stage: str) -> None:
    """Raises InputError where a stage is not complete."""
    if not self.is_done(stage):
      raise InputError(
        f"{self.folder(stage)}: stage {stage} is missing; run --mode={stage} "
        "first, or --mode=all"
      )


def _check_without_slates(config: config_lib.Config, name: str) -> None:
  """Raises InputError where a configuration asks for logged slates."""
  if config.simulator.slate_size is None:
    raise InputError(
      "--simulator_slate_size is missing; expected the items of a slate, since "
      f"{name} has no slates that would tell"
    )
  _check_agent(config, name, "another agent, or a file on top of a --dataset")


def _check_world(config: config_lib.Config) -> None:
  """Raises InputError where world, data and agent do not go together."""
  world, data = config.simulator.world, config.data
  is_made = world != FITTED
  if is_made != (data.dataset == _MADE_UP and data.response_params is None):
    raise InputError(
      f"--simulator_world={world} with --dataset={data.dataset}"
      + (" and --response_params" if data.response_params else "")
      + (
        f"; expected --dataset={_MADE_UP} alone, which has its users"
        if is_made
        else f", which has no slates to fit users to; expected one of {WORLDS}"
      )
    )
  if is_made and data.item_vectors == "logs":
    raise InputError(
      f"--item_vectors=logs with --dataset={_MADE_UP}, which has no logs; "
      "expected auto or given"
    )
  if is_made:
    _check_agent(config, _MADE_UP, "another agent")


def _check_agent(config: config_lib.Config, name: str, expected: str) -> None:
  """Raises InputError where an agent needs logged slates that `name` lacks."""
  if agents.needs_logs(config):
    raise InputError(
      f"--agent={config.agent} learns from logged slates and {name} has "
      f"none; expected {expected}"
    )
